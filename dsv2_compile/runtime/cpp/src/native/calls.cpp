#include "native/calls.h"

#include <algorithm>

#include "base/error.h"
#include "native/launches.h"

namespace dsv2 {

Call prepare(const PlanProgram& program, const Sizes& asked, bool may_replay) {
  Sizes limits = program.limits(asked.slots);
  for (Symbol s : {Symbol::rows, Symbol::batch, Symbol::context}) {
    if (asked[s] >= 1 && asked[s] <= limits[s]) continue;
    throw Error(DSV2_INTERNAL,
                std::to_string(asked[s]) + " " + kSymbols[static_cast<size_t>(s)] + " are not within the limit " +
                    std::to_string(limits[s]) + " of " + program.name + ".",
                "Report this as a bug, with the manifest.");
  }
  Call call{asked, asked, may_replay && asked.rows == asked.batch, {}, {}};
  if (call.replayed) {
    int64_t size = bucket(asked.rows, std::min(limits.rows, limits.batch));
    call.sizes = {size, size, limits.context, asked.slots};
  }
  call.inputs = area(program, Place::input, call.sizes);
  call.outputs = area(program, Place::output, call.sizes);
  return call;
}

}  // namespace dsv2
