// The driver's library, and whether there is a GPU that can be used.
#include <dlfcn.h>

#include <cstdlib>
#include <initializer_list>
#include <map>
#include <mutex>

#include "native/driver.h"

namespace dsv2 {
namespace {

constexpr int kOldest = 12000;  // CUDA of the driver, as it counts

struct Model {
  const char *capability, *names;
};
// What ``build --gpu`` takes, by architecture.
constexpr Model kModels[] = {{"sm_80", "a100 or a800"},
                             {"sm_89", "l40s or rtx4090"},
                             {"sm_90", "h800 or h100 or h200 or h20"},
                             {"sm_100", "b200"},
                             {"sm_120", "rtx5090"}};

[[noreturn]] void incompatible(const std::string& cause, const std::string& remedy) {
  throw Error(DSV2_INCOMPATIBLE, cause, remedy);
}

std::string library_path() {
  const char* given = std::getenv("DSV2_LIBCUDA");
  return given && *given ? given : "libcuda.so.1";
}

// The driver's functions. A library that was opened is never closed.
const CudaApi& open_library() {
  static std::mutex mutex;
  static auto& opened = *new std::map<void*, CudaApi>;
  std::lock_guard lock(mutex);
  void* handle = dlopen(library_path().c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!handle) {
    incompatible("There is no NVIDIA driver: " + library_path() + " cannot be loaded.",
                 "Install the driver, give the container the GPU, or load an engine built with --cpu.");
  }
  auto [entry, fresh] = opened.try_emplace(handle);
  CudaApi& api = entry->second;
  if (!fresh) return api;
  const char* missing = nullptr;
#define DSV2_CUDA_BIND(name, exported, parameters)                            \
  api.name = reinterpret_cast<decltype(api.name)>(dlsym(handle, #exported)); \
  if (!api.name && !missing) missing = #exported;
  DSV2_CUDA_FUNCTIONS(DSV2_CUDA_BIND)
#undef DSV2_CUDA_BIND
  api.parameter_info = reinterpret_cast<decltype(api.parameter_info)>(dlsym(handle, "cuFuncGetParamInfo"));
  if (missing) {
    opened.erase(entry);
    incompatible("The NVIDIA driver is too old: " + library_path() + " has no " + missing + ".", "Update the driver.");
  }
  return api;
}

std::string dotted(int version) { return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10); }

std::string error_name(const CudaApi& api, CuResult code) {
  const char* name = nullptr;
  api.error_name(code, &name);
  return name ? name : "CUDA error " + std::to_string(code);
}

// Of a question to the driver before there is a context.
void check(const CudaApi& api, CuResult code) {
  if (!code) return;
  incompatible("The NVIDIA driver does not start: " + error_name(api, code) + ".",
               "See what nvidia-smi says; after an update of the driver, restart the machine.");
}

}  // namespace

Gpu find_gpu() {
  const CudaApi& api = open_library();
  CuResult started = api.init(0);
  int count = 0, version = 0;
  if (started != kCuNoDevice) {
    check(api, api.driver_version(&version));
    if (version < kOldest) {
      incompatible("The NVIDIA driver is for CUDA " + dotted(version) + ", " + dotted(kOldest) + " is needed.",
                   "Update the driver.");
    }
    check(api, started);
    check(api, api.device_count(&count));
  }
  if (!count) {
    incompatible("There is no GPU 0: the driver finds 0.",
                 "Choose another device; nvidia-smi lists them, CUDA_VISIBLE_DEVICES may hide some.");
  }
  Gpu gpu{&api, 0, "", "", dotted(version)};
  char name[256] = "";
  int major = 0, minor = 0;
  check(api, api.device(&gpu.device, 0));
  check(api, api.device_name(name, sizeof name, gpu.device));
  check(api, api.device_attribute(&major, kCuCapabilityMajor, gpu.device));
  check(api, api.device_attribute(&minor, kCuCapabilityMinor, gpu.device));
  gpu.name = name;
  gpu.capability = "sm_" + std::to_string(major) + std::to_string(minor);
  return gpu;
}

void require_architecture(const Gpu& gpu, const std::string& capability, const std::string& target) {
  if (gpu.capability == capability) return;
  std::string remedy = "Run it on a GPU of " + capability + ".";
  for (const Model& model : kModels) {
    if (gpu.capability == model.capability) remedy = std::string("Rebuild it with --gpu ") + model.names + ".";
  }
  incompatible("The engine is built for " + capability + " (" + target + "), found " + gpu.capability + " (" +
                   gpu.name + ").",
               remedy);
}

Error explained(const DriverError& e, const std::string& action) {
  if (e.code == "CUDA_ERROR_OUT_OF_MEMORY") {
    return {DSV2_RESOURCE, "The GPU has no memory left to " + action + ".",
            "Open fewer or shorter sequences, or free memory on the GPU."};
  }
  for (const char* refused : {"INVALID_IMAGE", "INVALID_SOURCE", "NO_BINARY_FOR_GPU", "INVALID_PTX",
                              "UNSUPPORTED_PTX_VERSION", "JIT_COMPILER_NOT_FOUND"}) {
    if (e.code == std::string("CUDA_ERROR_") + refused) {
      return {DSV2_INCOMPATIBLE, "The GPU's driver could not " + action + ": " + e.code + ".",
              "Update the NVIDIA driver: it is older than the compiler that made the engine's kernels."};
    }
  }
  std::string text = e.what();
  while (!text.empty() && text.back() == '.') text.pop_back();
  return {DSV2_INTERNAL, "The GPU could not " + action + ": " + text + ".",
          "Report this as a bug, with the manifest; after a fault, start again."};
}

}  // namespace dsv2
