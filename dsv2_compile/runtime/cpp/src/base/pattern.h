// The regular expressions of a schema: literals, [classes], (groups), *, + and {n}, between ^ and $.
#pragma once

#include <bitset>
#include <cstddef>
#include <string_view>
#include <vector>

namespace dsv2 {

// An automaton with a state for every class and literal (Glushkov): no recursion over the text, and no backtracking.
class Pattern {
 public:
  // Error internal for any other syntax.
  explicit Pattern(std::string_view expression);
  // The whole of ``text``. At most as many steps as it has bytes, times the states.
  bool matches(std::string_view text) const;

 private:
  friend class PatternParser;
  using States = std::vector<size_t>;
  // A piece of the expression: the states it may begin and end with, and whether it may be empty.
  struct Piece {
    States first, last;
    bool empty;
  };

  std::vector<std::bitset<256>> accepts_;  // by state: the bytes that lead on
  std::vector<States> next_;
  std::vector<bool> last_;
  Piece whole_;
};

}  // namespace dsv2
