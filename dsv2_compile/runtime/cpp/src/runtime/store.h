// Where the cached rows of a session lie, and what adds to them. Its callers have checked all arguments.
#pragma once

#include <cstdint>
#include <vector>

namespace dsv2 {

enum class Phase { prefill, extend, decode };

inline const char* name(Phase phase) {
  return phase == Phase::prefill ? "prefill" : phase == Phase::extend ? "extend" : "decode";
}

// temperature 0 is greedy; top_k 0 and top_p 1 keep all tokens; both given, top_k cuts first.
struct Sampling {
  double temperature = 0;
  int64_t top_k = 0;
  double top_p = 1;
  uint64_t seed = 0;
};

// How the next token of one sequence is chosen; ``uniform`` in [0, 1).
struct Draw {
  Sampling sampling;
  double uniform = 0;
};

// The new tokens of a call: row b has ids[b * columns] .. + counts[b] for slot slots[b], after past[b] positions.
struct Rows {
  const int32_t* ids;
  int64_t columns;
  std::vector<int64_t> counts, slots, past;

  int64_t count() const { return static_cast<int64_t>(counts.size()); }
};

class Store {
 public:
  virtual ~Store() = default;
  // Adds the tokens -> logits [rows, vocab] of the last of each row. A call that fails leaves the sequences as they
  // were.
  virtual void append(Phase phase, const Rows& rows, float* logits) = 0;
  // As append -> the next token of each row.
  virtual void choose(Phase phase, const Rows& rows, const std::vector<Draw>& draws, int32_t* tokens) = 0;
  // Begins the sequence in ``slot`` with cache rows: of layer l, positions 0.. count - 1 at cached + l * stride.
  virtual void put(int64_t slot, const float* cached, int64_t count, int64_t stride) = 0;
  // Nothing of ``slots`` is needed any more; ``empty``: nor of any other.
  virtual void release(const std::vector<int64_t>& slots, bool empty) = 0;
};

}  // namespace dsv2
