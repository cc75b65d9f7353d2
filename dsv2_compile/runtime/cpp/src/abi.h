// What the functions of dsv2.h share.
#pragma once

#include <cstdint>
#include <vector>

#include "dsv2/dsv2.h"
#include "handles.h"
#include "runtime/engine.h"

namespace dsv2 {

template <>
inline const char* const kHandleName<Engine> = "engine";
template <>
inline const char* const kHandleName<Session> = "session";
template <>
inline const char* const kHandleName<Scheduler> = "scheduler";

inline Sampling sampling_of(const dsv2_sampling& given) {
  return {given.temperature, given.top_k, given.top_p, given.seed};
}

}  // namespace dsv2
