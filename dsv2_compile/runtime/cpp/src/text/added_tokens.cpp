#include "text/added_tokens.h"

#include <algorithm>

namespace dsv2 {

void AddedTokens::add(const std::string& content, int32_t id) {
  ids_.emplace(content, id);
  std::vector<size_t>& lengths = lengths_[static_cast<unsigned char>(content[0])];
  const auto at = std::lower_bound(lengths.begin(), lengths.end(), content.size(), std::greater<>());
  if (at == lengths.end() || *at != content.size()) lengths.insert(at, content.size());
}

void AddedTokens::split(std::string_view text, const std::function<void(std::string_view)>& rest,
                        const std::function<void(int32_t)>& found) const {
  size_t given = 0;
  for (size_t at = 0; at < text.size();) {
    size_t taken = 0;
    for (const size_t length : lengths_[static_cast<unsigned char>(text[at])]) {
      if (length > text.size() - at) continue;
      const auto token = ids_.find(std::string(text.substr(at, length)));
      if (token == ids_.end()) continue;
      if (given < at) rest(text.substr(given, at - given));
      found(token->second);
      taken = length;
      given = at + length;
      break;
    }
    at += taken ? taken : 1;
  }
  if (given < text.size()) rest(text.substr(given));
}

}  // namespace dsv2
