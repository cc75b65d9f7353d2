// An ONNX Runtime library, opened at run time.
#pragma once

#include <memory>
#include <string>

#include "ort/ort_api.h"

namespace dsv2 {

// What a function of the library made, released by the function that it names.
template <typename T>
using OrtOwned = std::unique_ptr<T, void (*)(T*)>;

// Stays open until the process ends: threads of a library that is closed would run on unmapped code.
class OrtLibrary {
 public:
  // The library at ``path``, as dlopen takes it; the same object for the same library. Error incompatible if there is
  // none, or none that this runtime can use.
  static const OrtLibrary& open(const std::string& path);

  // Error for a call that failed: resource for want of memory, incompatible if ``loading``, else internal. ``action``:
  // "load decode.onnx".
  void require(OrtStatus* status, const std::string& action, bool loading) const;

  const std::string& version() const { return version_; }
  const OrtApi& api() const { return api_; }
  const OrtEnv* env() const { return env_; }
  const OrtMemoryInfo* memory() const { return memory_; }

 private:
  OrtLibrary(const OrtApiBase& base, const std::string& path);

  std::string version_;
  OrtApi api_{};
  OrtEnv* env_ = nullptr;
  OrtMemoryInfo* memory_ = nullptr;
};

}  // namespace dsv2
