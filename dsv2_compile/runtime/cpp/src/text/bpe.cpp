#include "text/bpe.h"

#include <queue>
#include <utility>

namespace dsv2 {
namespace {

uint64_t pair_key(int32_t left, int32_t right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

// A token of the word, in a list; -1 ends the list. One that was joined to its left neighbour has the id -1.
struct Symbol {
  int32_t id, previous, next;
};

struct Candidate {
  int32_t rank, at, left, right, merged;
  // The lowest rank comes first and, of equal ones, the leftmost.
  bool operator<(const Candidate& o) const { return rank != o.rank ? rank > o.rank : at > o.at; }
};

}  // namespace

Bpe::Bpe(BpeModel model) : bytes_(model.bytes) {
  merges_.reserve(model.merges.size());
  for (size_t rank = 0; rank < model.merges.size(); ++rank) {
    const Merge& m = model.merges[rank];
    merges_[pair_key(m.left, m.right)] = {static_cast<int32_t>(rank), m.merged};  // of equal pairs the last counts
  }
  spelled_.reserve(model.tokens.size());
  std::vector<int32_t> ids;
  for (auto& [word, id] : model.tokens) {
    ids.clear();
    if (!model.ignore_merges) merge(word, ids);
    if (model.ignore_merges || (ids.size() == 1 && ids[0] == id)) words_.emplace(spelled_.emplace_back(word), id);
  }
}

void Bpe::encode(std::string_view word, std::vector<int32_t>& ids) const {
  if (const auto found = words_.find(word); found != words_.end()) {
    ids.push_back(found->second);
  } else {
    merge(word, ids);
  }
}

const Bpe::Ranked* Bpe::find(int32_t left, int32_t right) const {
  const auto found = merges_.find(pair_key(left, right));
  return found == merges_.end() ? nullptr : &found->second;
}

void Bpe::merge(std::string_view word, std::vector<int32_t>& ids) const {
  std::vector<Symbol> symbols;
  symbols.reserve(word.size());
  for (const char c : word) {
    const auto at = static_cast<int32_t>(symbols.size());
    symbols.push_back({bytes_[static_cast<unsigned char>(c)], at - 1, at + 1});
  }
  if (!symbols.empty()) symbols.back().next = -1;
  auto symbol = [&](int32_t at) -> Symbol& { return symbols[static_cast<size_t>(at)]; };

  std::priority_queue<Candidate> queue;
  auto consider = [&](int32_t at) {
    if (at < 0 || symbol(at).next < 0) return;
    const int32_t left = symbol(at).id, right = symbol(symbol(at).next).id;
    if (const Ranked* found = find(left, right)) queue.push({found->rank, at, left, right, found->merged});
  };
  for (int32_t at = 0; at < static_cast<int32_t>(symbols.size()); ++at) consider(at);
  while (!queue.empty()) {
    const Candidate top = queue.top();
    queue.pop();
    Symbol& left = symbol(top.at);
    // A candidate whose tokens have been joined to others since is void
    if (left.id != top.left || left.next < 0 || symbol(left.next).id != top.right) continue;
    Symbol& right = symbol(left.next);
    left.id = top.merged;
    left.next = right.next;
    right.id = -1;
    if (left.next >= 0) symbol(left.next).previous = top.at;
    consider(left.previous);
    consider(top.at);
  }
  for (int32_t at = 0; at >= 0 && !symbols.empty(); at = symbol(at).next) ids.push_back(symbol(at).id);
}

}  // namespace dsv2
