#include "runtime/scheduler.h"

#include <string>
#include <system_error>
#include <utility>

namespace dsv2 {

class Scheduler::Unlocked : public Calls {
 public:
  Unlocked(std::shared_ptr<Calls> session, std::mutex* mutex) : session_(std::move(session)), mutex_(mutex) {}

  int64_t max_batch() const override { return session_->max_batch(); }
  void start(const TokenRows& rows, const Draw* draws, int32_t* next) override {
    call(&Calls::start, rows, draws, next);
  }
  void resume(const TokenRows& rows, const Draw* draws, int32_t* next) override {
    call(&Calls::resume, rows, draws, next);
  }
  void step(const TokenRows& rows, const Draw* draws, int32_t* next) override { call(&Calls::step, rows, draws, next); }
  void free(const int32_t* slots, int64_t count) override { session_->free(slots, count); }

 private:
  // The scheduler's thread holds the lock.
  void call(void (Calls::*method)(const TokenRows&, const Draw*, int32_t*), const TokenRows& rows, const Draw* draws,
            int32_t* next) {
    struct Released {
      explicit Released(std::mutex* held) : mutex(held) { mutex->unlock(); }
      ~Released() { mutex->lock(); }
      std::mutex* mutex;
    } released(mutex_);
    (session_.get()->*method)(rows, draws, next);
  }

  std::shared_ptr<Calls> session_;
  std::mutex* mutex_;
};

Scheduler::Scheduler(std::shared_ptr<Calls> session, Limits limits, std::vector<int64_t> eos, Options options)
    : calls_(std::make_unique<Unlocked>(std::move(session), &mutex_)),
      batch_(calls_.get(), limits, std::move(eos), options) {
  try {
    thread_ = std::thread([this] { work(); });
  } catch (const std::system_error& e) {
    throw Error(DSV2_RESOURCE, std::string("No thread can be started: ") + e.what() + ".", "Close some schedulers.");
  }
}

Scheduler::~Scheduler() { close(); }

uint64_t Scheduler::submit(Request request, OnToken on_token) {
  auto shared = on_token ? std::make_shared<OnToken>(std::move(on_token)) : nullptr;
  std::lock_guard lock(mutex_);
  if (closing_) throw Error(DSV2_USAGE, cause_, "Open another one.");
  const uint64_t number = next_number_;
  auto place = submissions_.emplace(number, std::move(shared)).first;
  try {
    batch_.submit(number, std::move(request));
  } catch (...) {
    submissions_.erase(place);
    throw;
  }
  ++next_number_;
  wake_.notify_one();
  return number;
}

void Scheduler::cancel(uint64_t number) {
  std::lock_guard lock(mutex_);
  if (submissions_.count(number)) batch_.cancel(number);
}

dsv2_scheduler_stats Scheduler::stats() {
  std::lock_guard lock(mutex_);
  return batch_.stats();
}

void Scheduler::drain() {
  require_other_thread();
  std::unique_lock lock(mutex_);
  if (resting_ && !batch_.busy()) return;
  rested_.wait(lock, [this, seen = rests_] { return ended_ || rests_ != seen; });
}

void Scheduler::close() {
  require_other_thread();
  {
    std::lock_guard lock(mutex_);
    closing_ = true;
    wake_.notify_one();
  }
  std::lock_guard lock(joining_);
  if (thread_.joinable()) thread_.join();
}

void Scheduler::require_other_thread() const {
  if (std::this_thread::get_id() == worker_) {
    throw Error(DSV2_USAGE, "A callback cannot wait for its own scheduler.", "Wait for it in another thread.");
  }
}

void Scheduler::work() {
  worker_ = std::this_thread::get_id();
  std::unique_lock lock(mutex_);
  try {
    serve(&lock);
  } catch (const Error& e) {  // of none of the requests, so none can go on
    fail(e, &lock);
  } catch (const std::exception& e) {
    fail(Error(DSV2_INTERNAL, e.what(), "Please report this."), &lock);
  }
  closing_ = ended_ = true;
  calls_.reset();  // gives the cache back
  rested_.notify_all();
}

// Called with the lock held, as all below. Returns when the scheduler is closed and nothing is left.
void Scheduler::serve(std::unique_lock<std::mutex>* lock) {
  while (true) {
    if (batch_.busy()) {
      for (const Delivery& delivery : step()) deliver(delivery, lock);
      continue;
    }
    if (closing_) return;
    ++rests_;
    rested_.notify_all();
    resting_ = true;
    wake_.wait(*lock, [this] { return closing_ || batch_.busy(); });
    resting_ = false;
  }
}

std::vector<Scheduler::Delivery> Scheduler::step() {
  if (closing_) {
    for (const auto& submission : submissions_) batch_.cancel(submission.first);
  }
  std::vector<Delivery> deliveries;
  for (Event& event : batch_.step()) {
    auto submission = submissions_.find(event.request);
    deliveries.push_back({std::move(event), submission->second});
    if (deliveries.back().event.finish) submissions_.erase(submission);
  }
  return deliveries;
}

void Scheduler::deliver(const Delivery& delivery, std::unique_lock<std::mutex>* lock) {
  if (!delivery.on_token || !*delivery.on_token) return;
  bool cancels;
  lock->unlock();
  try {
    cancels = (*delivery.on_token)(delivery.event);
  } catch (...) {
    cancels = true;
    *delivery.on_token = nullptr;
  }
  lock->lock();
  if (cancels && !delivery.event.finish) batch_.cancel(delivery.event.request);
}

void Scheduler::fail(const Error& error, std::unique_lock<std::mutex>* lock) {
  closing_ = true;
  cause_ = "The scheduler has ended: " + error.cause;
  for (auto& [number, on_token] : std::exchange(submissions_, {})) {
    deliver({{number, kNoToken, DSV2_FAILED, error}, on_token}, lock);
  }
}

}  // namespace dsv2
