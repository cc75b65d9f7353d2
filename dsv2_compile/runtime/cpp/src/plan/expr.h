// Integer expressions over a program's symbols: grids, sizes and scalar arguments of launches.
#pragma once

#include <array>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "base/json.h"

namespace dsv2 {

__extension__ using Wide = __int128;

// New tokens of all sequences; sequences; visible positions of all sequences, new ones included; rows of the cache.
enum class Symbol { rows, batch, context, slots };
inline constexpr std::array<const char*, 4> kSymbols = {"rows", "batch", "context", "slots"};

// A value of every symbol.
struct Sizes {
  int64_t rows, batch, context, slots;

  int64_t operator[](Symbol symbol) const {
    switch (symbol) {
      case Symbol::rows: return rows;
      case Symbol::batch: return batch;
      case Symbol::context: return context;
      default: return slots;
    }
  }
};

// A sum, product, ... of an expression is not between -2**62 and 2**62.
struct Overflow : std::runtime_error {
  using std::runtime_error::runtime_error;
};

class Expr {
 public:
  explicit Expr(int64_t value = 0) : terms_{{Op::constant, value}} {}

  // Accepts and refuses what plan/expr.py does: an integer, a symbol's name, or [operator, left, right]. JsonError.
  static Expr from_json(const Json& json);

  // Throws Overflow.
  int64_t evaluate(const Sizes& sizes) const;
  bool is(Symbol symbol) const;
  bool uses(Symbol symbol) const;
  // For people.
  std::string text() const;

 private:
  enum class Op : uint8_t { constant, symbol, add, subtract, multiply, divide_up, minimum };
  struct Term {
    Op op;
    int64_t value;  // of a constant; the number of a symbol
  };

  void append(const Json& json, int depth);
  static int64_t apply(Op op, int64_t a, int64_t b);

  std::vector<Term> terms_;  // operands before their operator
};

}  // namespace dsv2
