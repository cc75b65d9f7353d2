#include "native/pages.h"

#include <algorithm>
#include <numeric>
#include <string>

#include "base/error.h"

namespace dsv2 {

PagePool::PagePool(int64_t count_, int64_t size_) : count(count_), size(size_), free_(static_cast<size_t>(count_)) {
  std::iota(free_.rbegin(), free_.rend(), 0);
}

int64_t PagePool::free() const {
  std::lock_guard lock(mutex_);
  return static_cast<int64_t>(free_.size());
}

std::vector<int32_t> PagePool::take(int64_t wanted) {
  std::lock_guard lock(mutex_);
  auto there = static_cast<int64_t>(free_.size());
  if (wanted > there) {
    throw Error(DSV2_RESOURCE,
                "The KV cache has " + std::to_string(there) + " free pages of " + std::to_string(size) + " tokens, " +
                    std::to_string(wanted) + " are needed.",
                "Free sequences, shorten the input, or load the engine with a larger cache_tokens.");
  }
  std::vector<int32_t> taken(free_.rbegin(), free_.rbegin() + wanted);
  free_.resize(static_cast<size_t>(there - wanted));
  return taken;
}

// Within the room that the list has had from the start: giving back cannot fail.
void PagePool::give(const int32_t* pages, int64_t given) {
  std::lock_guard lock(mutex_);
  while (given) free_.push_back(pages[--given]);
}

PageTables::PageTables(std::shared_ptr<PagePool> pool, int64_t slots, int64_t width)
    : pool_(std::move(pool)),
      width_(width),
      held_(static_cast<size_t>(slots)),
      tables_(static_cast<size_t>(slots) * static_cast<size_t>(width)) {}

PageTables::~PageTables() {
  for (size_t slot = 0; slot < held_.size(); ++slot) release(static_cast<int64_t>(slot), 0);
}

void PageTables::reserve(const std::vector<int64_t>& slots, const std::vector<int64_t>& positions) {
  std::vector<int64_t> more;
  for (size_t i = 0; i < slots.size(); ++i) {
    more.push_back(std::max<int64_t>(pages(positions[i]) - held_[static_cast<size_t>(slots[i])], 0));
  }
  std::vector<int32_t> taken = pool_->take(std::accumulate(more.begin(), more.end(), int64_t{0}));
  auto next = taken.begin();
  for (size_t i = 0; i < slots.size(); ++i) {
    int64_t& held = held_[static_cast<size_t>(slots[i])];
    std::copy(next, next + more[i], tables_.begin() + slots[i] * width_ + held);
    next += more[i];
    held += more[i];
  }
}

void PageTables::release(int64_t slot, int64_t keep) {
  int64_t& held = held_[static_cast<size_t>(slot)];
  int64_t left = std::min(pages(keep), held);
  pool_->give(row(slot) + left, held - left);
  held = left;
}

}  // namespace dsv2
