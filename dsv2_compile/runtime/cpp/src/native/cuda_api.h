// The part of the CUDA driver's interface that is used, declared here: building needs no CUDA.
#pragma once

#include <cstddef>
#include <cstdint>

namespace dsv2 {

using CuResult = int;  // 0: success
using CuDevice = int;
using CuAddress = unsigned long long;
using CuContext = struct CuContextOpaque*;
using CuStream = struct CuStreamOpaque*;
using CuModule = struct CuModuleOpaque*;
using CuFunction = struct CuFunctionOpaque*;
using CuGraph = struct CuGraphOpaque*;
using CuGraphExec = struct CuGraphExecOpaque*;

inline constexpr int kCuCapabilityMajor = 75, kCuCapabilityMinor = 76;  // attributes of a device
inline constexpr int kCuMaxDynamicShared = 8;                           // attribute of a function
inline constexpr unsigned kCuStreamNonBlocking = 1;
inline constexpr int kCuCaptureThreadLocal = 1;
inline constexpr CuResult kCuNoDevice = 100;

// X(name, exported name, parameters): those of every driver for CUDA 12.0. The exported name is what cuda.h maps the
// documented one to; without _v2 it is an older function with other types.
#define DSV2_CUDA_FUNCTIONS(X)                                                                                \
  X(init, cuInit, (unsigned flags))                                                                           \
  X(driver_version, cuDriverGetVersion, (int* version))                                                       \
  X(error_name, cuGetErrorName, (CuResult code, const char** name))                                           \
  X(error_text, cuGetErrorString, (CuResult code, const char** text))                                         \
  X(device_count, cuDeviceGetCount, (int* count))                                                             \
  X(device, cuDeviceGet, (CuDevice * device, int number))                                                     \
  X(device_name, cuDeviceGetName, (char* name, int room, CuDevice device))                                    \
  X(device_attribute, cuDeviceGetAttribute, (int* value, int attribute, CuDevice device))                     \
  X(context_retain, cuDevicePrimaryCtxRetain, (CuContext * context, CuDevice device))                         \
  X(context_release, cuDevicePrimaryCtxRelease_v2, (CuDevice device))                                         \
  X(context_push, cuCtxPushCurrent_v2, (CuContext context))                                                   \
  X(context_pop, cuCtxPopCurrent_v2, (CuContext * context))                                                   \
  X(stream_create, cuStreamCreate, (CuStream * stream, unsigned flags))                                       \
  X(stream_destroy, cuStreamDestroy_v2, (CuStream stream))                                                    \
  X(stream_wait, cuStreamSynchronize, (CuStream stream))                                                      \
  X(memory, cuMemGetInfo_v2, (size_t* free, size_t* total))                                                   \
  X(alloc, cuMemAlloc_v2, (CuAddress * address, size_t nbytes))                                               \
  X(free, cuMemFree_v2, (CuAddress address))                                                                  \
  X(host_alloc, cuMemAllocHost_v2, (void** address, size_t nbytes))                                           \
  X(host_free, cuMemFreeHost, (void* address))                                                                \
  X(copy_in, cuMemcpyHtoDAsync_v2, (CuAddress to, const void* from, size_t nbytes, CuStream stream))          \
  X(copy_out, cuMemcpyDtoHAsync_v2, (void* to, CuAddress from, size_t nbytes, CuStream stream))               \
  X(fill, cuMemsetD8Async, (CuAddress address, unsigned char value, size_t nbytes, CuStream stream))          \
  X(module_load, cuModuleLoadData, (CuModule * module, const void* image))                                    \
  X(module_unload, cuModuleUnload, (CuModule module))                                                         \
  X(module_function, cuModuleGetFunction, (CuFunction * function, CuModule module, const char* name))         \
  X(function_set, cuFuncSetAttribute, (CuFunction function, int attribute, int value))                        \
  X(launch, cuLaunchKernel,                                                                                   \
    (CuFunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,                \
     unsigned block_y, unsigned block_z, unsigned shared, CuStream stream, void** parameters, void** extra))  \
  X(capture_begin, cuStreamBeginCapture_v2, (CuStream stream, int mode))                                      \
  X(capture_end, cuStreamEndCapture, (CuStream stream, CuGraph * graph))                                      \
  X(graph_instantiate, cuGraphInstantiateWithFlags, (CuGraphExec * made, CuGraph graph, unsigned long long flags)) \
  X(graph_destroy, cuGraphDestroy, (CuGraph graph))                                                           \
  X(graph_free, cuGraphExecDestroy, (CuGraphExec graph))                                                      \
  X(graph_launch, cuGraphLaunch, (CuGraphExec graph, CuStream stream))

struct CudaApi {
#define DSV2_CUDA_MEMBER(name, exported, parameters) CuResult(*name) parameters;
  DSV2_CUDA_FUNCTIONS(DSV2_CUDA_MEMBER)
#undef DSV2_CUDA_MEMBER
  // Of drivers from CUDA 12.4 on, else null: place and bytes of a parameter, an error beyond the last.
  CuResult (*parameter_info)(CuFunction function, size_t number, size_t* offset, size_t* nbytes);
};

}  // namespace dsv2
