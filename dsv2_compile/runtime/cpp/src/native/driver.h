// One GPU and one stream through the CUDA driver, which is opened when one is asked for.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "base/error.h"
#include "native/cuda_api.h"

namespace dsv2 {

// ``code``: the driver's name for it, as CUDA_ERROR_OUT_OF_MEMORY.
struct DriverError : std::runtime_error {
  DriverError(std::string code_, const std::string& text)
      : std::runtime_error(text.empty() ? code_ : code_ + ": " + text), code(std::move(code_)) {}
  std::string code;
};

// What a failure means. ``action``: what failed, as in "could not ...". The architecture is known to be right.
Error explained(const DriverError& e, const std::string& action);

template <typename Work>
auto explaining(const std::string& action, Work&& work) {
  try {
    return work();
  } catch (const DriverError& e) {
    throw explained(e, action);
  }
}

// A GPU that is there, not yet used. ``capability``: sm_90; ``version``: of CUDA, of the driver, as 13.0.
struct Gpu {
  const CudaApi* api;
  CuDevice device;
  std::string name, capability, version;
};

// The first GPU. Error incompatible if there is no driver, no GPU, or the driver is older than CUDA 12.0. The driver's
// library is libcuda.so.1, or what $DSV2_LIBCUDA names.
Gpu find_gpu();

// Error incompatible unless the GPU is of the very architecture that the cubins are for.
void require_architecture(const Gpu& gpu, const std::string& capability, const std::string& target);

// Everything happens in the order of the stream; only `wait` waits for it. All but the destructor throw DriverError.
// Its owner holds a `Current` in every thread that calls it.
class Driver {
 public:
  explicit Driver(Gpu gpu);
  ~Driver();
  Driver(const Driver&) = delete;
  Driver& operator=(const Driver&) = delete;

  // The GPU's context is this thread's while it lives; then the one before is again.
  class Current {
   public:
    explicit Current(const Driver& driver);
    ~Current();
    Current(const Current&) = delete;
    Current& operator=(const Current&) = delete;

   private:
    const Driver& driver_;
  };

  const Gpu& gpu() const { return gpu_; }
  // Free bytes and all bytes.
  std::pair<size_t, size_t> memory() const;
  // At a multiple of 256.
  CuAddress alloc(size_t nbytes);
  void free(CuAddress address);
  // Host memory that the GPU copies to and from by itself; freed with this.
  char* pinned(size_t nbytes);
  // ``host`` stays as it is until `wait`; after it, ``host`` of copy_out is filled.
  void copy_in(CuAddress address, const void* host, size_t nbytes);
  void copy_out(void* host, CuAddress address, size_t nbytes);
  void fill(CuAddress address, unsigned char value, size_t nbytes);
  // A kernel of a cubin, ready for so many bytes of dynamic shared memory.
  CuFunction load(const std::string& image, const std::string& symbol, int shared);
  // Bytes of its parameters; nothing if the driver does not tell.
  std::optional<std::vector<int64_t>> parameters(CuFunction kernel) const;
  void launch(CuFunction kernel, const unsigned (&grid)[3], unsigned threads, unsigned shared, void** arguments);
  // What ``work`` launches, which is not done, for `replay`.
  CuGraphExec capture(const std::function<void()>& work);
  void replay(CuGraphExec graph);
  void discard(CuGraphExec graph);
  void wait();

 private:
  void check(CuResult code) const;

  Gpu gpu_;
  const CudaApi& api_;
  CuContext context_ = nullptr;
  CuStream stream_ = nullptr;
  std::vector<CuModule> modules_;
  std::vector<void*> pinned_;
};

}  // namespace dsv2
