// The model of tests/vectors/batch: logits from a hash of the whole sequence.
#pragma once

#include <cstdint>
#include <vector>

inline std::vector<float> fake_logits(const std::vector<int32_t>& sequence, int64_t vocab) {
  int64_t hash = 7;
  for (int32_t token : sequence) hash = (hash * 31 + token + 1) % 1000003;
  std::vector<float> logits;
  for (int64_t v = 0; v < vocab; ++v) logits.push_back(static_cast<float>((hash + 17 * v * v + 3 * v) % 97) / 8);
  return logits;
}
