// Cache rows from float32 on the host to the dtype of a plan.
#pragma once

#include <cstdint>

#include "plan/plan.h"

namespace dsv2 {

// ``count`` finite values as ``dtype``, to the nearest, of two equally near the even one; beyond the largest is
// infinity. ``out``: so many times item_bytes(dtype) bytes.
void to_device(Dtype dtype, const float* values, int64_t count, char* out);

}  // namespace dsv2
