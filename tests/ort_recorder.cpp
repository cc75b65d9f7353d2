// An ONNX Runtime library that stands before the one at REAL and appends to the file LOG what is set of its sessions.
// Everything is done by the real one; but a run writes only output number ONLY, if that is not negative.
#include <dlfcn.h>

#include <algorithm>
#include <cstdio>
#include <string>

namespace {

using Slot = void (*)();
using Status = void *;

struct Base {
  const Slot *(*get_api)(unsigned version);
  const char *(*version)();
};

const Base *real() {
  void *library = dlopen(REAL, RTLD_NOW | RTLD_LOCAL);
  return reinterpret_cast<const Base *(*)()>(dlsym(library, "OrtGetApiBase"))();
}

const Slot *original;
Slot table[131];

void record(const char *name, const char *value) {
  std::FILE *log = std::fopen(LOG, "a");
  std::fprintf(log, "%s %s\n", name, value);
  std::fclose(log);
}

template <int slot>
Status number(void *options, int value) {
  const char *name = slot == 22 ? "severity" : slot == 24 ? "intra" : "inter";
  record(name, std::to_string(value).c_str());
  return reinterpret_cast<Status (*)(void *, int)>(original[slot])(options, value);
}

Status entry(void *options, const char *key, const char *value) {
  record(key, value);
  return reinterpret_cast<Status (*)(void *, const char *, const char *)>(original[130])(options, key, value);
}

Status run_one(void *session, const void *options, const char *const *names, const void *const *inputs, size_t count,
               const char *const *outputs, size_t, void **values) {
  using Run = Status (*)(void *, const void *, const char *const *, const void *const *, size_t, const char *const *,
                         size_t, void **);
  return reinterpret_cast<Run>(original[9])(session, options, names, inputs, count, outputs + ONLY, 1, values + ONLY);
}

const Slot *get_api(unsigned version) {
  original = real()->get_api(version);
  std::copy_n(original, 131, table);
  if (ONLY >= 0) table[9] = reinterpret_cast<Slot>(run_one);
  table[22] = reinterpret_cast<Slot>(number<22>);
  table[24] = reinterpret_cast<Slot>(number<24>);
  table[25] = reinterpret_cast<Slot>(number<25>);
  table[130] = reinterpret_cast<Slot>(entry);
  return table;
}

const char *version() { return real()->version(); }

const Base base = {get_api, version};

}  // namespace

extern "C" const Base *OrtGetApiBase() { return &base; }
