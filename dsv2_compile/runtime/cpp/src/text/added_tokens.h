// Tokens that are found in a text before it is cut into words, as those that mark its beginning and end.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace dsv2 {

class AddedTokens {
 public:
  void add(const std::string& content, int32_t id);

  // Calls ``found`` with each token in ``text`` and ``rest`` with what lies between, in their order. Where several begin
  // the longest counts.
  void split(std::string_view text, const std::function<void(std::string_view)>& rest,
             const std::function<void(int32_t)>& found) const;

 private:
  std::unordered_map<std::string, int32_t> ids_;
  std::array<std::vector<size_t>, 256> lengths_;  // of the tokens that begin with a byte, longest first
};

}  // namespace dsv2
