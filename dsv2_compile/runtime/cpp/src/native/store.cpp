#include "native/store.h"

#include <algorithm>
#include <string>

#include "runtime/sound.h"

namespace dsv2 {
namespace {

// A part of a call that one program holds: of row ``row``, its new tokens ``start`` up to ``stop``.
struct Part {
  size_t row;
  int64_t start, stop;
};

// The largest program of a phase.
const PlanProgram& largest(const Plan& plan, Phase phase) {
  return *std::find_if(plan.programs.rbegin(), plan.programs.rend(),
                       [phase](const PlanProgram& p) { return p.phase == phase; });
}

// The next part of every row that has tokens left, as many as a program of these limits holds.
std::vector<Part> next_parts(const PlanProgram& limits, const std::vector<int64_t>& counts,
                             const std::vector<int64_t>& done) {
  std::vector<Part> out;
  int64_t room = limits.rows;
  for (size_t row = 0; row < counts.size(); ++row) {
    if (done[row] == counts[row]) continue;
    if (!room || static_cast<int64_t>(out.size()) == limits.batch) break;
    int64_t take = std::min(counts[row] - done[row], room);
    out.push_back({row, done[row], done[row] + take});
    room -= take;
  }
  return out;
}

}  // namespace

PagedStore::PagedStore(std::shared_ptr<Executor> executor, std::shared_ptr<PagePool> pool, int64_t slots,
                       int64_t vocab_size)
    : executor_(std::move(executor)),
      pool_(std::move(pool)),
      pages_(pool_, slots, executor_->plan().pages),
      vocab_size_(vocab_size) {}

void PagedStore::append(Phase phase, const Rows& rows, float* logits) {
  add(phase, rows, std::vector<Draw>(rows.counts.size()), Output::logits, vocab_size_, logits);
}

void PagedStore::choose(Phase phase, const Rows& rows, const std::vector<Draw>& draws, int32_t* tokens) {
  add(phase, rows, draws, Output::next_tokens, 1, tokens);
}

// A call that fails adds nothing.
template <typename T>
void PagedStore::add(Phase phase, const Rows& rows, const std::vector<Draw>& draws, Output output, int64_t width,
                     T* out) {
  std::vector<int64_t> totals;
  for (size_t b = 0; b < rows.counts.size(); ++b) totals.push_back(rows.past[b] + rows.counts[b]);
  pages_.reserve(rows.slots, totals);
  try {
    run(phase, rows, draws, output, width, out);
    if (!all_sound(out, rows.count() * width)) {
      std::string slots;
      for (int64_t slot : rows.slots) slots += (slots.empty() ? "" : ", ") + std::to_string(slot);
      throw unsound(phase == Phase::decode ? "decode" : "prefill", "[" + slots + "]");
    }
  } catch (...) {
    for (size_t b = 0; b < rows.slots.size(); ++b) pages_.release(rows.slots[b], rows.past[b]);
    throw;
  }
}

template <typename T>
void PagedStore::run(Phase phase, const Rows& rows, const std::vector<Draw>& draws, Output output, int64_t width,
                     T* out) {
  const Plan& plan = executor_->plan();
  const PlanProgram& limits = largest(plan, phase == Phase::decode ? Phase::decode : Phase::extend);
  std::vector<int64_t> done(rows.counts.size());
  for (auto parts = next_parts(limits, rows.counts, done); !parts.empty();
       parts = next_parts(limits, rows.counts, done)) {
    Pieces pieces{plan.page, plan.pages, {}};
    std::vector<void*> results;
    for (const Part& part : parts) {
      const int32_t* ids = rows.ids + static_cast<int64_t>(part.row) * rows.columns + part.start;
      pieces.list.push_back({ids, part.stop - part.start, rows.past[part.row] + part.start,
                             pages_.row(rows.slots[part.row]), Choice(draws[part.row])});
      results.push_back(out + static_cast<int64_t>(part.row) * width);
    }
    Sizes sizes = pieces.sizes(0);
    std::optional<size_t> program = plan.program_for(phase, sizes.rows, sizes.batch, sizes.context);
    if (!program) {
      throw Error(DSV2_INTERNAL, "No program of the plan holds " + std::to_string(sizes.rows) + " tokens of " +
                                     std::to_string(sizes.batch) + " sequences.",
                  "Report this as a bug, with the manifest.");
    }
    executor_->run(*program, pieces, output, results);
    for (const Part& part : parts) done[part.row] = part.stop;
  }
}

void PagedStore::put(int64_t slot, const float* cached, int64_t count, int64_t stride) {
  pages_.reserve({slot}, {count});
  std::vector<int64_t> at;
  for (int64_t i = 0; i < count; ++i) at.push_back(pages_.row(slot)[i / pool_->size] * pool_->size + i % pool_->size);
  executor_->write_rows(at, cached, stride);
}

void PagedStore::release(const std::vector<int64_t>& slots, bool) {
  for (int64_t slot : slots) pages_.release(slot, 0);
}

}  // namespace dsv2
