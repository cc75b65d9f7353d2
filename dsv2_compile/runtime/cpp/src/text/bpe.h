// Byte-pair encoding: a word's bytes are joined pair by pair, the pair of lowest rank first.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace dsv2 {

// ``left`` and ``right`` become ``merged``; the order of the merges is their rank.
struct Merge {
  int32_t left, right, merged;
};

// ``tokens``: what each spells, and its id. ``ignore_merges``: a word that is a token is that token, whatever the merges
// make of it.
struct BpeModel {
  std::vector<std::pair<std::string, int32_t>> tokens;
  std::array<int32_t, 256> bytes;  // the token of each byte
  std::vector<Merge> merges;
  bool ignore_merges = false;
};

class Bpe {
 public:
  explicit Bpe(BpeModel model);

  // Appends the tokens of ``word``. Any thread.
  void encode(std::string_view word, std::vector<int32_t>& ids) const;

 private:
  struct Ranked {
    int32_t rank, merged;
  };

  const Ranked* find(int32_t left, int32_t right) const;
  void merge(std::string_view word, std::vector<int32_t>& ids) const;

  std::array<int32_t, 256> bytes_;
  std::unordered_map<uint64_t, Ranked> merges_;
  std::vector<std::string> spelled_;                     // what words_ points into
  std::unordered_map<std::string_view, int32_t> words_;  // words that are one token
};

}  // namespace dsv2
