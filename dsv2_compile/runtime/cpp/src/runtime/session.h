// Sequences in flight: which slot holds how many tokens, and the calls that add to them.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "base/error.h"
#include "engine/manifest.h"
#include "runtime/arguments.h"
#include "runtime/batch.h"
#include "runtime/store.h"

namespace dsv2 {

// ``max_batch`` slots of up to ``max_tokens`` positions. Opened by Engine::session.
//
// A slot is one sequence's place in the cache. Calls from several threads wait for each other. A call that is refused
// (Error usage) changes nothing. A call that fails on the way leaves the sequences as they were; only prefill, start
// and restore, which begin by discarding what their slots held, leave those free.
class Session : public Calls {
 public:
  Session(const ModelConfig& config, int64_t max_batch, int64_t max_tokens, std::unique_ptr<Store> store);

  int64_t max_batch() const override { return static_cast<int64_t>(lengths_.size()); }

  // -> logits [rows, vocab] of each row's last valid token.
  void prefill(const TokenRows& rows, float* logits);
  void extend(const TokenRows& rows, float* logits);
  void decode(const TokenRows& rows, float* logits);
  // The same -> the next token of each row, chosen by draws[row]: without the logits.
  void start(const TokenRows& rows, const Draw* draws, int32_t* next) override;
  void resume(const TokenRows& rows, const Draw* draws, int32_t* next) override;
  void step(const TokenRows& rows, const Draw* draws, int32_t* next) override;
  // Starts sequences from cache rows [layers, rows, positions, cache_dim] computed elsewhere.
  void restore(const float* cached, int64_t rows, int64_t positions, const int32_t* lengths, const int32_t* slots);
  // Ends the sequences in ``slots``; null ends all. A slot that holds none is an Error usage.
  void free(const int32_t* slots, int64_t count) override;
  // Cached positions of the sequence in ``slot``.
  int64_t length(int32_t slot);
  // Gives the cache back; every later call throws ``why``. Waits for a call that runs.
  void close(Error why = {DSV2_USAGE, "The session is closed.", "Open a new one."});

 private:
  void require_open() const;
  std::vector<int64_t> live() const;
  Rows started(const TokenRows& rows);
  Rows extended(const TokenRows& rows);
  void require_live(Rows* rows) const;
  void require_room(const Rows& rows) const;
  void release(const std::vector<int64_t>& slots);
  void append(Phase phase, const Rows& rows, float* logits);
  void choose(Phase phase, const Rows& rows, const std::vector<Draw>& draws, int32_t* next);
  void grow(const Rows& rows);

  const ModelConfig config_;
  const int64_t max_tokens_;
  std::mutex mutex_;
  std::vector<int64_t> lengths_;  // kFree: no sequence
  std::unique_ptr<Store> store_;
  std::optional<Error> closed_;
};

}  // namespace dsv2
