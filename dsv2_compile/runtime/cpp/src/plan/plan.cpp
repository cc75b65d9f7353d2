#include "plan/plan.h"

#include <algorithm>

namespace dsv2 {
namespace {

constexpr Wide kMost = Wide{1} << 96;

// The first program of ``phase`` whose limits hold the sizes.
std::optional<size_t> smallest(const Plan& plan, Phase phase, int64_t rows, int64_t batch, int64_t context) {
  for (size_t i = 0; i < plan.programs.size(); ++i) {
    const PlanProgram& p = plan.programs[i];
    if (p.phase == phase && p.rows >= rows && p.batch >= batch && p.context >= context) return i;
  }
  return std::nullopt;
}

}  // namespace

Wide Buffer::nbytes(const Sizes& sizes) const {
  Wide total = item_bytes(dtype);
  bool empty = false;
  for (const Expr& dim : shape) {
    int64_t size = dim.evaluate(sizes);
    empty |= size == 0;
    total = size > 0 && total > kMost / size ? kMost : total * size;
  }
  return empty ? 0 : total;
}

std::optional<size_t> Plan::program_for(Phase phase, int64_t rows, int64_t batch, int64_t context) const {
  if (phase == Phase::decode) return smallest(*this, phase, rows, batch, 0);
  std::optional<size_t> found = smallest(*this, Phase::prefill, rows, batch, context);
  return found ? found : smallest(*this, Phase::extend, rows, batch, 0);
}

}  // namespace dsv2
