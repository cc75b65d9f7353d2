// Any bytes as JSON; as a manifest; and as one sealed as a hostile builder would, so that the seal hides nothing.
#include <cstdlib>
#include <string>
#include <string_view>

#include "base/error.h"
#include "base/json.h"
#include "base/sha256.h"
#include "engine/manifest.h"

using namespace dsv2;

namespace {

// What the rest of the library relies on.
void require_sound(const Manifest& m) {
  for (const auto& [name, w] : m.weights) {
    auto file = m.files.find(w.file);
    if (file == m.files.end() || w.offset < 0 || w.nbytes < 0 || w.nbytes > file->second.bytes - w.offset) std::abort();
  }
  for (const auto& [path, entry] : m.files) {
    if (path.empty() || path[0] == '/' || path.find("..") == 0 || path.find("/.") != path.npos) std::abort();
  }
  if (m.programs.empty() || m.max_seq_len < 1 || m.max_batch_size < 1 || m.model.cache_dim() < 2) std::abort();
}

void check(std::string_view text) {
  try {
    require_sound(parse_manifest(text));
  } catch (const Error& e) {
    if (e.code != DSV2_INTEGRITY && e.code != DSV2_INCOMPATIBLE) std::abort();
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::string_view text(reinterpret_cast<const char*>(data), size);
  try {
    parse_json(text, {1 << 20});  // of the very bytes: no terminator hides a read past their end
  } catch (const JsonError&) {
  }
  check(text);
  std::string body(text);
  check(body + ",\n \"sha256\": \"" + sha256_hex(body) + "\"\n}\n");
  return 0;
}
