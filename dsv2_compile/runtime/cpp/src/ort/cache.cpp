#include "ort/cache.h"

#include <algorithm>
#include <cstdio>
#include <string>

#include "base/error.h"

namespace dsv2 {

Cache::Cache(int64_t layers, int64_t slots, int64_t max_tokens, int64_t width)
    : layers_(layers), slots_(slots), max_tokens_(max_tokens), width_(width) {
  clear();
}

void Cache::clear() {
  capacity_ = 0;
  arrays_.clear();
  reserve(slots_ == 1 ? max_tokens_ : 0);
}

int64_t Cache::context(const std::vector<int64_t>& past) const {
  int64_t longest = *std::max_element(past.begin(), past.end());
  return past.size() == 1 || longest == 0 ? longest : capacity_;
}

std::vector<const float*> Cache::views(int64_t first) const {
  std::vector<const float*> out;
  for (const Array& array : arrays_) out.push_back(array.get() + first * capacity_ * width_);
  return out;
}

void Cache::store(int64_t first, const std::vector<int64_t>& past, const std::vector<int64_t>& lengths,
                  const float* rows, int64_t layer_stride, int64_t row_stride) {
  int64_t need = 0;
  for (size_t b = 0; b < past.size(); ++b) need = std::max(need, past[b] + lengths[b]);
  if (need > capacity_) {
    int64_t spare = need + need / 8;
    reserve(std::min((spare + kGranule - 1) / kGranule * kGranule, max_tokens_));
  }
  for (int64_t layer = 0; layer < layers_; ++layer) {
    float* array = arrays_[static_cast<size_t>(layer)].get();
    for (size_t b = 0; b < past.size(); ++b) {
      int64_t slot = first + static_cast<int64_t>(b);
      std::copy_n(rows + layer * layer_stride + static_cast<int64_t>(b) * row_stride, lengths[b] * width_,
                  array + (slot * capacity_ + past[b]) * width_);
    }
  }
}

void Cache::reserve(int64_t capacity) {
  std::vector<Array> grown;
  for (int64_t layer = 0; layer < layers_; ++layer) {
    // calloc, not a vector: zero pages that nothing has touched take no memory
    size_t positions = static_cast<size_t>(std::max<int64_t>(slots_ * capacity, 1));
    grown.emplace_back(static_cast<float*>(std::calloc(positions, static_cast<size_t>(width_) * sizeof(float))));
    if (!grown.back()) {
      double gigabytes = static_cast<double>(layers_) * static_cast<double>(slots_) * static_cast<double>(capacity) *
                         static_cast<double>(width_) * 4 / 1e9;
      char text[160];
      std::snprintf(text, sizeof text, "No memory for a KV cache of %lld x %lld tokens (%.2f GB).",
                    static_cast<long long>(slots_), static_cast<long long>(capacity), gigabytes);
      throw Error(DSV2_RESOURCE, text, "Open the session with a smaller max_batch or max_tokens.");
    }
  }
  for (size_t layer = 0; layer < arrays_.size(); ++layer) {  // pages are touched and freed layer by layer
    for (int64_t slot = 0; slot < slots_; ++slot) {
      std::copy_n(arrays_[layer].get() + slot * capacity_ * width_, capacity_ * width_,
                  grown[layer].get() + slot * capacity * width_);
    }
    arrays_[layer].reset();
  }
  arrays_ = std::move(grown);
  capacity_ = capacity;
}

}  // namespace dsv2
