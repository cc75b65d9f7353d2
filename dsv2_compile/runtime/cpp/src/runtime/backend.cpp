#include "runtime/backend.h"

#include <string>

#include "base/error.h"

namespace dsv2 {
namespace {

struct Entry {
  const char* name;
  const Backend* backend;
};

constexpr Entry kBackends[] = {
#ifdef DSV2_HAS_ONNXRUNTIME
    {"onnxruntime", &kOnnxRuntimeBackend},
#endif
    {"cuda", &kCudaBackend},
};

}  // namespace

const Backend& backend(const Manifest& manifest) {
  std::string names;
  for (const Entry& entry : kBackends) {
    if (manifest.backend == entry.name) return *entry.backend;
    names += (names.empty() ? "" : ", ") + std::string(entry.name);
  }
  throw Error(DSV2_INCOMPATIBLE,
              "The engine is for backend " + manifest.backend + ", target " + manifest.target + "; this runtime has " +
                  names + ".",
              "Rebuild it with dsv2-compile build --cpu, or load it with the runtime of its backend.");
}

}  // namespace dsv2
