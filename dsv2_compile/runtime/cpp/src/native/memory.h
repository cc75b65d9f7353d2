// How a native engine lies in the memory of a GPU, as far as that can be known without one.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "engine/manifest.h"
#include "plan/plan.h"

namespace dsv2 {

// The next multiple of kAlignment.
int64_t aligned(int64_t nbytes);

// Offset of every buffer of one place, one after the other, and the end of the last; -1 for buffers of other places.
struct Area {
  std::vector<int64_t> offsets;
  int64_t nbytes = 0;
};
Area area(const PlanProgram& program, Place place, const Sizes& sizes);

// The KV cache [layers, slots, width]; Error integrity unless its declaration is the same in all programs.
const Buffer& cache_buffer(const Plan& plan);

// A placement to copy to an offset of the block of weights.
struct WeightRead {
  Placement placement;
  int64_t offset;
};

// ``offsets``: of every weight of the plan from the start of one block. ``reads``: in the order in which they are
// stored; two names of one placement share their bytes.
struct WeightLayout {
  std::map<std::string, int64_t> offsets;
  std::vector<WeightRead> reads;
  int64_t nbytes = 0;
};

// Error integrity if the engine does not have the plan's weights, or has them in other types or sizes.
WeightLayout weight_layout(const Plan& plan, const std::map<std::string, Placement>& weights);

// Bytes of GPU memory by purpose.
struct Needs {
  int64_t weights, cache, arena, inputs, outputs, scratch;

  int64_t total() const { return weights + cache + arena + inputs + outputs + scratch; }
  std::string text() const;
};

// For a cache of ``slots`` rows. Error resource if it is more than any GPU could have.
Needs memory_needs(const Plan& plan, const WeightLayout& weights, int64_t slots);

// "12.34" of so many bytes.
std::string gigabytes(int64_t nbytes);

}  // namespace dsv2
