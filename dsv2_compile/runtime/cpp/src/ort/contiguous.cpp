#include "ort/contiguous.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <string>

#include "runtime/sampling.h"
#include "runtime/sound.h"

namespace dsv2 {
namespace {

// Rows of a call, by number.
using Members = std::vector<size_t>;

// Splits ``rows``, which are in the order of their slots, where the slot numbers have a gap.
std::vector<Members> consecutive(const Members& rows, const std::vector<int64_t>& slots) {
  std::vector<Members> out;
  for (size_t row : rows) {
    if (out.empty() || slots[row] != slots[out.back().back()] + 1) out.emplace_back();
    out.back().push_back(row);
  }
  return out;
}

}  // namespace

int64_t chunk_width(const std::vector<int64_t>& past, const std::vector<int64_t>& left, int64_t context, int64_t heads,
                    int64_t max_seq_len) {
  double cached = static_cast<double>(context);
  double budget =
      static_cast<double>(kScoreBytes) / static_cast<double>(4 * static_cast<int64_t>(past.size()) * heads);
  auto affordable = static_cast<int64_t>((std::sqrt(cached * cached + 4 * budget) - cached) / 2);
  int64_t room = max_seq_len - *std::max_element(past.begin(), past.end());
  int64_t longest = *std::max_element(left.begin(), left.end());
  return std::max<int64_t>(1, std::min({kChunkTokens, affordable, room, longest}));
}

ContiguousStore::ContiguousStore(std::shared_ptr<const OrtPrograms> programs, int64_t slots, int64_t max_tokens)
    : programs_(std::move(programs)),
      cache_(programs_->config.num_hidden_layers, slots, max_tokens, programs_->config.cache_dim()) {}

void ContiguousStore::put(int64_t slot, const float* cached, int64_t count, int64_t stride) {
  cache_.store(slot, {0}, {count}, cached, stride, 0);
}

void ContiguousStore::release(const std::vector<int64_t>&, bool empty) {
  if (empty) cache_.clear();
}

// In chunks; a row is in a call only while it has tokens left. So a finished row keeps its logits and cache, and every
// length a program sees is at least 1.
void ContiguousStore::append(Phase phase, const Rows& rows, float* logits) {
  const std::string program = phase == Phase::decode ? "decode" : "prefill";  // extend is a prefill that begins later
  const size_t vocab = static_cast<size_t>(programs_->config.vocab_size);
  std::vector<int64_t> done(rows.counts.size());
  Members order(rows.counts.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return rows.slots[a] < rows.slots[b]; });
  while (true) {
    Members active;
    for (size_t row : order) {
      if (done[row] < rows.counts[row]) active.push_back(row);
    }
    if (active.empty()) return;
    for (const Members& members : consecutive(active, rows.slots)) {
      ProgramInputs in{};
      std::vector<int64_t> left;
      for (size_t row : members) {
        in.past.push_back(rows.past[row] + done[row]);
        left.push_back(rows.counts[row] - done[row]);
      }
      in.batch = static_cast<int64_t>(members.size());
      in.context = cache_.context(in.past);
      in.width = chunk_width(in.past, left, in.context, programs_->config.num_attention_heads, programs_->max_seq_len);
      for (size_t b = 0; b < members.size(); ++b) {
        size_t row = members[b];
        in.lengths.push_back(std::min(left[b], in.width));
        // Padded with the row's last token. Padding is computed like any token: one that is not the row's own could
        // bring a NaN, and 0 x NaN is NaN.
        const int32_t* ids = rows.ids + static_cast<int64_t>(row) * rows.columns + done[row];
        for (int64_t i = 0; i < in.width; ++i) in.tokens.push_back(ids[std::min(i, in.lengths[b] - 1)]);
        done[row] += in.lengths[b];
      }
      std::vector<float> last = call(program, std::move(in), rows.slots[members[0]]);
      for (size_t b = 0; b < members.size(); ++b) {
        std::copy_n(last.data() + b * vocab, vocab, logits + members[b] * vocab);
      }
    }
  }
}

void ContiguousStore::choose(Phase phase, const Rows& rows, const std::vector<Draw>& draws, int32_t* tokens) {
  const int64_t vocab = programs_->config.vocab_size;
  std::vector<float> logits(static_cast<size_t>(rows.count() * vocab));
  append(phase, rows, logits.data());
  for (int64_t b = 0; b < rows.count(); ++b) {
    tokens[b] = sample(logits.data() + b * vocab, vocab, draws[static_cast<size_t>(b)]);
  }
}

std::vector<float> ContiguousStore::call(const std::string& phase, ProgramInputs in, int64_t first) {
  const ModelConfig& c = programs_->config;
  in.caches = cache_.views(first);
  ProgramOutputs out = programs_->phases.at(phase).run(in);
  const int64_t row_stride = in.width * c.cache_dim(), layer_stride = in.batch * row_stride;
  bool all = all_sound(out.logits.data(), in.batch * c.vocab_size);
  for (int64_t i = 0; i < c.num_hidden_layers * in.batch; ++i) {
    all &= all_sound(out.rows.data() + i * row_stride, in.lengths[static_cast<size_t>(i % in.batch)] * c.cache_dim());
  }
  if (!all) throw unsound(phase, std::to_string(first) + ".." + std::to_string(first + in.batch - 1));
  cache_.store(first, in.past, in.lengths, out.rows.data(), layer_stride, row_stride);
  return std::move(out.logits);
}

}  // namespace dsv2
