// Continuous batching: sequences join and leave a running batch between steps. No thread, no clock.
//
// The Python runtime has the same rules (runtime/batch.py); tests/vectors/batch holds both to them.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <set>
#include <vector>

#include "runtime/arguments.h"
#include "runtime/random.h"
#include "runtime/requests.h"

namespace dsv2 {

// What a batch needs of a Session.
class Calls {
 public:
  virtual ~Calls() = default;
  virtual int64_t max_batch() const = 0;
  virtual void start(const TokenRows& rows, const Draw* draws, int32_t* next) = 0;
  virtual void resume(const TokenRows& rows, const Draw* draws, int32_t* next) = 0;
  virtual void step(const TokenRows& rows, const Draw* draws, int32_t* next) = 0;
  virtual void free(const int32_t* slots, int64_t count) = 0;
};

struct Options {
  int64_t chunk = 0;        // most prompt tokens a step, 0: no limit
  int64_t max_waiting = 0;  // requests that wait for a slot, 0: no limit
};

// Requests in one queue, first come first served, over the slots of ``calls``.
//
// A request waits until a slot is free and its pages can be set aside for all that it may come to: what has begun is
// never put off. One that does not fit yet holds up those behind it, so none waits for ever.
//
// submit, cancel and stats may come while a call of the session runs, so a lock around this need not be held then.
class Batch {
 public:
  Batch(Calls* calls, Limits limits, std::vector<int64_t> eos, Options options);
  ~Batch();

  const Limits& limits() const { return limits_; }
  bool busy() const { return !waiting_.empty() || !live_.empty(); }
  // Queues ``request``; ``number`` stands for it from now on. Refused at once: Error usage for what is wrong in itself,
  // resource for a full queue and for more pages than there are.
  void submit(uint64_t number, Request request);
  // It leaves with the next step. Nothing happens to one that has ended.
  void cancel(uint64_t number) { cancelled_.insert(number); }
  // Cancelled requests leave; those in flight decode; waiting ones are admitted; prompts are computed.
  std::vector<Event> step();
  // finished: by DSV2_STOP or DSV2_LENGTH. prompt_tokens that were computed, new_tokens that were given out, steps that
  // had something to compute.
  dsv2_scheduler_stats stats() const;

 private:
  struct Sequence;
  using Owned = std::unique_ptr<Sequence>;
  using SequenceRows = std::vector<Sequence*>;
  using Call = void (Calls::*)(const TokenRows&, const Draw*, int32_t*);

  void leave(std::vector<Event>* events);
  bool decode(std::vector<Event>* events);
  void admit();
  bool prefill(std::vector<Event>* events);
  void run(Call call, const SequenceRows& rows, std::vector<Event>* events);
  void call_isolated(Call call, const SequenceRows& rows, const std::vector<Draw>& draws, std::vector<int32_t>* next,
                     std::vector<std::optional<Error>>* errors);
  void call_rows(Call call, const SequenceRows& rows, const Draw* draws, int32_t* next);
  Event advance(Sequence* sequence, int32_t token);
  Event end(Sequence* sequence, Event event);

  Calls* calls_;
  const Limits limits_;
  const std::vector<int64_t> eos_;
  const Options options_;
  std::deque<Owned> waiting_;
  std::vector<Owned> live_;  // in the order of admission
  std::set<uint64_t> cancelled_;
  dsv2_scheduler_stats counts_{};
};

}  // namespace dsv2
