#include "stub/recorder.h"

#include <cstdarg>
#include <cstdlib>

namespace dsv2 {
namespace {

// FNV-1a.
uint64_t hash(const void* data, size_t count) {
  uint64_t out = 0xcbf29ce484222325;
  for (size_t i = 0; i < count; ++i) out = (out ^ static_cast<const unsigned char*>(data)[i]) * 0x100000001b3;
  return out;
}

}  // namespace

const char* setting(const char* name, const char* otherwise) {
  const char* found = std::getenv((std::string("DSV2_STUB_") + name).c_str());
  return found ? found : otherwise;
}

int64_t number(const char* name, const char* otherwise) { return std::atoll(setting(name, otherwise)); }

Recorder& Recorder::instance() {
  static auto* recorder = new Recorder;  // never destroyed: a thread may still call when the process ends
  return *recorder;
}

Recorder::Recorder() : log_(*setting("LOG", "") ? std::fopen(setting("LOG", ""), "w") : nullptr) {
  char name[80];
  if (std::sscanf(setting("FAIL", ""), "%79s %d %d", name, &fails_at_, &fails_with_) == 3) failing_ = name;
}

void Recorder::note(const char* format, ...) {
  if (!log_) return;
  va_list values;
  va_start(values, format);
  std::vfprintf(log_, format, values);
  va_end(values);
  std::fputc('\n', log_);
  std::fflush(log_);
}

CuResult Recorder::wanted(const char* function) {
  if (failing_ != function) return 0;
  ++calls_;
  return fails_at_ == 0 || fails_at_ == calls_ ? fails_with_ : 0;
}

bool Recorder::holds(CuAddress address, size_t nbytes) const {
  auto block = blocks.upper_bound(address);
  if (block == blocks.begin()) return false;
  --block;
  size_t offset = address - block->first;
  return offset <= block->second && nbytes <= block->second - offset;
}

void Recorder::copy_in(CuAddress to, const void* from, size_t nbytes) {
  if (!log_) return;
  copies_.push_back({from, nbytes, hash(from, nbytes)});
  note("copy_in %llu %zu %llu", to, nbytes, static_cast<unsigned long long>(copies_.back().hash));
}

void Recorder::copied() {
  for (const Copy& copy : copies_) {
    if (hash(copy.from, copy.nbytes) != copy.hash) note("fault %zu bytes changed before they were copied", copy.nbytes);
  }
  copies_.clear();
}

}  // namespace dsv2
