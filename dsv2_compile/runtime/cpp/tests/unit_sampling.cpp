// Random numbers against values that numpy gave, and the choice of a token where it can be reasoned by hand.
#include <cmath>
#include <limits>
#include <vector>

#include "base/error.h"
#include "check.h"
#include "runtime/random.h"
#include "runtime/sampling.h"

using namespace dsv2;

namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
const double kNotANumber = std::nan("");

void check_random() {
  struct Case {
    uint64_t seed, stream;
    double first, second;
  };
  // numpy.random.Generator(numpy.random.PCG64([seed, stream])).random()
  const Case cases[] = {
      {0u, 0u, 0x1.461fd79fb3850p-1, 0x1.1442f7e20b674p-2},
      {1u, 0u, 0x1.060d7be6f245cp-1, 0x1.e6a32d7782a55p-1},
      {0u, 1u, 0x1.c78bd7c50b582p-1, 0x1.1d4132d1fc63bp-1},
      {4294967295u, 7u, 0x1.d9637a86203dfp-1, 0x1.4d7616eb6fed0p-4},
      {4294967296u, 0u, 0x1.c78bd7c50b582p-1, 0x1.1d4132d1fc63bp-1},
      {4294967301u, 4294967296u, 0x1.6de27541092a0p-1, 0x1.dcdcbcc536c40p-3},
      {18446744073709551615u, 18446744073709551615u, 0x1.f17ceac2907a0p-3, 0x1.66554db27bfcap-1},
  };
  for (const Case& c : cases) {
    RandomStream random(c.seed, c.stream);
    CHECK(random.random() == c.first);
    CHECK(random.random() == c.second);
  }
}

int32_t chosen(const std::vector<float>& logits, Sampling sampling, double uniform = 0) {
  return sample(logits.data(), static_cast<int64_t>(logits.size()), {sampling, uniform});
}

void check_sample() {
  const std::vector<float> even = {1, 1, 1, 1}, tied = {0, 3, 1, 3};
  CHECK(chosen(tied, {}) == 1);
  CHECK(chosen({-5}, {1, 0, 1, 0}, 0.99) == 0);
  for (int i = 0; i < 4; ++i) CHECK(chosen(even, {1, 0, 1, 0}, i / 4.0) == i);
  CHECK(chosen(even, {1, 0, 1, 0}, 0.2499) == 0);
  CHECK(chosen(even, {1, 2, 1, 0}, 0.5) == 1);       // of equal ones the lower ids are kept
  CHECK(chosen(even, {1, 100, 1, 0}, 0.9999) == 3);  // more than there are: all
  CHECK(chosen(even, {1, 0, 0.5, 0}, 0.9999) == 1);  // two reach a half
  CHECK(chosen(even, {1, 0, 0.51, 0}, 0.9999) == 2);
  CHECK(chosen(even, {1, 0, 1e-9, 0}, 0.9999) == 0);  // never none
  CHECK(chosen(even, {1, 2, 0.6, 0}, 0.9999) == 1);   // top_k first: 0.6 of two
  CHECK(chosen(tied, {1e-300, 0, 1, 0}, 0.75) == 3);
  CHECK(chosen(tied, {1e300, 0, 1, 0}, 0.75) == 0);  // the last of four alike
}

void check_draw() {
  RandomStream random(1, 2), same(1, 2);
  CHECK(draw({}, &random).uniform == 0);
  CHECK(draw({0.5, 0, 1, 0}, &random).uniform == same.random());  // greedy took none
}

bool refused(const Draw& draw) {
  try {
    require_valid(draw);
    return false;
  } catch (const Error& e) {
    return e.code == DSV2_USAGE && !e.cause.empty() && !e.remedy.empty();
  }
}

void check_refusals() {
  const Draw wrong[] = {{{-1, 0, 1, 0}, 0},          {{kInfinity, 0, 1, 0}, 0}, {{kNotANumber, 0, 1, 0}, 0},
                        {{1, -1, 1, 0}, 0},          {{1, 0, 0, 0}, 0},         {{1, 0, 1.5, 0}, 0},
                        {{1, 0, kNotANumber, 0}, 0}, {{1, 0, 1, 0}, 1},         {{1, 0, 1, 0}, -0.1},
                        {{1, 0, 1, 0}, kNotANumber}};
  for (const Draw& draw : wrong) CHECK(refused(draw));
  CHECK(!refused({{1, 0, 1, 0}, 0}));
  CHECK(!refused({{0, 5, 0.1, ~uint64_t{0}}, 0.999}));
}

}  // namespace

int main() {
  check_random();
  check_sample();
  check_draw();
  check_refusals();
  return checks_result();
}
