// What is asked of a batch, and what it answers.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "base/error.h"
#include "runtime/backend.h"
#include "runtime/store.h"

namespace dsv2 {

// ``stream``: which of the seed's streams of random numbers is this one's. ``stop``: ids that end it, as those of the
// model do.
struct Request {
  std::vector<int32_t> prompt;
  int64_t max_new_tokens = 1;
  Sampling sampling;
  uint64_t stream = 0;
  std::vector<int32_t> stop;
};

inline constexpr int32_t kNoToken = -1;

// The next token of a request, or that it has ended without one: cancelled, or failed with its error. ``finish`` is
// DSV2_RUNNING but for its last event.
struct Event {
  uint64_t request;
  int32_t token;
  dsv2_finish finish = DSV2_RUNNING;
  std::optional<Error> error;
};

// What a sequence may be: positions of its slot, and pages of the cache where that has any.
struct Limits {
  int64_t vocab_size, max_tokens;
  Pages pages;

  // Error usage, or resource for one that the cache could never hold.
  void check(const Request& request) const;
  void require_fits(int64_t prompt_length) const;
  // Pages for all that ``request`` may come to.
  int64_t pages_of(const Request& request) const;
};

}  // namespace dsv2
