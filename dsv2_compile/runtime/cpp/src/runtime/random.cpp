#include "runtime/random.h"

#include <array>
#include <cstddef>
#include <vector>

namespace dsv2 {
namespace {

using std::size_t;

// An integer as numpy splits it: 32 bits a word, the low ones first, none of the leading zeros.
void append_words(uint64_t value, std::vector<uint32_t>* words) {
  do {
    words->push_back(static_cast<uint32_t>(value));
    value >>= 32;
  } while (value);
}

// numpy.random.SeedSequence, after O'Neill's seed_seq_fe: ``entropy`` is hashed into a pool of four words, and that
// into the words of a state.
class SeedSequence {
 public:
  explicit SeedSequence(const std::vector<uint32_t>& entropy) {
    for (size_t i = 0; i < pool_.size(); ++i) pool_[i] = hashed(i < entropy.size() ? entropy[i] : 0);
    for (size_t source = 0; source < pool_.size(); ++source) {
      for (size_t to = 0; to < pool_.size(); ++to) {
        if (source != to) pool_[to] = mixed(pool_[to], hashed(pool_[source]));
      }
    }
    for (size_t source = pool_.size(); source < entropy.size(); ++source) {
      for (uint32_t& word : pool_) word = mixed(word, hashed(entropy[source]));
    }
  }

  std::array<uint64_t, 4> state() const {
    std::array<uint64_t, 4> words{};
    uint32_t constant = 0x8b51f9dd;
    for (size_t i = 0; i < 2 * words.size(); ++i) {
      uint32_t value = pool_[i % pool_.size()] ^ constant;
      constant *= 0x58f38ded;
      value *= constant;
      value ^= value >> 16;
      words[i / 2] |= static_cast<uint64_t>(value) << (32 * (i % 2));
    }
    return words;
  }

 private:
  uint32_t hashed(uint32_t value) {
    value ^= constant_;
    constant_ *= 0x931e8875;
    value *= constant_;
    return value ^ (value >> 16);
  }

  static uint32_t mixed(uint32_t x, uint32_t y) {
    uint32_t value = 0xca01f9ddu * x - 0x4973f715u * y;
    return value ^ (value >> 16);
  }

  uint32_t constant_ = 0x43b0d7e5;
  std::array<uint32_t, 4> pool_{};
};

}  // namespace

RandomStream::RandomStream(uint64_t seed, uint64_t stream) {
  std::vector<uint32_t> entropy;
  append_words(seed, &entropy);
  append_words(stream, &entropy);
  std::array<uint64_t, 4> words = SeedSequence(entropy).state();
  increment_ = (static_cast<Word>(words[2]) << 64 | words[3]) << 1 | 1;
  advance();
  state_ += static_cast<Word>(words[0]) << 64 | words[1];
  advance();
}

void RandomStream::advance() {
  constexpr Word kMultiplier = static_cast<Word>(0x2360ed051fc65da4) << 64 | 0x4385df649fccf645;
  state_ = state_ * kMultiplier + increment_;
}

// PCG64, XSL-RR 128/64.
double RandomStream::random() {
  advance();
  uint64_t folded = static_cast<uint64_t>(state_ >> 64) ^ static_cast<uint64_t>(state_);
  auto turn = static_cast<unsigned>(state_ >> 122);
  uint64_t bits = folded >> turn | folded << ((64 - turn) % 64);
  return static_cast<double>(bits >> 11) * 0x1p-53;
}

}  // namespace dsv2
