// Which pages of the KV cache belong to which sequence.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

namespace dsv2 {

// ``count`` pages of ``size`` positions, for all sessions of an engine, from any thread. What was given back last goes
// out first.
class PagePool {
 public:
  PagePool(int64_t count, int64_t size);

  const int64_t count, size;
  int64_t free() const;
  // Error resource if there are fewer: none is taken.
  std::vector<int32_t> take(int64_t count);
  void give(const int32_t* pages, int64_t count);

 private:
  mutable std::mutex mutex_;
  std::vector<int32_t> free_;
};

// The pages of ``slots`` sequences, in order: a row of ``width`` each. They go back when this ends.
class PageTables {
 public:
  PageTables(std::shared_ptr<PagePool> pool, int64_t slots, int64_t width);
  ~PageTables();
  PageTables(const PageTables&) = delete;
  PageTables& operator=(const PageTables&) = delete;

  const int32_t* row(int64_t slot) const { return &tables_[static_cast<size_t>(slot * width_)]; }
  // Gives each slot the pages for so many positions in all. Error resource if there are too few: none is given.
  void reserve(const std::vector<int64_t>& slots, const std::vector<int64_t>& positions);
  // Gives the pages of a slot back, but for those of its first ``keep`` positions.
  void release(int64_t slot, int64_t keep);

 private:
  int64_t pages(int64_t positions) const { return (positions + pool_->size - 1) / pool_->size; }

  std::shared_ptr<PagePool> pool_;
  int64_t width_;
  std::vector<int64_t> held_;
  std::vector<int32_t> tables_;
};

}  // namespace dsv2
