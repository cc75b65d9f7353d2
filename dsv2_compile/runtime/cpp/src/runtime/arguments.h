// Checks of what callers pass to a session: every mistake is an Error usage before anything has changed.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine/manifest.h"
#include "runtime/store.h"

namespace dsv2 {

// The new tokens of a call as callers give them: tokens [rows, columns] padded on the right, lengths and slots [rows].
struct TokenRows {
  const int32_t* tokens;
  int64_t rows, columns;
  const int32_t* lengths;  // null: one token a row
  const int32_t* slots;    // null: 0..rows - 1
};

// Checked, but for what its slots hold.
Rows checked_rows(const TokenRows& given, int64_t vocab_size, int64_t max_batch);

void require_vocabulary(const int32_t* ids, int64_t count, int64_t vocab_size);

// Lengths [rows] of the rows of ``name``, each 1 to ``columns``.
std::vector<int64_t> row_lengths(const std::string& name, const int32_t* lengths, int64_t rows, int64_t columns);

// Slots of a call with ``rows`` sequences; null means 0..rows - 1.
std::vector<int64_t> slot_numbers(const int32_t* slots, int64_t rows, int64_t max_batch);

// ``cached`` [layers, rows, positions, cache_dim] is finite: a NaN in the cache spoils its whole sequence.
void require_cached_rows(const float* cached, int64_t rows, int64_t positions, const ModelConfig& config);

// Checked draws of ``rows`` sequences.
std::vector<Draw> checked_draws(const Draw* draws, int64_t rows);

}  // namespace dsv2
