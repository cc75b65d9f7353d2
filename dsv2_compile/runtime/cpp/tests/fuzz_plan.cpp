// Any bytes as plan.json.
#include <cstdlib>
#include <string_view>

#include "base/error.h"
#include "plan/text.h"

using namespace dsv2;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    Plan plan = parse_plan({reinterpret_cast<const char*>(data), size});
    for (const PlanProgram& program : plan.programs) {
      for (const Launch& launch : program.launches) {
        if (launch.kernel < 0 || launch.kernel >= static_cast<int64_t>(plan.kernels.size())) std::abort();
        for (const Argument& argument : launch.args) {
          if (argument.kind == Argument::Kind::pointer && argument.buffer >= program.buffers.size()) std::abort();
        }
      }
    }
  } catch (const Error& e) {
    if (e.code != DSV2_INTEGRITY && e.code != DSV2_INCOMPATIBLE) std::abort();
  }
  return 0;
}
