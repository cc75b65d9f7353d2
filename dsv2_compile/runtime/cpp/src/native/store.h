// The KV cache of a session of a native engine, in pages, and the calls that add to it.
#pragma once

#include <memory>
#include <vector>

#include "native/executor.h"
#include "native/pages.h"
#include "runtime/store.h"

namespace dsv2 {

// ``slots`` sequences whose pages come from ``pool``; page tables are handed to the programs as they are.
class PagedStore : public Store {
 public:
  PagedStore(std::shared_ptr<Executor> executor, std::shared_ptr<PagePool> pool, int64_t slots, int64_t vocab_size);

  void append(Phase phase, const Rows& rows, float* logits) override;
  void choose(Phase phase, const Rows& rows, const std::vector<Draw>& draws, int32_t* tokens) override;
  void put(int64_t slot, const float* cached, int64_t count, int64_t stride) override;
  void release(const std::vector<int64_t>& slots, bool empty) override;

 private:
  template <typename T>
  void add(Phase phase, const Rows& rows, const std::vector<Draw>& draws, Output output, int64_t width, T* out);
  template <typename T>
  void run(Phase phase, const Rows& rows, const std::vector<Draw>& draws, Output output, int64_t width, T* out);

  std::shared_ptr<Executor> executor_;
  std::shared_ptr<PagePool> pool_;
  PageTables pages_;
  int64_t vocab_size_;
};

}  // namespace dsv2
