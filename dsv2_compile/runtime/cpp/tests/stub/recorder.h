// A stand-in for libcuda.so.1 that records what it is asked for and computes nothing: no kernel runs, no memory is
// held, and whatever is copied back is one byte again and again, so that no test can take it for a result.
//
// One line per call goes to the file $DSV2_STUB_LOG, if that is set; numbers in decimal:
//   alloc ADDRESS BYTES | free ADDRESS | pinned BYTES | function SYMBOL | shared SYMBOL BYTES
//   copy_in ADDRESS BYTES HASH | copy_out ADDRESS BYTES | fill ADDRESS VALUE BYTES
//   launch SYMBOL GRID_X GRID_Y GRID_Z THREADS SHARED WORDS... | capture | graph NUMBER | replay NUMBER
//   discard NUMBER | wait
//   fault TEXT: what no driver would put up with
// HASH: FNV-1a, 64 bits, of the bytes. The GPU that it pretends to have:
//   $DSV2_STUB_CAPABILITY (9.0), _FREE bytes (2**40), _VERSION of CUDA (13000), _DEVICES (1)
//   $DSV2_STUB_FAIL "cuMemAlloc_v2 3 2": the third call of that function gives error 2, "cuMemAlloc_v2 0 2": all do
//   $DSV2_STUB_READS (0): the byte that is copied back
//   $DSV2_STUB_PARAMETERS: how many parameters each kernel has more than its cubin says
#pragma once

#include <cstdint>
#include <cstdio>
#include <deque>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "native/cuda_api.h"

struct dsv2::CuContextOpaque {};
struct dsv2::CuStreamOpaque {};
struct dsv2::CuGraphOpaque {
  int number;
};
struct dsv2::CuGraphExecOpaque {
  int number;
};
struct dsv2::CuFunctionOpaque {
  std::string symbol;
  std::vector<int64_t> parameters;
};
struct dsv2::CuModuleOpaque {
  std::string image;
  std::deque<CuFunctionOpaque> functions;
};

namespace dsv2 {

// A copy whose source must not change before the stream is waited for.
struct Copy {
  const void* from;
  size_t nbytes;
  uint64_t hash;
};

// Everything that the stand-in knows; held with its mutex.
class Recorder {
 public:
  static Recorder& instance();

  std::mutex mutex;
  std::map<CuAddress, size_t> blocks;
  CuAddress next = 0x7f0000000000;
  int graphs = 0;
  CuContextOpaque context;
  CuStreamOpaque stream;

  bool logging() const { return log_; }
  // One line, in the way of printf.
  __attribute__((format(printf, 2, 3))) void note(const char* format, ...);
  // The error that a test wants of this call; 0: none.
  CuResult wanted(const char* function);
  bool holds(CuAddress address, size_t nbytes) const;
  void copy_in(CuAddress to, const void* from, size_t nbytes);
  // The copies so far have been made.
  void copied();

 private:
  Recorder();

  std::FILE* log_;
  std::string failing_;
  int fails_at_ = 0, fails_with_ = 0, calls_ = 0;
  std::vector<Copy> copies_;
};

// Of the variable DSV2_STUB_ + ``name``.
const char* setting(const char* name, const char* otherwise);
int64_t number(const char* name, const char* otherwise);

}  // namespace dsv2
