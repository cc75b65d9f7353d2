// What an engine needs of its backend.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "engine/manifest.h"
#include "runtime/store.h"

namespace dsv2 {

struct LoadOptions {
  int32_t threads = 0;       // 0: all that the process may use
  int64_t cache_tokens = 0;  // 0: as many as fit
  std::string onnxruntime;   // empty: $DSV2_ONNXRUNTIME, else libonnxruntime.so.1
};

// Pages of a cache that all sessions share; all 0 where each session has its own.
struct Pages {
  int64_t size = 0, count = 0, free = 0;
};

class Loaded {
 public:
  virtual ~Loaded() = default;
  // The cache of a new session. The store keeps what it needs of this alive.
  virtual std::unique_ptr<Store> store(int64_t slots, int64_t max_tokens) = 0;
  virtual Pages pages() const { return {}; }
};

// A backend's two functions. ``require_compatible`` throws Error incompatible unless this process can run the engine
// and answers at once, before any large file is read; ``load`` gets an engine whose files have been checked.
struct Backend {
  void (*require_compatible)(const std::string& root, const Manifest& manifest, const LoadOptions& options);
  std::shared_ptr<Loaded> (*load)(const std::string& root, const Manifest& manifest, const LoadOptions& options);
};

// Error incompatible for a backend that this build does not have.
const Backend& backend(const Manifest& manifest);

extern const Backend kCudaBackend;         // native/model.cpp
extern const Backend kOnnxRuntimeBackend;  // ort/model.cpp

}  // namespace dsv2
