// The native plan: kernels, buffers and launches of a GPU engine, as the executor reads it.
//
// A program is a list of launches over numbered buffers. Grids, sizes and offsets are expressions over the program's
// symbols; what a symbol may be at most is in its limits, and the arena is laid out for that.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "plan/expr.h"
#include "runtime/store.h"

namespace dsv2 {

inline constexpr const char* kPlanSchema = "dsv2/plan/2";
inline constexpr const char* kPlanName = "plan.json";
inline constexpr int64_t kAlignment = 256;  // of every buffer, bytes
inline constexpr std::array<int64_t, 3> kMaxGrid = {2147483647, 65535, 65535};  // blocks by axis

enum class Dtype { fp32, bf16, fp16, i32 };
inline constexpr std::array<const char*, 4> kDtypes = {"fp32", "bf16", "fp16", "i32"};
inline constexpr std::array<const char*, 4> kDtypeNames = {"float32", "bfloat16", "float16", "int32"};  // of a manifest

inline int64_t item_bytes(Dtype dtype) { return dtype == Dtype::bf16 || dtype == Dtype::fp16 ? 2 : 4; }

enum class Place { input, output, weight, cache, arena };
inline constexpr std::array<const char*, 5> kPlaces = {"input", "output", "weight", "cache", "arena"};

// Of a kernel's argument: a pointer to elements, or one i32.
struct ArgumentType {
  bool pointer;
  Dtype dtype;

  int64_t bytes() const { return pointer ? 8 : 4; }
};

// A compiled kernel. ``aligned``: which arguments must be multiples of 16. ``scratch``: bytes per block.
struct Kernel {
  std::string name, cubin, symbol;
  std::vector<ArgumentType> args;
  std::vector<bool> aligned;
  int64_t warps, shared, scratch, scratch_align;
};

// A null pointer, or ``value`` bytes into buffer number ``buffer``, or a scalar.
struct Argument {
  enum class Kind { null, pointer, scalar } kind;
  size_t buffer;
  Expr value;
};

// ``kernel`` counts the plan's kernels; ``what`` says what is computed, for people.
struct Launch {
  int64_t kernel;
  std::array<Expr, 3> grid;
  std::vector<Argument> args;
  std::string what;
};

// ``offset``: bytes from the start of the arena, 0 elsewhere.
struct Buffer {
  std::string name;
  Dtype dtype;
  Place place;
  int64_t offset;
  std::vector<Expr> shape;

  // Exact up to 2**96, that at most. Throws Overflow; no dim is negative.
  Wide nbytes(const Sizes& sizes) const;
};

// Outputs: logits fp32 [batch, vocabulary] and next_tokens i32 [batch].
struct PlanProgram {
  std::string name;
  Phase phase;
  int64_t rows, batch, context;  // the largest value of each symbol but slots
  std::vector<Buffer> buffers;
  std::vector<Launch> launches;
  int64_t arena_bytes;

  Sizes limits(int64_t slots) const { return {rows, batch, context, slots}; }
};

// ``capability``: the architecture that the cubins are for (sm_90). ``page``: positions of a cache page; ``pages``:
// most pages of a sequence, the width of a page table. Of the programs, the smallest of a phase is first.
struct Plan {
  std::string target, capability, dtype;
  int64_t page, pages;
  std::vector<Kernel> kernels;
  std::vector<PlanProgram> programs;

  // Number of the program that serves a call; where prefill cannot expand the context, extend does. None: none does.
  std::optional<size_t> program_for(Phase phase, int64_t rows, int64_t batch, int64_t context) const;
};

}  // namespace dsv2
