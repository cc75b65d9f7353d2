// Any bytes as a safetensors file.
#include <cstdlib>
#include <string_view>

#include "base/error.h"
#include "engine/safetensors.h"

using namespace dsv2;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  auto bytes = static_cast<int64_t>(size);
  try {
    int64_t held = 0;
    for (const auto& [name, entry] : parse_safetensors({reinterpret_cast<const char*>(data), size}, bytes)) {
      if (entry.start < 8 || entry.nbytes < 0 || entry.nbytes > bytes - entry.start) std::abort();
      held += entry.nbytes;
    }
    if (held > bytes - 8) std::abort();
  } catch (const Error& e) {
    if (e.code != DSV2_INTEGRITY) std::abort();
  }
  return 0;
}
