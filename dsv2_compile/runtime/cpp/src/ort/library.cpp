#include "ort/library.h"

#include <dlfcn.h>

#include <map>
#include <mutex>

#include "base/error.h"

namespace dsv2 {
namespace {

constexpr size_t kTextLimit = 400;

[[noreturn]] void unusable(const std::string& cause) {
  throw Error(DSV2_INCOMPATIBLE, cause,
              "Install onnxruntime (its Python wheel has the library in onnxruntime/capi) and name the file in the "
              "load options or in DSV2_ONNXRUNTIME.");
}

// ``text`` on one line, cut.
std::string one_line(const char* text) {
  std::string out;
  for (; *text && out.size() < kTextLimit; ++text) {
    bool space = *text == ' ' || (*text >= '\t' && *text <= '\r');
    if (!space) out += *text;
    else if (!out.empty() && out.back() != ' ') out += ' ';
  }
  if (!out.empty() && out.back() == ' ') out.pop_back();
  return out;
}

bool contains(const std::string& text, const char* part) { return text.find(part) != std::string::npos; }

}  // namespace

const OrtLibrary& OrtLibrary::open(const std::string& path) {
  static std::mutex mutex;
  static auto& opened = *new std::map<void*, std::unique_ptr<OrtLibrary>>;  // never destroyed, as it is never closed
  std::lock_guard lock(mutex);
  void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!handle) unusable("ONNX Runtime's library cannot be opened: " + one_line(dlerror()));
  auto& library = opened[handle];
  if (!library) {
    auto get_base = reinterpret_cast<const OrtApiBase* (*)()>(dlsym(handle, "OrtGetApiBase"));
    if (!get_base) unusable(path + " is not ONNX Runtime's library.");
    library.reset(new OrtLibrary(*get_base(), path));
  }
  return *library;
}

OrtLibrary::OrtLibrary(const OrtApiBase& base, const std::string& path) : version_(base.version()) {
  const OrtSlot* table = base.get_api(kOrtApiVersion);
  if (!table) {
    unusable(path + " is ONNX Runtime " + version_ + "; this runtime needs 1." + std::to_string(kOrtApiVersion) +
             " or later.");
  }
#define DSV2_ORT_BIND(place, result, name, parameters) \
  api_.name = reinterpret_cast<decltype(api_.name)>(table[place]);
  DSV2_ORT_FUNCTIONS(DSV2_ORT_BIND)
#undef DSV2_ORT_BIND
  require(api_.create_env(kOrtFatal, "dsv2", &env_), "start", true);
  require(api_.create_cpu_memory_info(kOrtDeviceAllocator, kOrtDefaultMemory, &memory_), "start", true);
}

void OrtLibrary::require(OrtStatus* status, const std::string& action, bool loading) const {
  if (!status) return;
  OrtOwned<OrtStatus> owned(status, api_.release_status);
  std::string text = one_line(api_.error_message(status));
  if (contains(text, "bad_alloc") || contains(text, "Failed to allocate")) {
    throw Error(DSV2_RESOURCE, "Out of memory: ONNX Runtime could not " + action + ": " + text,
                "Use a smaller batch or model.");
  }
  if (loading) {
    throw Error(DSV2_INCOMPATIBLE, "ONNX Runtime " + version_ + " could not " + action + ": " + text,
                "Rebuild the engine with the onnxruntime version installed here.");
  }
  throw Error(DSV2_INTERNAL, "ONNX Runtime could not " + action + ": " + text,
              "Report this as a bug, with the manifest.");
}

}  // namespace dsv2
