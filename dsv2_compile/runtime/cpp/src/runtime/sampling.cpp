#include "runtime/sampling.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include "base/error.h"

namespace dsv2 {
namespace {

std::string text(double value) {
  char digits[32];
  return {digits, std::to_chars(digits, digits + sizeof digits, value).ptr};
}

void require(bool holds, const std::string& name, const std::string& value, const std::string& allowed) {
  if (!holds) throw Error(DSV2_USAGE, "Sampling " + name + " is " + value + ".", name + " must be " + allowed + ".");
}

}  // namespace

void require_valid(const Sampling& sampling) {
  require(sampling.temperature >= 0 && sampling.temperature < std::numeric_limits<double>::infinity(), "temperature",
          text(sampling.temperature), "at least 0 and finite");
  require(sampling.top_k >= 0, "top_k", std::to_string(sampling.top_k), "at least 0");
  require(sampling.top_p > 0 && sampling.top_p <= 1, "top_p", text(sampling.top_p), "above 0 and at most 1");
}

void require_valid(const Draw& draw) {
  require_valid(draw.sampling);
  require(draw.uniform >= 0 && draw.uniform < 1, "uniform", text(draw.uniform), "at least 0 and below 1");
}

Draw draw(const Sampling& sampling, RandomStream* random) {
  return {sampling, sampling.temperature != 0 ? random->random() : 0.0};
}

int32_t sample(const float* logits, int64_t vocab, const Draw& draw) {
  const Sampling& sampling = draw.sampling;
  const float* highest = std::max_element(logits, logits + vocab);
  if (sampling.temperature == 0) return static_cast<int32_t>(highest - logits);

  std::vector<double> scores(static_cast<size_t>(vocab));
  for (size_t i = 0; i < scores.size(); ++i) {
    scores[i] = (static_cast<double>(logits[i]) - static_cast<double>(*highest)) / sampling.temperature;
  }
  std::vector<int32_t> order(scores.size());
  std::iota(order.begin(), order.end(), 0);
  size_t kept = order.size();
  if (sampling.top_k && sampling.top_k < vocab) kept = static_cast<size_t>(sampling.top_k);
  const auto end = order.begin() + static_cast<std::ptrdiff_t>(kept);
  // equal scores keep the order of their ids
  auto before = [&](int32_t a, int32_t b) {
    double x = scores[static_cast<size_t>(a)], y = scores[static_cast<size_t>(b)];
    return x > y || (x == y && a < b);
  };
  if (end != order.end()) std::nth_element(order.begin(), end, order.end(), before);
  std::sort(order.begin(), end, before);

  std::vector<double> cumulative(kept);
  double total = 0;
  for (size_t i = 0; i < kept; ++i) total += cumulative[i] = std::exp(scores[static_cast<size_t>(order[i])]);
  double sum = 0;
  for (double& p : cumulative) p = sum += p / total;
  if (sampling.top_p < 1) {
    // the smallest set that reaches top_p, never empty
    auto reached = std::lower_bound(cumulative.begin(), cumulative.end(), sampling.top_p);
    if (reached != cumulative.end()) cumulative.erase(reached + 1, cumulative.end());
  }
  auto place = std::upper_bound(cumulative.begin(), cumulative.end(), draw.uniform * cumulative.back());
  if (place == cumulative.end()) --place;
  return order[static_cast<size_t>(place - cumulative.begin())];
}

}  // namespace dsv2
