// Random numbers as numpy makes them, so that the same seed gives the same tokens in Python.
#pragma once

#include <cstdint>

namespace dsv2 {

// numpy.random.Generator(numpy.random.PCG64([seed, stream])), bit for bit.
class RandomStream {
 public:
  RandomStream(uint64_t seed, uint64_t stream);
  // The next number in [0, 1), a multiple of 2^-53.
  double random();

 private:
  __extension__ typedef unsigned __int128 Word;
  void advance();

  Word state_ = 0, increment_;
};

}  // namespace dsv2
