// A session of the model of tests/vectors/batch that keeps what it was called with.
#pragma once

#include <algorithm>
#include <map>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include "fake_model.h"
#include "runtime/batch.h"
#include "runtime/sampling.h"

namespace dsv2 {

struct FakeCall {
  std::string kind;
  std::vector<int64_t> slots, counts, past;
};

class FakeCalls : public Calls {
 public:
  FakeCalls(int64_t vocab, int64_t max_batch, std::set<int32_t> nan_tokens = {})
      : vocab_(vocab), max_batch_(max_batch), nan_tokens_(std::move(nan_tokens)) {}

  int64_t max_batch() const override { return max_batch_; }
  void start(const TokenRows& rows, const Draw* draws, int32_t* next) override {
    require_held(rows, 0);
    call("start", rows, draws, next);
  }
  void resume(const TokenRows& rows, const Draw* draws, int32_t* next) override {
    require_held(rows, 1);
    call("resume", rows, draws, next);
  }
  void step(const TokenRows& rows, const Draw* draws, int32_t* next) override {
    require_held(rows, 1);
    call("step", rows, draws, next);
  }
  void free(const int32_t* slots, int64_t count) override {
    for (int64_t i = 0; i < count; ++i) {
      if (!sequences_.erase(slots[i])) throw std::logic_error("a slot without a sequence is freed");
    }
  }
  bool holds() const { return !sequences_.empty(); }

  std::vector<FakeCall> calls;

 private:
  // Mistakes of a batch are no Error, which it would take for that of a row.
  void require_held(const TokenRows& rows, size_t expected) const {
    for (int64_t b = 0; b < rows.rows; ++b) {
      if (sequences_.count(rows.slots[b]) != expected) throw std::logic_error("a slot was not freed, or not begun");
    }
  }

  void call(const char* kind, const TokenRows& rows, const Draw* draws, int32_t* next) {
    FakeCall made{kind, {}, {}, {}};
    std::vector<std::vector<int32_t>> grown;
    bool sound = true;
    for (int64_t b = 0; b < rows.rows; ++b) {
      std::vector<int32_t>& sequence = grown.emplace_back();
      if (auto found = sequences_.find(rows.slots[b]); found != sequences_.end()) sequence = found->second;
      made.slots.push_back(rows.slots[b]);
      made.counts.push_back(rows.lengths[b]);
      made.past.push_back(static_cast<int64_t>(sequence.size()));
      const int32_t* tokens = rows.tokens + b * rows.columns;
      sequence.insert(sequence.end(), tokens, tokens + rows.lengths[b]);
      sound &= std::none_of(sequence.begin(), sequence.end(), [&](int32_t t) { return nan_tokens_.count(t); });
    }
    calls.push_back(made);
    if (!sound) throw Error(DSV2_NUMERIC, "The fake gave NaN.", "-");
    for (int64_t b = 0; b < rows.rows; ++b) {
      std::vector<int32_t>& sequence = grown[static_cast<size_t>(b)];
      next[b] = sample(fake_logits(sequence, vocab_).data(), vocab_, draws[b]);
      sequences_[rows.slots[b]] = std::move(sequence);
    }
  }

  int64_t vocab_, max_batch_;
  std::set<int32_t> nan_tokens_;
  std::map<int32_t, std::vector<int32_t>> sequences_;
};

}  // namespace dsv2
