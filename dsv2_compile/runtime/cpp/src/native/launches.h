// The launches of a program with every number known: what an executor hands to the driver.
#pragma once

#include <cstdint>
#include <vector>

#include "native/cuda_api.h"
#include "plan/plan.h"

namespace dsv2 {

inline constexpr int64_t kWarp = 32;   // threads
inline constexpr int64_t kClaim = 16;  // what an aligned argument is a multiple of

// Where a launch finds its arguments: the address of every buffer of the program, and the area for kernels that need
// scratch.
struct Addresses {
  std::vector<CuAddress> buffers;
  CuAddress scratch;
  int64_t scratch_bytes;
};

// ``args``: a word for each of the kernel's own, then the addresses of its two scratch areas, of which the second, for
// profiling, is never used. A scalar is in the low half of its word.
struct Resolved {
  unsigned grid[3];
  std::vector<uint64_t> args;
};

// Fills ``out`` for a launch; false if it has no block. Error internal where the plan's claim of an alignment does not
// hold, the scratch area is too small, or a number is out of its range.
bool resolve(const Plan& plan, const Launch& launch, const Sizes& sizes, const Addresses& addresses, Resolved* out);

// Bytes of every parameter of the compiled kernel.
std::vector<int64_t> parameter_bytes(const Kernel& kernel);

// Scratch of the launch that takes most. Launches run one after the other, so all use the same area. Throws Overflow.
Wide scratch_bytes(const Plan& plan, int64_t slots);

// Rows that a decode step of ``rows`` is padded to: the next power of two, or all that the program takes.
int64_t bucket(int64_t rows, int64_t limit);

// Whether the launches of a step are the same whatever the sequences' lengths: one token each, and no number that
// follows from the visible positions.
bool replayable(const PlanProgram& program);

}  // namespace dsv2
