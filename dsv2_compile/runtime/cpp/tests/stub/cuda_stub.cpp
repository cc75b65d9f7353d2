// The functions of the stand-in for libcuda.so.1: see recorder.h.
#include <elf.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "native/cubin.h"
#include "stub/recorder.h"

using namespace dsv2;

namespace {

constexpr CuResult kInvalidValue = 1, kInvalidContext = 201, kNotFound = 500;
constexpr size_t kTotal = size_t{1} << 41;

thread_local int contexts = 0;  // current ones of this thread

Recorder& recorder() { return Recorder::instance(); }

}  // namespace

#define STUB(name, ...)                                                                        \
  extern "C" __attribute__((visibility("default"))) CuResult name(__VA_ARGS__);                \
  extern "C" CuResult name(__VA_ARGS__)
#define BEGIN(name)                       \
  std::lock_guard lock(recorder().mutex); \
  if (CuResult code = recorder().wanted(name)) return code
#define BEGIN_IN_CONTEXT(name) \
  BEGIN(name);                 \
  if (!contexts) return kInvalidContext

STUB(cuInit, unsigned) {
  BEGIN("cuInit");
  return number("DEVICES", "1") ? 0 : kCuNoDevice;
}

STUB(cuDriverGetVersion, int* version) {
  BEGIN("cuDriverGetVersion");
  *version = static_cast<int>(number("VERSION", "13000"));
  return 0;
}

STUB(cuGetErrorName, CuResult code, const char** name) {
  static const std::map<CuResult, const char*> names = {
      {1, "CUDA_ERROR_INVALID_VALUE"},  {2, "CUDA_ERROR_OUT_OF_MEMORY"},
      {100, "CUDA_ERROR_NO_DEVICE"},    {200, "CUDA_ERROR_INVALID_IMAGE"},
      {201, "CUDA_ERROR_INVALID_CONTEXT"}, {209, "CUDA_ERROR_NO_BINARY_FOR_GPU"},
      {700, "CUDA_ERROR_ILLEGAL_ADDRESS"}, {803, "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH"}};
  auto found = names.find(code);
  *name = found == names.end() ? nullptr : found->second;
  return found == names.end() ? kInvalidValue : 0;
}

STUB(cuGetErrorString, CuResult, const char** text) {
  *text = "as the test wants";
  return 0;
}

STUB(cuDeviceGetCount, int* count) {
  BEGIN("cuDeviceGetCount");
  *count = static_cast<int>(number("DEVICES", "1"));
  return 0;
}

STUB(cuDeviceGet, CuDevice* device, int which) {
  BEGIN("cuDeviceGet");
  *device = which;
  return 0;
}

STUB(cuDeviceGetName, char* name, int room, CuDevice) {
  BEGIN("cuDeviceGetName");
  std::snprintf(name, static_cast<size_t>(room), "no GPU");
  return 0;
}

STUB(cuDeviceGetAttribute, int* value, int attribute, CuDevice) {
  BEGIN("cuDeviceGetAttribute");
  const char* capability = setting("CAPABILITY", "9.0");
  const char* minor = std::strchr(capability, '.');
  *value = std::atoi(attribute == kCuCapabilityMajor || !minor ? capability : minor + 1);
  return 0;
}

STUB(cuDevicePrimaryCtxRetain, CuContext* context, CuDevice) {
  BEGIN("cuDevicePrimaryCtxRetain");
  *context = &recorder().context;
  return 0;
}

STUB(cuDevicePrimaryCtxRelease_v2, CuDevice) {
  BEGIN("cuDevicePrimaryCtxRelease_v2");
  return 0;
}

STUB(cuCtxPushCurrent_v2, CuContext) {
  BEGIN("cuCtxPushCurrent_v2");
  ++contexts;
  return 0;
}

STUB(cuCtxPopCurrent_v2, CuContext* context) {
  BEGIN_IN_CONTEXT("cuCtxPopCurrent_v2");
  --contexts;
  *context = &recorder().context;
  return 0;
}

STUB(cuStreamCreate, CuStream* stream, unsigned) {
  BEGIN_IN_CONTEXT("cuStreamCreate");
  *stream = &recorder().stream;
  return 0;
}

STUB(cuStreamDestroy_v2, CuStream) {
  BEGIN_IN_CONTEXT("cuStreamDestroy_v2");
  return 0;
}

STUB(cuStreamSynchronize, CuStream) {
  BEGIN_IN_CONTEXT("cuStreamSynchronize");
  recorder().copied();
  recorder().note("wait");
  return 0;
}

STUB(cuMemGetInfo_v2, size_t* free, size_t* total) {
  BEGIN_IN_CONTEXT("cuMemGetInfo_v2");
  *free = static_cast<size_t>(number("FREE", "1099511627776"));
  *total = kTotal;
  return 0;
}

STUB(cuMemAlloc_v2, CuAddress* address, size_t nbytes) {
  BEGIN_IN_CONTEXT("cuMemAlloc_v2");
  if (!nbytes) return kInvalidValue;
  *address = recorder().next;
  recorder().blocks[*address] = nbytes;
  recorder().next += (nbytes + 511) / 256 * 256;  // a multiple of 256 and, often, of no more
  recorder().note("alloc %llu %zu", *address, nbytes);
  return 0;
}

STUB(cuMemFree_v2, CuAddress address) {
  BEGIN_IN_CONTEXT("cuMemFree_v2");
  recorder().note("free %llu", address);
  return recorder().blocks.erase(address) ? 0 : kInvalidValue;
}

STUB(cuMemAllocHost_v2, void** address, size_t nbytes) {
  BEGIN_IN_CONTEXT("cuMemAllocHost_v2");
  *address = std::malloc(nbytes);
  if (recorder().logging()) std::memset(*address, 0xaa, nbytes);
  recorder().note("pinned %zu", nbytes);
  return 0;
}

STUB(cuMemFreeHost, void* address) {
  BEGIN_IN_CONTEXT("cuMemFreeHost");
  std::free(address);
  return 0;
}

STUB(cuMemcpyHtoDAsync_v2, CuAddress to, const void* from, size_t nbytes, CuStream) {
  BEGIN_IN_CONTEXT("cuMemcpyHtoDAsync_v2");
  if (!recorder().holds(to, nbytes)) return kInvalidValue;
  recorder().copy_in(to, from, nbytes);
  return 0;
}

STUB(cuMemcpyDtoHAsync_v2, void* to, CuAddress from, size_t nbytes, CuStream) {
  BEGIN_IN_CONTEXT("cuMemcpyDtoHAsync_v2");
  if (!recorder().holds(from, nbytes)) return kInvalidValue;
  recorder().note("copy_out %llu %zu", from, nbytes);
  recorder().copied();
  std::memset(to, static_cast<int>(number("READS", "0")), nbytes);
  return 0;
}

STUB(cuMemsetD8Async, CuAddress address, unsigned char value, size_t nbytes, CuStream) {
  BEGIN_IN_CONTEXT("cuMemsetD8Async");
  if (!recorder().holds(address, nbytes)) return kInvalidValue;
  recorder().note("fill %llu %d %zu", address, int{value}, nbytes);
  return 0;
}

STUB(cuModuleLoadData, CuModule* module, const void* image) {
  BEGIN_IN_CONTEXT("cuModuleLoadData");
  const char* bytes = static_cast<const char*>(image);
  Elf64_Ehdr header;
  std::memcpy(&header, bytes, sizeof header);
  uint64_t end = header.e_shoff + uint64_t{header.e_shnum} * sizeof(Elf64_Shdr);
  for (size_t i = 0; i < header.e_shnum; ++i) {
    Elf64_Shdr section;
    std::memcpy(&section, bytes + header.e_shoff + i * sizeof section, sizeof section);
    if (section.sh_type != SHT_NOBITS) end = std::max<uint64_t>(end, section.sh_offset + section.sh_size);
  }
  *module = new CuModuleOpaque{std::string(bytes, end), {}};
  return 0;
}

STUB(cuModuleUnload, CuModule module) {
  BEGIN_IN_CONTEXT("cuModuleUnload");
  delete module;
  return 0;
}

STUB(cuModuleGetFunction, CuFunction* function, CuModule module, const char* name) {
  BEGIN_IN_CONTEXT("cuModuleGetFunction");
  std::vector<int64_t> parameters;
  try {
    parameters = cubin_parameters(module->image, name, "");
  } catch (const std::exception&) {
    return kNotFound;
  }
  parameters.insert(parameters.end(), static_cast<size_t>(number("PARAMETERS", "0")), 8);
  *function = &module->functions.emplace_back(CuFunctionOpaque{name, parameters});
  recorder().note("function %s", name);
  return 0;
}

STUB(cuFuncSetAttribute, CuFunction function, int attribute, int value) {
  BEGIN_IN_CONTEXT("cuFuncSetAttribute");
  if (attribute != kCuMaxDynamicShared) return kInvalidValue;
  recorder().note("shared %s %d", function->symbol.c_str(), value);
  return 0;
}

STUB(cuFuncGetParamInfo, CuFunction function, size_t which, size_t* offset, size_t* nbytes) {
  BEGIN_IN_CONTEXT("cuFuncGetParamInfo");
  if (which >= function->parameters.size()) return kInvalidValue;
  *offset = 0;
  *nbytes = static_cast<size_t>(function->parameters[which]);
  return 0;
}

STUB(cuLaunchKernel, CuFunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
     unsigned block_y, unsigned block_z, unsigned shared, CuStream, void** parameters, void**) {
  BEGIN_IN_CONTEXT("cuLaunchKernel");
  if (!grid_x || !grid_y || !grid_z || block_y != 1 || block_z != 1) return kInvalidValue;
  if (!recorder().logging()) return 0;
  std::string words;
  for (size_t i = 0; i < function->parameters.size(); ++i) {
    int32_t scalar;
    uint64_t address;
    bool wide = function->parameters[i] == 8;
    std::memcpy(wide ? static_cast<void*>(&address) : &scalar, parameters[i], wide ? 8 : 4);
    words += " " + (wide ? std::to_string(address) : std::to_string(scalar));
  }
  recorder().note("launch %s %u %u %u %u %u%s", function->symbol.c_str(), grid_x, grid_y, grid_z, block_x, shared,
                  words.c_str());
  return 0;
}

STUB(cuStreamBeginCapture_v2, CuStream, int) {
  BEGIN_IN_CONTEXT("cuStreamBeginCapture_v2");
  recorder().note("capture");
  return 0;
}

STUB(cuStreamEndCapture, CuStream, CuGraph* graph) {
  BEGIN_IN_CONTEXT("cuStreamEndCapture");
  *graph = new CuGraphOpaque{recorder().graphs++};
  return 0;
}

STUB(cuGraphInstantiateWithFlags, CuGraphExec* made, CuGraph graph, unsigned long long) {
  BEGIN_IN_CONTEXT("cuGraphInstantiateWithFlags");
  *made = new CuGraphExecOpaque{graph->number};
  recorder().note("graph %d", graph->number);
  return 0;
}

STUB(cuGraphDestroy, CuGraph graph) {
  BEGIN_IN_CONTEXT("cuGraphDestroy");
  delete graph;
  return 0;
}

STUB(cuGraphExecDestroy, CuGraphExec graph) {
  BEGIN_IN_CONTEXT("cuGraphExecDestroy");
  recorder().note("discard %d", graph->number);
  delete graph;
  return 0;
}

STUB(cuGraphLaunch, CuGraphExec graph, CuStream) {
  BEGIN_IN_CONTEXT("cuGraphLaunch");
  recorder().note("replay %d", graph->number);
  return 0;
}
