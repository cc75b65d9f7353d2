// One call of a program: what is asked for, what is run for it, and where that lies in the blocks of GPU memory.
#pragma once

#include <cstdint>
#include <string>

#include "native/memory.h"
#include "plan/plan.h"

namespace dsv2 {

// ``asked``: the caller's sizes; ``sizes``: those that are run. ``replayed``: a decode step that is padded to a bucket,
// so that a graph made for it serves others.
struct Call {
  Sizes asked, sizes;
  bool replayed;
  Area inputs, outputs;
};

// Error internal for sizes beyond the program's limits. ``may_replay``: the program is `replayable`.
Call prepare(const PlanProgram& program, const Sizes& asked, bool may_replay);

}  // namespace dsv2
