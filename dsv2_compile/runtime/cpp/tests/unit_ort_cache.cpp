// The CPU's KV cache: what a call binds, growth, memory that cannot be had; and the widths of chunks.
#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "base/error.h"
#include "check.h"
#include "ort/contiguous.h"

using namespace dsv2;

// Let calloc give NULL for what is too large, as it does without a sanitizer.
extern "C" const char* __asan_default_options() { return "allocator_may_return_null=1"; }
extern "C" const char* __tsan_default_options() { return "allocator_may_return_null=1"; }

namespace {

constexpr int64_t kLayers = 2, kWidth = 3;

// rows [layers, n, columns, width], each value its own: layer, row, position, column.
std::vector<float> numbered(int64_t n, int64_t columns) {
  std::vector<float> out(static_cast<size_t>(kLayers * n * columns * kWidth));
  for (size_t i = 0; i < out.size(); ++i) out[i] = static_cast<float>(i + 1);
  return out;
}

void store(Cache& cache, int64_t first, const std::vector<int64_t>& past, const std::vector<int64_t>& lengths,
           const std::vector<float>& rows, int64_t columns) {
  int64_t row = columns * kWidth;
  cache.store(first, past, lengths, rows.data(), static_cast<int64_t>(past.size()) * row, row);
}

void one_slot_reserves_all_and_binds_its_past() {
  Cache cache(kLayers, 1, 1 << 28, kWidth);  // 3 GB a layer, untouched
  CHECK(cache.capacity() == 1 << 28);
  const float* before = cache.views(0)[1];
  std::vector<float> rows = numbered(1, 4);
  store(cache, 0, {0}, {3}, rows, 4);
  CHECK(cache.views(0)[1] == before);
  CHECK(std::equal(before, before + 9, rows.data() + 12));  // layer 1: its first three of four positions
  CHECK(before[9] == 0);
  CHECK(cache.context({3}) == 3);
}

void several_slots_grow_with_the_longest_and_keep_their_rows() {
  Cache cache(kLayers, 3, 700, kWidth);
  CHECK(cache.capacity() == 0);
  CHECK(cache.context({0, 0}) == 0);
  std::vector<float> rows = numbered(2, 2);
  store(cache, 1, {0, 0}, {1, 2}, rows, 2);
  CHECK(cache.capacity() == 256);
  CHECK(cache.context({1, 2}) == 256);
  CHECK(cache.context({2}) == 2);
  CHECK(cache.views(1)[0] == cache.views(0)[0] + 256 * kWidth);
  std::vector<float> more = numbered(1, 226);
  store(cache, 2, {2}, {226}, more, 226);
  CHECK(cache.capacity() == 256);  // 228 fit
  more = numbered(1, 255);
  store(cache, 2, {2}, {255}, more, 255);  // 257, with an eighth to spare 289
  CHECK(cache.capacity() == 512);
  for (int64_t layer = 0; layer < kLayers; ++layer) {
    const float* array = cache.views(0)[static_cast<size_t>(layer)];
    const float* old = rows.data() + layer * 2 * 2 * kWidth;
    CHECK(std::all_of(array, array + 512 * kWidth, [](float x) { return x == 0; }));
    const float* second = array + 512 * kWidth;
    CHECK(std::equal(second, second + kWidth, old));
    CHECK(std::all_of(second + kWidth, second + 512 * kWidth, [](float x) { return x == 0; }));
    const float* third = array + 2 * 512 * kWidth;
    CHECK(std::equal(third, third + 2 * kWidth, old + 2 * kWidth));
    CHECK(std::equal(third + 2 * kWidth, third + 257 * kWidth, more.data() + layer * 255 * kWidth));
  }
  store(cache, 0, {0}, {690}, numbered(1, 690), 690);
  CHECK(cache.capacity() == 700);  // never more than max_tokens
  cache.clear();
  CHECK(cache.capacity() == 0);
}

void growth_leaves_an_eighth_to_spare() {
  for (const auto& [need, capacity] : {std::pair<int64_t, int64_t>{228, 256}, {229, 512}}) {
    Cache cache(kLayers, 2, 1000, kWidth);
    store(cache, 1, {0}, {need}, numbered(1, need), need);
    CHECK(cache.capacity() == capacity);
  }
}

void memory_that_cannot_be_had_changes_nothing() {
  constexpr int64_t kHuge = int64_t{1} << 58;  // positions x width x 4 is more than there are addresses
  Cache cache(1, 2, kHuge, 1 << 8);
  std::vector<float> rows(2 << 8, 7);
  cache.store(0, {0, 0}, {1, 1}, rows.data(), 2 << 8, 1 << 8);
  const float* before = cache.views(0)[0];
  dsv2_code code = DSV2_OK;
  try {
    cache.store(0, {kHuge / 2, 0}, {1, 1}, rows.data(), 2 << 8, 1 << 8);
  } catch (const Error& e) {
    code = e.code;
  }
  CHECK(code == DSV2_RESOURCE);
  CHECK(cache.capacity() == 256);
  CHECK(cache.views(0)[0] == before);
  CHECK(std::count(before, before + 2 * (256 << 8), 7.f) == 2 << 8);
}

void chunks_fit_their_limits() {
  CHECK(chunk_width({0}, {3}, 0, 16, 2048) == 3);         // no more than is left
  CHECK(chunk_width({0, 4}, {9, 900}, 0, 16, 2048) == 512);
  CHECK(chunk_width({40, 90}, {9, 50}, 90, 16, 100) == 10);  // the row at 90 has no rotary rows past 99
  CHECK(chunk_width({99}, {1}, 99, 16, 100) == 1);
  // 8 rows of 128 heads: 4096 w (w + context) bytes are at most 256 MiB, so w (w + context) <= 65536
  const std::vector<int64_t> past(8, 0), left(8, 1000);
  CHECK(chunk_width(past, left, 0, 128, 4096) == 256);
  CHECK(chunk_width(past, left, 1024, 128, 4096) == 60);  // 60 * 1084 = 65040, 61 * 1085 = 66185
  CHECK(chunk_width(past, left, 1 << 20, 128, 4096) == 1);  // one token always goes
}

}  // namespace

int main() {
  one_slot_reserves_all_and_binds_its_past();
  several_slots_grow_with_the_longest_and_keep_their_rows();
  growth_leaves_an_eighth_to_spare();
  memory_that_cannot_be_had_changes_nothing();
  chunks_fit_their_limits();
  return checks_result();
}
