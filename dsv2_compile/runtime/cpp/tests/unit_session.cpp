// Sessions of an engine without files: what they refuse, what a call that fails leaves, and their end.
#include <limits>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "fake_engine.h"

using namespace dsv2;

namespace {

using Ids = std::vector<int32_t>;

// The cause of what ``body`` throws; "" if it throws nothing.
template <class Body>
std::string cause(Body body, dsv2_code code = DSV2_USAGE) {
  try {
    body();
    return "";
  } catch (const Error& e) {
    CHECK(e.code == code && !e.remedy.empty());
    return e.cause;
  }
}

struct Driver {
  explicit Driver(int64_t max_batch = 3, int64_t max_tokens = 8)
      : engine(fake_engine()), session(engine->session(max_batch, max_tokens)) {}

  // One row a prompt, padded with what would be refused if it were looked at.
  TokenRows rows(const std::vector<Ids>& prompts, const Ids* slots = nullptr) {
    size_t columns = 0;
    for (const Ids& p : prompts) columns = std::max(columns, p.size());
    tokens.assign(prompts.size() * columns, -7);
    lengths.clear();
    for (size_t b = 0; b < prompts.size(); ++b) {
      std::copy(prompts[b].begin(), prompts[b].end(), tokens.begin() + static_cast<std::ptrdiff_t>(b * columns));
      lengths.push_back(static_cast<int32_t>(prompts[b].size()));
    }
    return {tokens.data(), static_cast<int64_t>(prompts.size()), static_cast<int64_t>(columns), lengths.data(),
            slots ? slots->data() : nullptr};
  }

  std::vector<float> prefill(const std::vector<Ids>& prompts, const Ids* slots = nullptr) {
    std::vector<float> logits(prompts.size() * kVocab);
    session->prefill(rows(prompts, slots), logits.data());
    return logits;
  }
  std::vector<float> extend(const std::vector<Ids>& prompts, const Ids* slots = nullptr) {
    std::vector<float> logits(prompts.size() * kVocab);
    session->extend(rows(prompts, slots), logits.data());
    return logits;
  }
  std::vector<float> decode(const Ids& ids, const Ids* slots = nullptr) {
    std::vector<float> logits(ids.size() * kVocab);
    session->decode({ids.data(), static_cast<int64_t>(ids.size()), 1, nullptr, slots ? slots->data() : nullptr},
                    logits.data());
    return logits;
  }

  std::shared_ptr<Engine> engine;
  std::shared_ptr<Session> session;
  Ids tokens, lengths;
};

std::vector<float> both(const Ids& a, const Ids& b) {
  std::vector<float> logits = fake_logits(a, kVocab), other = fake_logits(b, kVocab);
  logits.insert(logits.end(), other.begin(), other.end());
  return logits;
}

void check_calls() {
  Driver d;
  const Ids slots = {2, 0};
  CHECK(d.prefill({{1, 2, 3}, {4}}, &slots) == both({1, 2, 3}, {4}));
  CHECK(d.extend({{5}, {6, 7}}, &slots) == both({1, 2, 3, 5}, {4, 6, 7}));
  CHECK(d.decode({8, 9}, &slots) == both({1, 2, 3, 5, 8}, {4, 6, 7, 9}));
  CHECK(d.session->length(2) == 5 && d.session->length(0) == 4);
  CHECK(d.prefill({{1}}, &slots) == fake_logits({1}, kVocab));  // what slot 2 held is discarded
  CHECK(d.session->length(2) == 1);

  const Draw draws[2] = {};
  Ids next(2);
  auto greedy = [](const Ids& sequence) { return sample(fake_logits(sequence, kVocab).data(), kVocab, {}); };
  d.session->start(d.rows({{1, 2}, {3}}), draws, next.data());
  CHECK(next == Ids({greedy({1, 2}), greedy({3})}));
  d.session->resume(d.rows({{4}, {5, 6}}), draws, next.data());
  CHECK(next == Ids({greedy({1, 2, 4}), greedy({3, 5, 6})}));
  const Ids ids = {7, 8};
  d.session->step({ids.data(), 2, 1, nullptr, nullptr}, draws, next.data());
  CHECK(next == Ids({greedy({1, 2, 4, 7}), greedy({3, 5, 6, 8})}));
}

void check_refusals() {
  Driver d;
  d.prefill({{1, 2, 3}, {4}});
  const Ids outside = {0, 3}, negative = {-1, 0}, twice = {1, 1}, third = {2};
  CHECK(cause([&] { d.prefill({{}}); }) == "tokens is empty.");
  CHECK(cause([&] { d.prefill({}); }) == "tokens is empty.");
  CHECK(cause([&] { d.prefill({{1, 2}, {}}); }) == "Row 1 has no tokens.");
  CHECK(cause([&] { d.prefill({{1}, {64, 2}}); }) == "Token 64 is outside the vocabulary of 64.");
  CHECK(cause([&] { d.prefill({{1}, {2, -1}}); }) == "Token -1 is outside the vocabulary of 64.");
  CHECK(cause([&] { d.prefill({Ids(9, 1)}); }) == "Row 0 has 0 tokens cached and 9 new, the session holds 8.");
  CHECK(cause([&] { d.extend({{1}, Ids(8, 1)}); }) == "Row 1 has 1 tokens cached and 8 new, the session holds 8.");
  CHECK(cause([&] { d.prefill({{1}, {1}, {1}, {1}}); }) == "Slot 3 is outside 0..2.");
  CHECK(cause([&] { d.prefill({{1}, {1}}, &outside); }) == "Slot 3 is outside 0..2.");
  CHECK(cause([&] { d.prefill({{1}, {1}}, &negative); }) == "Slot -1 is outside 0..2.");
  CHECK(cause([&] { d.prefill({{1}, {1}}, &twice); }) == "A slot is given twice.");
  CHECK(cause([&] { d.decode({1}, &third); }) == "Slot 2 holds no sequence.");
  CHECK(cause([&] { d.extend({{1}}, &third); }) == "Slot 2 holds no sequence.");
  CHECK(cause([&] { d.session->length(2); }) == "Slot 2 holds no sequence.");
  CHECK(cause([&] { d.session->free(third.data(), 1); }) == "Slot 2 holds no sequence.");
  CHECK(cause([&] { d.session->free(third.data(), 0); }) == "slots is empty.");

  float logits[kVocab];
  const int32_t one = 1;
  constexpr int64_t kMost = std::numeric_limits<int64_t>::max();
  for (int64_t size : {int64_t{-1}, int64_t{0}, int64_t{1} << 31, kMost}) {
    CHECK(!cause([&] { d.session->prefill({&one, size, 1, &one, nullptr}, logits); }).empty());
    CHECK(!cause([&] { d.session->decode({&one, size, 1, nullptr, nullptr}, logits); }).empty());
  }
  for (int64_t size : {int64_t{-1}, int64_t{0}, int64_t{1} << 31, kMost}) {
    CHECK(!cause([&] { d.session->prefill({&one, 1, size, &one, nullptr}, logits); }).empty());
  }
  const int32_t two = 2;
  CHECK(cause([&] { d.session->prefill({&one, 1, 1, &two, nullptr}, logits); }) ==
        "lengths[0] is 2, tokens has 1 columns.");
  const Draw wrong{{-1, 0, 1, 0}, 0};
  int32_t next;
  CHECK(cause([&] { d.session->start(d.rows({{1}}), &wrong, &next); }) == "Sampling temperature is -1.");

  CHECK(d.decode({5, 6}) == both({1, 2, 3, 5}, {4, 6}));  // nothing of all this has changed anything
}

void check_failures() {
  Driver d;
  d.prefill({{1, 2}, {3}});
  CHECK(cause([&] { d.decode({4, kNan}); }, DSV2_NUMERIC) == "The fake gave NaN.");
  CHECK(cause([&] { d.extend({{kNan}, {4}}); }, DSV2_NUMERIC) == "The fake gave NaN.");
  CHECK(d.session->length(0) == 2 && d.session->length(1) == 1);
  CHECK(d.decode({5, 6}) == both({1, 2, 5}, {3, 6}));
  CHECK(cause([&] { d.prefill({{kNan}}); }, DSV2_NUMERIC) == "The fake gave NaN.");
  CHECK(cause([&] { d.session->length(0); }) == "Slot 0 holds no sequence.");
  CHECK(d.session->length(1) == 2);
}

void check_restore() {
  Driver d;
  std::vector<float> cached(kLayers * 2 * 4 * kWidth);
  const Ids lengths = {4, 2}, slots = {1, 2}, short_lengths = {5, 1};
  d.session->restore(cached.data(), 2, 4, lengths.data(), slots.data());
  CHECK(d.session->length(1) == 4 && d.session->length(2) == 2);
  CHECK(cause([&] { d.session->restore(cached.data(), 2, 4, short_lengths.data(), nullptr); }) ==
        "lengths[0] is 5, rows has 4 columns.");
  cached[5] = std::numeric_limits<float>::infinity();
  CHECK(cause([&] { d.session->restore(cached.data(), 2, 4, lengths.data(), slots.data()); }) ==
        "Cached rows are [2, 2, 4, 3] or not finite, expected [2, batch, positions, 3].");
  CHECK(d.session->length(1) == 4);
  cached[5] = 0;
  cached[4 * kWidth] = -1;  // the second row finds no room: both are free
  CHECK(cause([&] { d.session->restore(cached.data(), 2, 4, lengths.data(), slots.data()); }, DSV2_RESOURCE) ==
        "The fake has no room.");
  CHECK(!cause([&] { d.session->length(1); }).empty() && !cause([&] { d.session->length(2); }).empty());

  auto owned = std::make_unique<FakeStore>();
  const FakeStore* store = owned.get();
  Session session(d.engine->manifest().model, 2, 8, std::move(owned));
  CHECK(!cause([&] { session.restore(cached.data(), 2, 4, lengths.data(), nullptr); }, DSV2_RESOURCE).empty());
  CHECK(!store->holds());
}

void check_limits() {
  std::shared_ptr<Engine> engine = fake_engine();
  CHECK(cause([&] { engine->session(5, 0); }) == "max_batch is 5, this engine takes 1..4.");
  CHECK(cause([&] { engine->session(-1, 0); }) == "max_batch is -1, this engine takes 1..4.");
  CHECK(cause([&] { engine->session(1, 33); }) == "max_tokens is 33, this engine takes 1..32.");
  CHECK(cause([&] { engine->session(0, 0); }) == "max_batch is 0, this engine takes 1..4.");
  CHECK(engine->session(kMaxBatch, 0)->max_batch() == kMaxBatch);
  CHECK(engine->scheduler(0, 0, {})->stats().max_batch == kMaxBatch);
}

void check_close() {
  Driver d;
  d.prefill({{1}});
  d.session->free(nullptr, 0);
  CHECK(cause([&] { d.session->length(0); }) == "Slot 0 holds no sequence.");
  d.session->close();
  d.session->close();
  CHECK(cause([&] { d.prefill({{1}}); }) == "The session is closed.");

  std::shared_ptr<Session> other = d.engine->session(1, 0);
  d.engine->close();
  d.engine->close();
  CHECK(cause([&] { other->length(0); }) == "The engine is closed.");
  CHECK(cause([&] { d.engine->session(1, 0); }) == "The engine is closed.");
  CHECK(cause([&] { d.engine->scheduler(1, 0, {}); }) == "The engine is closed.");
  CHECK(cause([&] { d.engine->generate({{{1}, 1, {}, 0, {}}}, nullptr); }) == "The engine is closed.");
}

// An engine that is closed while a session or a scheduler of it is opened leaves none.
void check_close_amid_opening() {
  auto first = std::make_shared<FakeLoaded>(Pages{}), second = std::make_shared<FakeLoaded>(Pages{});
  std::shared_ptr<Engine> engine = fake_engine(first);
  first->on_store = [&] { engine->close(); };
  CHECK(cause([&] { engine->session(1, 0); }) == "The engine is closed.");
  engine = fake_engine(second);
  second->on_pages = [&] { engine->close(); };  // asked for when its session is open
  CHECK(cause([&] { engine->scheduler(1, 0, {}); }) == "The engine is closed.");
}

// Calls of several threads wait for each other, and one of them finds the engine closed.
void check_threads() {
  Driver d(4, kMaxSeqLen);
  std::vector<std::thread> threads;
  for (int32_t slot = 0; slot < 4; ++slot) {
    threads.emplace_back([&d, slot] {
      float logits[kVocab];
      const int32_t token = slot, length = 1;
      std::string ended;
      while (ended.empty()) {
        ended = cause([&] {
          d.session->prefill({&token, 1, 1, &length, &slot}, logits);
          d.session->decode({&token, 1, 1, nullptr, &slot}, logits);
          CHECK(std::vector<float>(logits, logits + kVocab) == fake_logits({token, token}, kVocab));
        });
      }
      CHECK(ended == "The engine is closed.");
    });
  }
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  d.engine->close();
  for (std::thread& thread : threads) thread.join();
}

}  // namespace

int main() {
  check_calls();
  check_refusals();
  check_failures();
  check_restore();
  check_limits();
  check_close();
  check_close_amid_opening();
  check_threads();
  return checks_result();
}
