// A session's sequences on the CPU, one buffer a slot, and the program calls that add to them.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "ort/cache.h"
#include "ort/program.h"
#include "runtime/store.h"

namespace dsv2 {

// Most new tokens of a row in one program call.
inline constexpr int64_t kChunkTokens = 512;
// Most memory for one layer's attention scores, batch x heads x new x (cached + new) x 4 bytes.
inline constexpr int64_t kScoreBytes = 256 << 20;

// New tokens per row for the next call, padding included, of rows that have past[b] positions and left[b] tokens to go,
// ``context`` bound. No padded position may pass the last one of the rotary table, max_seq_len - 1.
int64_t chunk_width(const std::vector<int64_t>& past, const std::vector<int64_t>& left, int64_t context, int64_t heads,
                    int64_t max_seq_len);

// The programs of an engine by phase, which its sessions share.
struct OrtPrograms {
  ModelConfig config;
  int64_t max_seq_len;
  std::map<std::string, Program> phases;
};

class ContiguousStore : public Store {
 public:
  ContiguousStore(std::shared_ptr<const OrtPrograms> programs, int64_t slots, int64_t max_tokens);

  void append(Phase phase, const Rows& rows, float* logits) override;
  void choose(Phase phase, const Rows& rows, const std::vector<Draw>& draws, int32_t* tokens) override;
  void put(int64_t slot, const float* cached, int64_t count, int64_t stride) override;
  // Rows of a slot stay until others take their place; with no sequence left, memory is given back.
  void release(const std::vector<int64_t>& slots, bool empty) override;

 private:
  // One program call over consecutive slots first .. -> logits [batch, vocab]; Error numeric for NaN or infinity.
  std::vector<float> call(const std::string& phase, ProgramInputs inputs, int64_t first);

  const std::shared_ptr<const OrtPrograms> programs_;
  Cache cache_;
};

}  // namespace dsv2
