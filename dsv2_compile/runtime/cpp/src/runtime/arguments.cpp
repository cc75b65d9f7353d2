#include "runtime/arguments.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "base/error.h"
#include "runtime/sampling.h"

namespace dsv2 {
namespace {

std::string str(int64_t value) { return std::to_string(value); }

[[noreturn]] void refuse(const std::string& cause, const std::string& remedy) {
  throw Error(DSV2_USAGE, cause, remedy);
}

void require_size(const std::string& name, int64_t rows, int64_t columns) {
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();  // so that a product of two fits
  if (rows < 1 || columns < 1) {
    refuse(name + " is empty.", "Pass at least one sequence, and at least one token in each.");
  }
  if (rows > kMost || columns > kMost) {
    refuse(name + " is [" + str(rows) + ", " + str(columns) + "].", "Pass fewer sequences, or shorten the input.");
  }
}

}  // namespace

Rows checked_rows(const TokenRows& given, int64_t vocab_size, int64_t max_batch) {
  require_size("tokens", given.rows, given.columns);
  Rows rows{given.tokens, given.columns, {}, {}, {}};
  // before anything the size of the call is set aside: more rows than slots are refused
  rows.slots = slot_numbers(given.slots, given.rows, max_batch);
  rows.counts = given.lengths ? row_lengths("tokens", given.lengths, given.rows, given.columns)
                              : std::vector<int64_t>(rows.slots.size(), 1);
  for (size_t b = 0; b < rows.counts.size(); ++b) {
    require_vocabulary(given.tokens + static_cast<int64_t>(b) * given.columns, rows.counts[b], vocab_size);
  }
  return rows;
}

void require_vocabulary(const int32_t* ids, int64_t count, int64_t vocab_size) {
  const int32_t* bad = std::find_if(ids, ids + count, [&](int32_t id) { return id < 0 || id >= vocab_size; });
  if (bad != ids + count) {
    refuse("Token " + str(*bad) + " is outside the vocabulary of " + str(vocab_size) + ".",
           "Use the tokenizer that belongs to this model.");
  }
}

std::vector<int64_t> row_lengths(const std::string& name, const int32_t* lengths, int64_t rows, int64_t columns) {
  const int32_t* shortest = std::min_element(lengths, lengths + rows);
  const int32_t* longest = std::max_element(lengths, lengths + rows);
  if (*shortest < 1) refuse("Row " + str(shortest - lengths) + " has no tokens.", "A prompt needs at least one token.");
  if (*longest > columns) {
    refuse("lengths[" + str(longest - lengths) + "] is " + str(*longest) + ", " + name + " has " + str(columns) +
               " columns.",
           "lengths counts the valid tokens of each row.");
  }
  return {lengths, lengths + rows};
}

std::vector<int64_t> slot_numbers(const int32_t* slots, int64_t rows, int64_t max_batch) {
  if (!slots && rows > max_batch) {
    refuse("Slot " + str(rows - 1) + " is outside 0.." + str(max_batch - 1) + ".",
           "The session was opened with max_batch=" + str(max_batch) + ".");
  }
  if (!slots) {
    std::vector<int64_t> all(static_cast<size_t>(rows));
    std::iota(all.begin(), all.end(), int64_t{0});
    return all;
  }
  std::vector<bool> given(static_cast<size_t>(max_batch));
  const int32_t* outside = std::find_if(slots, slots + rows, [&](int32_t s) { return s < 0 || s >= max_batch; });
  if (outside != slots + rows) {
    refuse("Slot " + str(*outside) + " is outside 0.." + str(max_batch - 1) + ".",
           "The session was opened with max_batch=" + str(max_batch) + ".");
  }
  for (int64_t b = 0; b < rows; ++b) {
    auto slot = static_cast<size_t>(slots[b]);
    if (given[slot]) refuse("A slot is given twice.", "Each sequence of a call needs its own slot.");
    given[slot] = true;
  }
  return {slots, slots + rows};
}

void require_cached_rows(const float* cached, int64_t rows, int64_t positions, const ModelConfig& config) {
  require_size("cached", rows, positions);
  const int64_t layers = config.num_hidden_layers, width = config.cache_dim();
  int64_t count;
  bool finite = !__builtin_mul_overflow(layers * width, rows * positions, &count);
  if (finite) finite = std::all_of(cached, cached + count, [](float value) { return std::isfinite(value); });
  if (!finite) {
    const std::string first = "[" + str(layers) + ", ", last = ", " + str(width) + "]";
    refuse("Cached rows are " + first + str(rows) + ", " + str(positions) + last + " or not finite, expected " + first +
               "batch, positions" + last + ".",
           "Pass for every layer the rows of each sequence: the normalised latent, then the rotated key.");
  }
}

std::vector<Draw> checked_draws(const Draw* draws, int64_t rows) {
  std::vector<Draw> checked(draws, draws + rows);
  for (const Draw& draw : checked) require_valid(draw);
  return checked;
}

}  // namespace dsv2
