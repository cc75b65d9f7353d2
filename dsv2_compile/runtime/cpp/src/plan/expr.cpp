#include "plan/expr.h"

#include <algorithm>

namespace dsv2 {
namespace {

constexpr int kMaxDepth = 16;
constexpr int64_t kLimit = int64_t{1} << 62;
constexpr std::array<const char*, 5> kOperators = {"+", "-", "*", "cdiv", "min"};

}  // namespace

Expr Expr::from_json(const Json& json) {
  Expr out;
  out.terms_.clear();
  out.append(json, 0);
  return out;
}

void Expr::append(const Json& json, int depth) {
  if (depth > kMaxDepth) throw JsonError("an expression is nested more than " + std::to_string(kMaxDepth) + " deep");
  if (json.is_integer() && -kLimit < json.integer() && json.integer() < kLimit) {
    terms_.push_back({Op::constant, json.integer()});
    return;
  }
  if (json.is_string()) {
    auto found = std::find(kSymbols.begin(), kSymbols.end(), json.string());
    if (found == kSymbols.end()) throw JsonError("unknown symbol " + quoted(json.string()));
    terms_.push_back({Op::symbol, found - kSymbols.begin()});
    return;
  }
  if (json.is_array() && json.array().size() == 3 && json.array()[0].is_string()) {
    const Array& parts = json.array();
    auto found = std::find(kOperators.begin(), kOperators.end(), parts[0].string());
    if (found != kOperators.end()) {
      append(parts[1], depth + 1);
      append(parts[2], depth + 1);
      auto op = static_cast<Op>(static_cast<int>(Op::add) + static_cast<int>(found - kOperators.begin()));
      if (op == Op::divide_up && !(parts[2].is_integer() && parts[2].integer() > 0)) {
        throw JsonError("cdiv divides by a positive number only");
      }
      terms_.push_back({op, 0});
      return;
    }
  }
  throw JsonError("a value is not an expression");
}

int64_t Expr::apply(Op op, int64_t a, int64_t b) {
  Wide value = 0;
  switch (op) {
    case Op::add: value = Wide{a} + b; break;
    case Op::subtract: value = Wide{a} - b; break;
    case Op::multiply: value = Wide{a} * b; break;
    case Op::divide_up: value = Wide{a} / b + (a > 0 && a % b != 0); break;
    default: value = std::min(a, b);
  }
  if (value <= -kLimit || value >= kLimit) throw Overflow("an expression has a value beyond 2**62");
  return static_cast<int64_t>(value);
}

int64_t Expr::evaluate(const Sizes& sizes) const {
  std::array<int64_t, kMaxDepth + 2> stack{};
  size_t depth = 0;
  for (const Term& term : terms_) {
    if (term.op == Op::constant) {
      stack[depth++] = term.value;
    } else if (term.op == Op::symbol) {
      stack[depth++] = sizes[static_cast<Symbol>(term.value)];
    } else {
      --depth;
      stack[depth - 1] = apply(term.op, stack[depth - 1], stack[depth]);
    }
  }
  return stack[0];
}

bool Expr::is(Symbol symbol) const { return terms_.size() == 1 && uses(symbol); }

bool Expr::uses(Symbol symbol) const {
  return std::any_of(terms_.begin(), terms_.end(), [symbol](const Term& term) {
    return term.op == Op::symbol && term.value == static_cast<int64_t>(symbol);
  });
}

std::string Expr::text() const {
  std::vector<std::string> stack;
  for (const Term& term : terms_) {
    if (term.op == Op::constant) {
      stack.push_back(std::to_string(term.value));
    } else if (term.op == Op::symbol) {
      stack.emplace_back(kSymbols[static_cast<size_t>(term.value)]);
    } else {
      std::string right = std::move(stack.back());
      stack.pop_back();
      std::string left = std::move(stack.back());
      std::string name = kOperators[static_cast<size_t>(term.op) - static_cast<size_t>(Op::add)];
      bool call = term.op == Op::divide_up || term.op == Op::minimum;
      stack.back() = call ? name + "(" + left + ", " + right + ")" : "(" + left + " " + name + " " + right + ")";
    }
  }
  return stack[0];
}

}  // namespace dsv2
