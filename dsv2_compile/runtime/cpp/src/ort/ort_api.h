// The part of ONNX Runtime's C API that the runtime uses, declared here so that no header of it is needed.
//
// OrtApi is a table of function pointers that grows at its end only: a function keeps its place in all versions. Every
// function with OrtStatus* as its result gives NULL for success; what it gives otherwise is the caller's to release.
#pragma once

#include <cstddef>
#include <cstdint>

namespace dsv2 {

struct OrtStatus;
struct OrtEnv;
struct OrtSession;
struct OrtSessionOptions;
struct OrtRunOptions;
struct OrtMemoryInfo;
struct OrtValue;
struct OrtTypeInfo;
struct OrtTensorInfo;
struct OrtAllocator;

using OrtSlot = void (*)();

// What OrtGetApiBase gives. ``get_api``: NULL if the library is older than the version asked for.
struct OrtApiBase {
  const OrtSlot* (*get_api)(uint32_t version);
  const char* (*version)();
};

// The version of the table that is asked for. Of those that have all functions below, the oldest that was tried.
inline constexpr uint32_t kOrtApiVersion = 20;

inline constexpr int kOrtFatal = 4;  // OrtLoggingLevel
inline constexpr int kOrtTensor = 1;  // ONNXType
inline constexpr int kOrtFloat = 1, kOrtInt64 = 7;  // ONNXTensorElementDataType
inline constexpr int kOrtDeviceAllocator = 0, kOrtDefaultMemory = 0;  // OrtAllocatorType, OrtMemType

// F(place in the table, result, name, parameters)
#define DSV2_ORT_FUNCTIONS(F)                                                                                         \
  F(2, const char*, error_message, (const OrtStatus*))                                                                \
  F(3, OrtStatus*, create_env, (int severity, const char* name, OrtEnv**))                                            \
  F(7, OrtStatus*, create_session, (const OrtEnv*, const char* path, const OrtSessionOptions*, OrtSession**))         \
  F(9, OrtStatus*, run,                                                                                               \
    (OrtSession*, const OrtRunOptions*, const char* const* input_names, const OrtValue* const* inputs, size_t,        \
     const char* const* output_names, size_t, OrtValue** outputs))                                                    \
  F(10, OrtStatus*, create_session_options, (OrtSessionOptions**))                                                    \
  F(22, OrtStatus*, set_log_severity, (OrtSessionOptions*, int severity))                                             \
  F(24, OrtStatus*, set_intra_op_threads, (OrtSessionOptions*, int))                                                  \
  F(25, OrtStatus*, set_inter_op_threads, (OrtSessionOptions*, int))                                                  \
  F(30, OrtStatus*, input_count, (const OrtSession*, size_t*))                                                        \
  F(31, OrtStatus*, output_count, (const OrtSession*, size_t*))                                                       \
  F(33, OrtStatus*, input_type, (const OrtSession*, size_t, OrtTypeInfo**))                                           \
  F(34, OrtStatus*, output_type, (const OrtSession*, size_t, OrtTypeInfo**))                                          \
  F(36, OrtStatus*, input_name, (const OrtSession*, size_t, OrtAllocator*, char**))                                   \
  F(37, OrtStatus*, output_name, (const OrtSession*, size_t, OrtAllocator*, char**))                                  \
  F(49, OrtStatus*, create_tensor,                                                                                    \
    (const OrtMemoryInfo*, void* data, size_t nbytes, const int64_t* shape, size_t rank, int dtype, OrtValue**))      \
  F(55, OrtStatus*, tensor_info, (const OrtTypeInfo*, const OrtTensorInfo**))                                         \
  F(56, OrtStatus*, type_kind, (const OrtTypeInfo*, int*))                                                            \
  F(60, OrtStatus*, element_type, (const OrtTensorInfo*, int*))                                                       \
  F(61, OrtStatus*, rank, (const OrtTensorInfo*, size_t*))                                                            \
  F(69, OrtStatus*, create_cpu_memory_info, (int allocator, int memory, OrtMemoryInfo**))                             \
  F(76, OrtStatus*, allocator_free, (OrtAllocator*, void*))                                                           \
  F(78, OrtStatus*, default_allocator, (OrtAllocator**))                                                              \
  F(93, void, release_status, (OrtStatus*))                                                                           \
  F(95, void, release_session, (OrtSession*))                                                                         \
  F(96, void, release_value, (OrtValue*))                                                                             \
  F(98, void, release_type_info, (OrtTypeInfo*))                                                                      \
  F(100, void, release_session_options, (OrtSessionOptions*))                                                         \
  F(130, OrtStatus*, add_config_entry, (OrtSessionOptions*, const char* key, const char* value))

struct OrtApi {
#define DSV2_ORT_MEMBER(place, result, name, parameters) result(*name) parameters;
  DSV2_ORT_FUNCTIONS(DSV2_ORT_MEMBER)
#undef DSV2_ORT_MEMBER
};

}  // namespace dsv2
