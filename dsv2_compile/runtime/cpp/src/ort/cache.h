// The KV cache of one session on the CPU.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <vector>

namespace dsv2 {

// Rows of several slots grow to a multiple of this, with an eighth to spare.
inline constexpr int64_t kGranule = 256;

// Per layer one array [slots, capacity, width]; consecutive slots are bound without a copy.
//
// The programs read [n, context, width] contiguously. One slot can be bound at exactly its past length, so a cache of
// one slot reserves ``max_tokens`` at once: untouched pages cost nothing. Several slots can only be bound at the full
// capacity, and attention works through all of it; so there the capacity grows with the longest sequence. Rows at or
// after a sequence's length are masked by the program and need no clearing, but must be finite (0 * NaN is NaN): memory
// starts at zero. Error resource if it cannot be had; the contents are then unchanged.
class Cache {
 public:
  Cache(int64_t layers, int64_t slots, int64_t max_tokens, int64_t width);

  // Forgets everything and gives the memory back.
  void clear();
  // Positions that a call over past.size() consecutive slots binds.
  int64_t context(const std::vector<int64_t>& past) const;
  // Per layer the cached rows [n, context, width] of slots first .. first + n - 1.
  std::vector<const float*> views(int64_t first) const;
  // Appends the first lengths[b] of rows to slot first + b at position past[b]. Rows [count, width] of layer l and
  // sequence b lie at rows + l * layer_stride + b * row_stride.
  void store(int64_t first, const std::vector<int64_t>& past, const std::vector<int64_t>& lengths, const float* rows,
             int64_t layer_stride, int64_t row_stride);

  int64_t capacity() const { return capacity_; }

 private:
  struct Free {
    void operator()(float* memory) const { std::free(memory); }
  };
  using Array = std::unique_ptr<float[], Free>;

  void reserve(int64_t capacity);

  const int64_t layers_, slots_, max_tokens_, width_;
  int64_t capacity_ = 0;
  std::vector<Array> arrays_;
};

}  // namespace dsv2
