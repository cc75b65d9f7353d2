// The inputs of one call of a native program, from its sequences.
#pragma once

#include <cstdint>
#include <vector>

#include "plan/plan.h"
#include "runtime/store.h"

namespace dsv2 {

// What the programs take of a draw.
struct Choice {
  explicit Choice(const Draw& draw);
  float temperature, top_p, uniform;
  int32_t top_k;
};

// New tokens of one sequence after ``past`` cached positions. ``pages``: its page table, pages for the new positions
// included.
struct Piece {
  const int32_t* ids;
  int64_t count, past;
  const int32_t* pages;
  Choice choice;
};

// The sequences of one call of a plan with pages of ``page`` positions and page tables of ``pages``.
struct Pieces {
  int64_t page, pages;
  std::vector<Piece> list;

  Sizes sizes(int64_t slots) const;
};

// Error incompatible if a program has an input that `pack` does not make, or of another type.
void require_known_inputs(const Plan& plan);

// Writes every input of ``program`` to ``out`` + its offset. ``sizes``: as it is run; where that is more than the
// sequences have, the rows beyond their own are padding, which write and attend nothing. Error internal for an input of
// another size.
void pack(const PlanProgram& program, const Pieces& pieces, const Sizes& sizes, const std::vector<int64_t>& offsets,
          char* out);

}  // namespace dsv2
