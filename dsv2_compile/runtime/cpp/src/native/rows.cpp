#include "native/rows.h"

#include <cmath>
#include <cstring>

namespace dsv2 {
namespace {

uint32_t bits_of(float value) {
  uint32_t out;
  std::memcpy(&out, &value, sizeof out);
  return out;
}

uint16_t to_bf16(float value) {
  uint32_t bits = bits_of(value);
  return static_cast<uint16_t>((bits + ((bits >> 16 & 1) + 0x7fff)) >> 16);
}

uint16_t to_fp16(float value) {
  uint32_t sign = bits_of(value) >> 16 & 0x8000;
  float size = std::fabs(value);
  if (size >= 65520.0f) return static_cast<uint16_t>(sign | 0x7c00);  // nearer to the number after the largest
  if (size < 0x1p-14f) return static_cast<uint16_t>(sign | static_cast<uint32_t>(std::nearbyint(size * 0x1p24f)));
  uint32_t bits = bits_of(size);
  uint32_t rounded = bits + 0xfff + (bits >> 13 & 1);
  return static_cast<uint16_t>(sign | ((rounded - (112u << 23)) >> 13));
}

template <typename T>
void convert(T (*made)(float), const float* values, int64_t count, char* out) {
  for (int64_t i = 0; i < count; ++i) {
    T value = made(values[i]);
    std::memcpy(out + static_cast<size_t>(i) * sizeof value, &value, sizeof value);
  }
}

}  // namespace

void to_device(Dtype dtype, const float* values, int64_t count, char* out) {
  switch (dtype) {
    case Dtype::bf16: return convert(to_bf16, values, count, out);
    case Dtype::fp16: return convert(to_fp16, values, count, out);
    default: std::memcpy(out, values, static_cast<size_t>(count) * sizeof(float));
  }
}

}  // namespace dsv2
