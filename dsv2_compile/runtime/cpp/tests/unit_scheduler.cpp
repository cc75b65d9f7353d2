// The scheduler with several threads at once, over a session without an engine. Run under ThreadSanitizer too.
#include <atomic>
#include <chrono>
#include <future>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "fake_calls.h"
#include "runtime/scheduler.h"

using namespace dsv2;

namespace {

constexpr int64_t kVocab = 64, kMaxTokens = 40;
constexpr int32_t kNan = 13;

std::unique_ptr<Scheduler> open(Options options = {4, 1000}, Pages pages = {}, int64_t max_batch = 3) {
  return std::make_unique<Scheduler>(std::make_shared<FakeCalls>(kVocab, max_batch, std::set<int32_t>{kNan}),
                                     Limits{kVocab, kMaxTokens, pages}, std::vector<int64_t>{}, options);
}

Request request(std::vector<int32_t> prompt, int64_t count) { return {std::move(prompt), count, {}, 0, {}}; }

// What one request gave, for any thread to look at when it has ended.
struct Answer {
  std::vector<int32_t> tokens;
  std::promise<dsv2_finish> finish;
  dsv2_code code = DSV2_OK;

  OnToken on_token() {
    return [this](const Event& event) {
      if (event.token != kNoToken) tokens.push_back(event.token);
      if (event.error) code = event.error->code;
      if (event.finish) finish.set_value(event.finish);
      return false;
    };
  }
};

template <class Body>
dsv2_code code(Body body) {
  try {
    body();
    return DSV2_OK;
  } catch (const Error& e) {
    CHECK(!e.cause.empty() && !e.remedy.empty());
    return e.code;
  }
}

// Greedy continuation, computed alone.
std::vector<int32_t> expected(std::vector<int32_t> sequence, int64_t count) {
  std::vector<int32_t> made;
  for (int64_t i = 0; i < count; ++i) {
    made.push_back(sample(fake_logits(sequence, kVocab).data(), kVocab, {}));
    sequence.push_back(made.back());
    if (made.back() == kNan) break;
  }
  return made;
}

void check_many_threads() {
  auto scheduler = open();
  std::atomic<int> finished{0};
  std::vector<std::thread> threads;
  for (int32_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int32_t i = 0; i < 50; ++i) {
        Answer answer;
        std::vector<int32_t> prompt = {t, 20 + i % 40, 3, 4, 5};
        uint64_t number = scheduler->submit(request(prompt, 1 + i % 7), answer.on_token());
        if (i % 5 == 4) scheduler->cancel(number);
        dsv2_finish finish = answer.finish.get_future().get();
        std::vector<int32_t> all = expected(prompt, 1 + i % 7);
        if (finish == DSV2_LENGTH) CHECK(answer.tokens == all);
        if (finish == DSV2_CANCELLED) CHECK(i % 5 == 4 && answer.tokens.size() <= all.size());
        if (finish == DSV2_FAILED) CHECK(answer.code == DSV2_NUMERIC && all.back() == kNan);
        CHECK(finish != DSV2_STOP);
        ++finished;
        scheduler->stats();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  scheduler->drain();
  const dsv2_scheduler_stats stats = scheduler->stats();
  CHECK(finished == 200 && stats.submitted == 200 && stats.waiting == 0 && stats.live == 0);
  CHECK(stats.finished + stats.cancelled + stats.failed == 200 && stats.max_batch == 3);
}

void check_callbacks() {
  auto scheduler = open();
  std::promise<void> done;
  std::vector<dsv2_finish> seen;
  std::vector<dsv2_code> refusals;
  Answer nested;
  // a callback submits, cancels itself, and cannot wait for itself
  scheduler->submit(request({1}, 1000), [&](const Event& event) {
    seen.push_back(event.finish);
    if (seen.size() == 1) {
      scheduler->submit(request({2}, 2), nested.on_token());
      refusals = {code([&] { scheduler->drain(); }), code([&] { scheduler->close(); })};
      scheduler->cancel(event.request);
    }
    if (event.finish) done.set_value();
    return false;
  });
  done.get_future().get();
  CHECK(seen.size() == 2 && seen.back() == DSV2_CANCELLED);
  CHECK(refusals == std::vector<dsv2_code>({DSV2_USAGE, DSV2_USAGE}));
  CHECK(nested.finish.get_future().get() == DSV2_LENGTH && nested.tokens == expected({2}, 2));

  std::atomic<int> calls{0};
  scheduler->submit(request({1}, 1000), [&](const Event&) { return ++calls > 0; });
  scheduler->drain();
  CHECK(calls == 2);  // its token, and that it has been cancelled

  Answer other;
  scheduler->submit(request({3}, 20), other.on_token());
  calls = 0;
  scheduler->submit(request({1}, 1000), [&](const Event&) -> bool {
    ++calls;
    throw std::runtime_error("of a callback");
  });
  scheduler->submit(request({1}, 2), nullptr);
  scheduler->drain();
  CHECK(calls == 1 && other.tokens == expected({3}, 20));
  CHECK(scheduler->stats().cancelled == 3);
}

void check_refusals() {
  auto scheduler = open({4, 2}, {4, 5, 5}, 1);
  CHECK(code([&] { scheduler->submit(request({}, 1), nullptr); }) == DSV2_USAGE);
  CHECK(code([&] { scheduler->submit(request({64}, 1), nullptr); }) == DSV2_USAGE);
  CHECK(code([&] { scheduler->submit(request({1}, 0), nullptr); }) == DSV2_USAGE);
  CHECK(code([&] { scheduler->submit(request(std::vector<int32_t>(41), 1), nullptr); }) == DSV2_USAGE);
  CHECK(code([&] { scheduler->submit(request({1}, 20), nullptr); }) == DSV2_RESOURCE);  // 6 pages of 5
  CHECK(code([&] { scheduler->submit(request({1}, int64_t{1} << 62), nullptr); }) == DSV2_RESOURCE);
  std::promise<void> held, release;
  scheduler->submit(request({1}, 2), [&](const Event& event) {
    if (event.finish == DSV2_RUNNING) {
      held.set_value();
      release.get_future().wait();
    }
    return false;
  });
  held.get_future().wait();
  for (int i = 0; i < 2; ++i) scheduler->submit(request({1}, 1), nullptr);
  CHECK(code([&] { scheduler->submit(request({1}, 1), nullptr); }) == DSV2_RESOURCE);  // the queue is full
  const dsv2_scheduler_stats stats = scheduler->stats();
  CHECK(stats.waiting == 2 && stats.live == 1 && stats.pages_committed == 1 && stats.page_count == 5);
  release.set_value();
  scheduler->drain();
  CHECK(scheduler->stats().finished == 3 && scheduler->stats().pages_committed == 0);
}

// Several threads drain and close while others submit: every request ends once, and nothing is called after close.
void check_close() {
  for (int round = 0; round < 20; ++round) {
    auto scheduler = open();
    std::atomic<int> taken{0}, ended{0};
    std::atomic<bool> closed{false};
    std::vector<std::thread> threads;
    for (int t = 0; t < 3; ++t) {
      threads.emplace_back([&] {
        while (code([&] {
                 scheduler->submit(request({1, 2, 3}, 30), [&](const Event& event) {
                   CHECK(!closed);
                   ended += event.finish != DSV2_RUNNING;
                   return false;
                 });
                 ++taken;
               }) != DSV2_USAGE) {
          std::this_thread::yield();
        }
      });
    }
    threads.emplace_back([&] { scheduler->drain(); });
    threads.emplace_back([&] { scheduler->close(); });
    std::this_thread::sleep_for(std::chrono::milliseconds(round % 4));
    scheduler->close();
    closed = true;
    for (std::thread& thread : threads) thread.join();
    CHECK(ended == taken);
    scheduler->drain();
    scheduler->cancel(0);
    CHECK(scheduler->stats().live == 0 && scheduler->stats().waiting == 0);
  }
}

// What is in flight when the scheduler is closed goes no further.
void check_close_cancels() {
  auto scheduler = open();
  std::promise<void> held, release;
  std::vector<Event> seen, behind;
  scheduler->submit(request({1}, 30), [&](const Event& event) {
    seen.push_back(event);
    if (seen.size() > 1) return false;
    held.set_value();
    release.get_future().wait();
    return false;
  });
  held.get_future().wait();
  scheduler->submit(request({2}, 30), [&](const Event& event) { return behind.push_back(event), false; });
  std::thread closer([&] { scheduler->close(); });
  while (code([&] { scheduler->submit(request({3}, 1), nullptr); }) != DSV2_USAGE) std::this_thread::yield();
  release.set_value();
  closer.join();
  CHECK(seen.size() == 2 && seen[1].finish == DSV2_CANCELLED);
  CHECK(behind.size() == 1 && behind[0].finish == DSV2_CANCELLED);
}

// A failure that is of no request fails them all, and the scheduler says why.
void check_broken() {
  class Broken : public FakeCalls {
   public:
    Broken() : FakeCalls(kVocab, 2) {}
    void step(const TokenRows&, const Draw*, int32_t*) override { throw std::runtime_error("broken"); }
  };
  Scheduler scheduler(std::make_shared<Broken>(), {kVocab, kMaxTokens, {}}, {}, {});
  Answer first, second;
  scheduler.submit(request({1}, 5), first.on_token());
  CHECK(first.finish.get_future().get() == DSV2_FAILED);
  CHECK(first.code == DSV2_INTERNAL && first.tokens.size() == 1);
  CHECK(code([&] { scheduler.submit(request({1}, 5), second.on_token()); }) == DSV2_USAGE);
  scheduler.drain();
}

}  // namespace

int main() {
  check_many_threads();
  check_callbacks();
  check_refusals();
  check_close();
  check_close_cancels();
  check_broken();
  return checks_result();
}
