// Whether what a program gave can be used.
#pragma once

#include <cmath>
#include <cstdint>
#include <string>

#include "base/error.h"

namespace dsv2 {

// A sampler that met NaN or infinity gives a token below 0.
inline bool sound(float value) { return std::isfinite(value); }
inline bool sound(int32_t token) { return token >= 0; }

template <typename T>
bool all_sound(const T* values, int64_t count) {
  bool all = true;
  for (int64_t i = 0; i < count; ++i) all &= sound(values[i]);  // no early exit: this is vectorised
  return all;
}

inline Error unsound(const std::string& program, const std::string& slots) {
  return Error(DSV2_NUMERIC, program + " gave NaN or infinity for slots " + slots + ".",
               "Check the engine with dsv2-compile verify; the weights may overflow its dtype.");
}

}  // namespace dsv2
