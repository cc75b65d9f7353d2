#include "runtime/session.h"

#include <algorithm>
#include <string>
#include <utility>

#include "runtime/sampling.h"

namespace dsv2 {
namespace {

constexpr int64_t kFree = -1;

}  // namespace

Session::Session(const ModelConfig& config, int64_t max_batch, int64_t max_tokens, std::unique_ptr<Store> store)
    : config_(config),
      max_tokens_(max_tokens),
      lengths_(static_cast<size_t>(max_batch), kFree),
      store_(std::move(store)) {}

void Session::prefill(const TokenRows& rows, float* logits) {
  std::lock_guard lock(mutex_);
  Rows checked = started(rows);
  release(checked.slots);
  append(Phase::prefill, checked, logits);
}

void Session::extend(const TokenRows& rows, float* logits) {
  std::lock_guard lock(mutex_);
  append(Phase::extend, extended(rows), logits);
}

void Session::decode(const TokenRows& rows, float* logits) {
  std::lock_guard lock(mutex_);
  append(Phase::decode, extended(rows), logits);
}

void Session::start(const TokenRows& rows, const Draw* draws, int32_t* next) {
  std::lock_guard lock(mutex_);
  Rows checked = started(rows);
  std::vector<Draw> chosen = checked_draws(draws, rows.rows);
  release(checked.slots);
  choose(Phase::prefill, checked, chosen, next);
}

void Session::resume(const TokenRows& rows, const Draw* draws, int32_t* next) {
  std::lock_guard lock(mutex_);
  Rows checked = extended(rows);
  choose(Phase::extend, checked, checked_draws(draws, rows.rows), next);
}

void Session::step(const TokenRows& rows, const Draw* draws, int32_t* next) {
  std::lock_guard lock(mutex_);
  Rows checked = extended(rows);
  choose(Phase::decode, checked, checked_draws(draws, rows.rows), next);
}

void Session::restore(const float* cached, int64_t rows, int64_t positions, const int32_t* lengths,
                      const int32_t* slots) {
  std::lock_guard lock(mutex_);
  require_open();
  require_cached_rows(cached, rows, positions, config_);
  Rows begun{nullptr, 0, row_lengths("rows", lengths, rows, positions), slot_numbers(slots, rows, max_batch()), {}};
  begun.past.assign(begun.counts.size(), 0);
  require_room(begun);
  release(begun.slots);
  const int64_t row = positions * config_.cache_dim();
  try {
    for (size_t b = 0; b < begun.slots.size(); ++b) {
      store_->put(begun.slots[b], cached + static_cast<int64_t>(b) * row, begun.counts[b], rows * row);
    }
  } catch (...) {
    release(begun.slots);  // those before the one that failed
    throw;
  }
  grow(begun);
}

void Session::free(const int32_t* slots, int64_t count) {
  std::lock_guard lock(mutex_);
  require_open();
  Rows ended{};
  if (slots) {
    if (count < 1) throw Error(DSV2_USAGE, "slots is empty.", "Pass at least one slot, or NULL for all.");
    ended.slots = slot_numbers(slots, count, max_batch());
    require_live(&ended);
  } else {
    ended.slots = live();
  }
  release(ended.slots);
}

int64_t Session::length(int32_t slot) {
  std::lock_guard lock(mutex_);
  require_open();
  Rows one{};
  one.slots = slot_numbers(&slot, 1, max_batch());
  require_live(&one);
  return one.past[0];
}

void Session::close(Error why) {
  std::lock_guard lock(mutex_);
  if (closed_) return;
  closed_ = std::move(why);
  release(live());
  store_.reset();
}

void Session::require_open() const {
  if (closed_) throw *closed_;
}

std::vector<int64_t> Session::live() const {
  std::vector<int64_t> slots;
  for (size_t slot = 0; slot < lengths_.size(); ++slot) {
    if (lengths_[slot] != kFree) slots.push_back(static_cast<int64_t>(slot));
  }
  return slots;
}

// Checked rows of a prefill.
Rows Session::started(const TokenRows& rows) {
  require_open();
  Rows checked = checked_rows(rows, config_.vocab_size, max_batch());
  checked.past.assign(checked.counts.size(), 0);
  require_room(checked);
  return checked;
}

// Checked rows of more tokens for sequences already there.
Rows Session::extended(const TokenRows& rows) {
  require_open();
  Rows checked = checked_rows(rows, config_.vocab_size, max_batch());
  require_live(&checked);
  require_room(checked);
  return checked;
}

// Fills in the past of ``rows``.
void Session::require_live(Rows* rows) const {
  for (int64_t slot : rows->slots) {
    rows->past.push_back(lengths_[static_cast<size_t>(slot)]);
    if (rows->past.back() == kFree) {
      throw Error(DSV2_USAGE, "Slot " + std::to_string(slot) + " holds no sequence.", "Call prefill for it first.");
    }
  }
}

void Session::require_room(const Rows& rows) const {
  size_t longest = 0;
  for (size_t b = 1; b < rows.counts.size(); ++b) {
    if (rows.past[b] + rows.counts[b] > rows.past[longest] + rows.counts[longest]) longest = b;
  }
  if (rows.past[longest] + rows.counts[longest] > max_tokens_) {
    const std::string row = std::to_string(longest), past = std::to_string(rows.past[longest]),
                      count = std::to_string(rows.counts[longest]), most = std::to_string(max_tokens_);
    throw Error(DSV2_USAGE,
                "Row " + row + " has " + past + " tokens cached and " + count + " new, the session holds " + most + ".",
                "Open the session with a larger max_tokens, or shorten the input.");
  }
}

void Session::release(const std::vector<int64_t>& slots) {
  for (int64_t slot : slots) lengths_[static_cast<size_t>(slot)] = kFree;
  bool empty = std::all_of(lengths_.begin(), lengths_.end(), [](int64_t length) { return length == kFree; });
  store_->release(slots, empty);
}

void Session::append(Phase phase, const Rows& rows, float* logits) {
  store_->append(phase, rows, logits);
  grow(rows);
}

void Session::choose(Phase phase, const Rows& rows, const std::vector<Draw>& draws, int32_t* next) {
  store_->choose(phase, rows, draws, next);
  grow(rows);
}

void Session::grow(const Rows& rows) {
  for (size_t b = 0; b < rows.slots.size(); ++b) {
    lengths_[static_cast<size_t>(rows.slots[b])] = rows.past[b] + rows.counts[b];
  }
}

}  // namespace dsv2
