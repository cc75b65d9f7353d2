#include "plan/check.h"

#include <algorithm>
#include <functional>
#include <tuple>

namespace dsv2 {
namespace {

using Problems = std::vector<std::string>;
using Report = std::function<void(const std::string&)>;

constexpr int64_t kMaxScalar = 2147483647;

// What a plan is evaluated for: everything at its largest, and everything 1.
using Corners = std::array<Sizes, 2>;

bool within(const Expr& size, const Corners& corners, int64_t low, int64_t high) {
  return std::all_of(corners.begin(), corners.end(), [&](const Sizes& sizes) {
    int64_t value = size.evaluate(sizes);
    return low <= value && value <= high;
  });
}

void check_kernel(const Kernel& kernel, const Report& report) {
  if (kernel.aligned.size() != kernel.args.size()) report("alignment is not given for every argument");
  if (kernel.warps < 1 || kernel.warps > 32 || kernel.shared < 0 || kernel.scratch < 0 || kernel.scratch_align < 1) {
    report("warps, shared memory or scratch are out of range");
  }
}

bool has_outputs(const PlanProgram& program) {
  int logits = 0, tokens = 0, count = 0;
  for (const Buffer& b : program.buffers) {
    if (b.place != Place::output) continue;
    ++count;
    bool of_batch = !b.shape.empty() && b.shape[0].is(Symbol::batch);
    logits += of_batch && b.name == "logits" && b.dtype == Dtype::fp32 && b.shape.size() == 2;
    tokens += of_batch && b.name == "next_tokens" && b.dtype == Dtype::i32 && b.shape.size() == 1;
  }
  return count == 2 && logits == 1 && tokens == 1;
}

void check_buffer(const Buffer& buffer, const PlanProgram& program, const Corners& corners, const Report& report) {
  for (const Expr& dim : buffer.shape) {
    if (within(dim, corners, 0, INT64_MAX)) continue;
    report("negative size");
    return;
  }
  if (buffer.place != Place::arena) return;
  if (buffer.offset % kAlignment || buffer.offset < 0) {
    report("offset " + std::to_string(buffer.offset) + " is no multiple of " + std::to_string(kAlignment));
  }
  if (buffer.offset + buffer.nbytes(corners[0]) > program.arena_bytes) {
    report("ends beyond the arena of " + std::to_string(program.arena_bytes) + " bytes");
  }
}

void check_pointer(const ArgumentType& type, const Argument& arg, const PlanProgram& program, const Corners& corners,
                   const Report& report) {
  const Buffer& buffer = program.buffers[arg.buffer];
  if (!type.pointer || type.dtype != buffer.dtype) {
    report(buffer.name + " holds " + kDtypes[static_cast<size_t>(buffer.dtype)] + ", the kernel takes another type");
    return;
  }
  for (const Sizes& sizes : corners) {
    int64_t at = arg.value.evaluate(sizes);
    if (at < 0 || at > buffer.nbytes(sizes) || at % item_bytes(buffer.dtype)) {
      report("offset " + arg.value.text() + " of " + buffer.name + " lies outside it or inside an element");
      return;
    }
  }
}

void check_argument(const ArgumentType& type, const Argument& arg, const PlanProgram& program, const Corners& corners,
                    const Report& report) {
  if (arg.kind == Argument::Kind::pointer) {
    check_pointer(type, arg, program, corners, report);
  } else if (arg.kind == Argument::Kind::null) {
    if (!type.pointer) report("an i32 has no value");
  } else if (type.pointer || !within(arg.value, corners, -kMaxScalar - 1, kMaxScalar)) {
    report(arg.value.text() + (type.pointer ? " for a pointer" : " for an i32"));
  }
}

void check_launch(const Plan& plan, const PlanProgram& program, const Launch& launch, const Corners& corners,
                  const Report& report) {
  if (launch.kernel < 0 || launch.kernel >= static_cast<int64_t>(plan.kernels.size())) {
    report("there is no kernel " + std::to_string(launch.kernel));
    return;
  }
  const Kernel& kernel = plan.kernels[static_cast<size_t>(launch.kernel)];
  if (launch.args.size() != kernel.args.size()) {
    report(std::to_string(launch.args.size()) + " arguments, " + kernel.name + " takes " +
           std::to_string(kernel.args.size()));
    return;
  }
  for (size_t axis = 0; axis < kMaxGrid.size(); ++axis) {
    if (within(launch.grid[axis], corners, 0, kMaxGrid[axis])) continue;
    report("grid axis " + std::to_string(axis) + " is " + launch.grid[axis].text());
  }
  for (size_t i = 0; i < launch.args.size(); ++i) {
    check_argument(kernel.args[i], launch.args[i], program, corners,
                   [&](const std::string& p) { report("argument " + std::to_string(i) + ": " + p); });
  }
}

// A buffer of the arena: its bytes, and the first and last launch that it holds something at.
struct Span {
  int64_t start;
  Wide end;
  size_t first, last;
  const Buffer* buffer;
};

std::vector<Span> spans(const PlanProgram& program, const Sizes& sizes) {
  std::vector<Span> all;
  for (const Buffer& b : program.buffers) {
    bool arena = b.place == Place::arena;
    all.push_back({b.offset, arena ? b.offset + b.nbytes(sizes) : 0, SIZE_MAX, 0, arena ? &b : nullptr});
  }
  for (size_t at = 0; at < program.launches.size(); ++at) {
    for (const Argument& arg : program.launches[at].args) {
      if (arg.kind != Argument::Kind::pointer) continue;
      Span& span = all[arg.buffer];
      span.first = std::min(span.first, at);
      span.last = at;
    }
  }
  all.erase(std::remove_if(all.begin(), all.end(), [](const Span& s) { return !s.buffer || s.first == SIZE_MAX; }),
            all.end());
  std::sort(all.begin(), all.end(), [](const Span& a, const Span& b) {
    return std::tie(a.start, a.end, a.first, a.last) < std::tie(b.start, b.end, b.first, b.last);
  });
  return all;
}

// Two buffers of the arena that hold something at the same launch and share a byte.
void check_overlaps(const PlanProgram& program, const Sizes& sizes, const Report& report) {
  std::vector<Span> all = spans(program, sizes);
  for (size_t i = 0; i < all.size(); ++i) {
    for (size_t j = i + 1; j < all.size() && all[j].start < all[i].end; ++j) {
      if (all[i].first <= all[j].last && all[j].first <= all[i].last) {
        report("buffers " + all[i].buffer->name + " and " + all[j].buffer->name + " overlap while both are in use");
      }
    }
  }
}

void check_program(const Plan& plan, const PlanProgram& program, const Report& report) {
  if (std::min({program.rows, program.batch, program.context}) < 1) {
    report("limits must name rows, batch and context, each at least 1");
    return;
  }
  Corners corners = {program.limits(plan.page), Sizes{1, 1, 1, plan.page}};
  if (!has_outputs(program)) {
    report("the outputs are not logits fp32 [batch, vocabulary] and next_tokens i32 [batch]");
  }
  bool sound = true;
  for (const Buffer& b : program.buffers) {
    check_buffer(b, program, corners, [&](const std::string& p) {
      report("buffer " + b.name + ": " + p);
      sound = false;
    });
  }
  if (!sound) return;
  for (size_t i = 0; i < program.launches.size(); ++i) {
    check_launch(plan, program, program.launches[i], corners, [&](const std::string& p) {
      report("launches[" + std::to_string(i) + "] " + program.launches[i].what + ": " + p);
    });
  }
  check_overlaps(program, corners[0], report);
}

}  // namespace

std::vector<std::string> plan_problems(const Plan& plan) {
  Problems found;
  for (size_t i = 0; i < plan.kernels.size(); ++i) {
    check_kernel(plan.kernels[i], [&](const std::string& p) {
      found.push_back("kernels[" + std::to_string(i) + "] " + plan.kernels[i].name + ": " + p);
    });
  }
  if (plan.page < 1 || plan.pages < 1) found.emplace_back("a page or a page table holds nothing");
  for (const PlanProgram& program : plan.programs) {
    check_program(plan, program,
                  [&](const std::string& p) { found.push_back("programs." + program.name + ": " + p); });
  }
  return found;
}

}  // namespace dsv2
