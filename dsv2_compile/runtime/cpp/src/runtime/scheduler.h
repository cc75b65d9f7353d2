// One thread that runs a batch for many: requests come from any thread, tokens go out as they are made.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "runtime/batch.h"

namespace dsv2 {

// True cancels the request. One that throws cancels it too, and is called no more.
using OnToken = std::function<bool(const Event&)>;

// Runs requests together, as they come: each joins the batch when there is room and leaves when it has ended. Opened by
// Engine::scheduler. Everything may be called from any thread. Callbacks run on the scheduler's own, one at a time:
// what they do delays all requests. When the engine is closed, all that is left fails.
class Scheduler {
 public:
  Scheduler(std::shared_ptr<Calls> session, Limits limits, std::vector<int64_t> eos, Options options);
  ~Scheduler();

  const Limits& limits() const { return batch_.limits(); }
  // ``on_token``, which may be empty, is called for every token and, where the request ends without one, once more.
  // Error usage for a bad argument; resource where the queue is full, or the cache could never hold it.
  uint64_t submit(Request request, OnToken on_token);
  // Returns at once; a token that is being made may still come. Nothing happens if the request has ended.
  void cancel(uint64_t number);
  dsv2_scheduler_stats stats();
  // Returns when nothing waits, nothing is live, and all callbacks have returned.
  void drain();
  // Cancels what is left; returns after the last callback. Harmless the second time.
  void close();
  // Error usage on the scheduler's own thread, which must not wait for itself.
  void require_other_thread() const;

 private:
  // The calls of a session with the lock let go meanwhile: they take long.
  class Unlocked;
  struct Delivery {
    Event event;
    std::shared_ptr<OnToken> on_token;
  };

  void work();
  void serve(std::unique_lock<std::mutex>* lock);
  std::vector<Delivery> step();
  void deliver(const Delivery& delivery, std::unique_lock<std::mutex>* lock);
  void fail(const Error& error, std::unique_lock<std::mutex>* lock);

  std::mutex mutex_;
  std::condition_variable wake_, rested_;
  std::unique_ptr<Unlocked> calls_;
  Batch batch_;
  std::map<uint64_t, std::shared_ptr<OnToken>> submissions_;
  uint64_t next_number_ = 0;
  uint64_t rests_ = 0;    // how often there was nothing to do
  bool resting_ = false;  // the thread waits for something to do
  bool closing_ = false;  // takes no more
  bool ended_ = false;    // the thread calls back no more
  std::string cause_ = "The scheduler is closed.";
  std::atomic<std::thread::id> worker_{};
  std::mutex joining_;
  std::thread thread_;  // last: it uses all of the above
};

}  // namespace dsv2
