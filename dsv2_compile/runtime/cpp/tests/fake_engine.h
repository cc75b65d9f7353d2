// An engine of fake_model.h without files.
#pragma once

#include <algorithm>
#include <functional>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "fake_model.h"
#include "runtime/engine.h"
#include "runtime/sampling.h"

namespace dsv2 {

constexpr int64_t kVocab = 64, kMaxBatch = 4, kMaxSeqLen = 32, kLayers = 2, kWidth = 3;
constexpr int32_t kNan = 13, kEos = 60;  // calls with the first in a sequence fail

class FakeStore : public Store {
 public:
  void append(Phase, const Rows& rows, float* logits) override {
    for (size_t b = 0; b < rows.slots.size(); ++b) {
      std::vector<int32_t> whole = sequences_[rows.slots[b]];
      const int32_t* ids = rows.ids + static_cast<int64_t>(b) * rows.columns;
      whole.insert(whole.end(), ids, ids + rows.counts[b]);
      if (std::count(whole.begin(), whole.end(), kNan)) throw Error(DSV2_NUMERIC, "The fake gave NaN.", "-");
      std::vector<float> made = fake_logits(whole, kVocab);
      std::copy(made.begin(), made.end(), logits + static_cast<int64_t>(b) * kVocab);
      grown_[rows.slots[b]] = std::move(whole);
    }
    for (auto& [slot, sequence] : std::exchange(grown_, {})) sequences_[slot] = std::move(sequence);
  }
  void choose(Phase phase, const Rows& rows, const std::vector<Draw>& draws, int32_t* tokens) override {
    std::vector<float> logits(rows.slots.size() * kVocab);
    append(phase, rows, logits.data());
    for (size_t b = 0; b < rows.slots.size(); ++b) tokens[b] = sample(logits.data() + b * kVocab, kVocab, draws[b]);
  }
  void put(int64_t slot, const float* cached, int64_t count, int64_t) override {
    if (cached[0] < 0) throw Error(DSV2_RESOURCE, "The fake has no room.", "-");
    sequences_[slot].assign(static_cast<size_t>(count), 0);
  }
  void release(const std::vector<int64_t>& slots, bool) override {
    grown_.clear();
    for (int64_t slot : slots) sequences_.erase(slot);
  }
  bool holds() const { return !sequences_.empty(); }

 private:
  std::map<int64_t, std::vector<int32_t>> sequences_, grown_;
};

class FakeLoaded : public Loaded {
 public:
  explicit FakeLoaded(Pages pages) : pages_(pages) {}
  std::unique_ptr<Store> store(int64_t, int64_t) override {
    if (on_store) on_store();
    return std::make_unique<FakeStore>();
  }
  Pages pages() const override {
    if (on_pages) on_pages();
    return pages_;
  }

  std::function<void()> on_store, on_pages;

 private:
  const Pages pages_;
};

inline std::shared_ptr<Engine> fake_engine(std::shared_ptr<FakeLoaded> loaded) {
  Manifest manifest{};
  manifest.verified = true;
  manifest.backend = "fake";
  manifest.target = "tests";
  manifest.max_batch_size = kMaxBatch;
  manifest.max_seq_len = kMaxSeqLen;
  manifest.model = {kVocab, kLayers, 1, kWidth - 1, 1, kMaxSeqLen, -1, {kEos}};
  return std::make_shared<Engine>(std::move(manifest), std::move(loaded));
}

inline std::shared_ptr<Engine> fake_engine(Pages pages = {}) {
  return fake_engine(std::make_shared<FakeLoaded>(pages));
}

}  // namespace dsv2
