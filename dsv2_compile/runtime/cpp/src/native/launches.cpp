#include "native/launches.h"

#include <algorithm>

#include "base/error.h"

namespace dsv2 {
namespace {

[[noreturn]] void broken(const Launch& launch, const std::string& why) {
  throw Error(DSV2_INTERNAL, launch.what + ": " + why + ".", "Report this as a bug, with the manifest.");
}

std::string argument_of(size_t number, const Kernel& kernel, uint64_t value) {
  return "argument " + std::to_string(number) + " of " + kernel.name + " is " + std::to_string(value);
}

}  // namespace

bool resolve(const Plan& plan, const Launch& launch, const Sizes& sizes, const Addresses& addresses, Resolved* out) {
  const Kernel& kernel = plan.kernels[static_cast<size_t>(launch.kernel)];
  Wide blocks = 1;
  for (size_t axis = 0; axis < kMaxGrid.size(); ++axis) {
    int64_t size = launch.grid[axis].evaluate(sizes);
    if (size < 0 || size > kMaxGrid[axis]) broken(launch, "its grid is out of range");
    out->grid[axis] = static_cast<unsigned>(size);
    blocks *= size;
  }
  if (!blocks) return false;
  if (kernel.scratch && blocks > addresses.scratch_bytes / kernel.scratch) {
    broken(launch, kernel.name + " needs more scratch than the " + std::to_string(addresses.scratch_bytes) +
                       " bytes there are");
  }
  out->args.resize(launch.args.size() + 2);
  for (size_t i = 0; i < launch.args.size(); ++i) {
    const Argument& arg = launch.args[i];
    int64_t value = arg.kind == Argument::Kind::null ? 0 : arg.value.evaluate(sizes);
    uint64_t word = static_cast<uint64_t>(value);
    if (arg.kind == Argument::Kind::pointer) word += addresses.buffers[arg.buffer];
    if (!kernel.args[i].pointer && value != static_cast<int32_t>(value)) {
      broken(launch, argument_of(i, kernel, word) + ", no 32-bit integer");
    }
    if (kernel.aligned[i] && word % kClaim) {
      broken(launch, argument_of(i, kernel, word) + ", no multiple of " + std::to_string(kClaim));
    }
    out->args[i] = word;
  }
  out->args[launch.args.size()] = kernel.scratch ? addresses.scratch : 0;
  out->args[launch.args.size() + 1] = 0;
  return true;
}

std::vector<int64_t> parameter_bytes(const Kernel& kernel) {
  std::vector<int64_t> out;
  for (const ArgumentType& type : kernel.args) out.push_back(type.bytes());
  out.insert(out.end(), 2, 8);
  return out;
}

Wide scratch_bytes(const Plan& plan, int64_t slots) {
  Wide most = 0;
  for (const PlanProgram& program : plan.programs) {
    Sizes sizes = program.limits(slots);
    for (const Launch& launch : program.launches) {
      int64_t scratch = plan.kernels[static_cast<size_t>(launch.kernel)].scratch;
      if (!scratch) continue;
      Wide blocks = 1;
      for (const Expr& g : launch.grid) blocks *= g.evaluate(sizes);
      // a grid within its limits has less than 2**63 blocks; what no GPU holds need not be exact
      most = std::max(most, std::min(blocks, Wide{1} << 60) * std::min<int64_t>(scratch, int64_t{1} << 60));
    }
  }
  return most;
}

int64_t bucket(int64_t rows, int64_t limit) {
  int64_t size = 1;
  while (size < rows) size *= 2;
  return std::min(size, limit);
}

bool replayable(const PlanProgram& program) {
  if (program.phase != Phase::decode) return false;
  auto grows = [](const Expr& number) { return number.uses(Symbol::context); };
  return std::none_of(program.launches.begin(), program.launches.end(), [&](const Launch& launch) {
    return std::any_of(launch.grid.begin(), launch.grid.end(), grows) ||
           std::any_of(launch.args.begin(), launch.args.end(), [&](const Argument& arg) { return grows(arg.value); });
  });
}

}  // namespace dsv2
