// The C ABI over an engine without files: arguments that are wrong, handles that are closed, calls while they close.
#include <atomic>
#include <chrono>
#include <cstring>
#include <new>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "abi.h"
#include "check.h"
#include "fake_engine.h"

using namespace dsv2;

namespace {

dsv2_engine open_engine(Pages pages = {}) { return {Handles::all().add(fake_engine(pages))}; }

// ``code``, and an error that says it with a cause and a remedy.
bool is(dsv2_code expected, dsv2_code code, const dsv2_error& error) {
  return code == expected && error.code == expected && error.cause[0] && error.remedy[0];
}

void check_guard() {
  dsv2_error e{};
  auto fails = [&](dsv2_code code, auto body) {
    return is(code, guarded(&e, body), e) && guarded(nullptr, body) == code;
  };
  CHECK(fails(DSV2_RESOURCE, [] { throw std::bad_alloc(); }));
  CHECK(fails(DSV2_INTERNAL, [] { throw std::runtime_error("out of hand"); }));
  CHECK(std::string(e.cause) == "out of hand");
  CHECK(fails(DSV2_INTERNAL, [] { throw 1; }));
  CHECK(guarded(&e, [] {}) == DSV2_OK);

  // too long: cut before a character, not within
  std::string wide;
  for (int i = 0; i < 2000; ++i) wide += "\xe2\x82\xac";
  CHECK(fails(DSV2_INTEGRITY, [&] { throw Error(DSV2_INTEGRITY, wide, "x" + wide, {"one", "two", wide}); }));
  CHECK(std::strlen(e.cause) == 1023 && std::strlen(e.remedy) == 511);
  CHECK(wide.compare(0, 1023, e.cause) == 0 && ("x" + wide).compare(0, 511, e.remedy) == 0);
  CHECK(std::string(e.problems).compare(0, 8, "one\ntwo\n") == 0 && std::strlen(e.problems) == 8 + 4086);
  CHECK(fails(DSV2_USAGE, [] { throw Error(DSV2_USAGE, "a", "b"); }) && !e.problems[0]);
}

void check_handles() {
  dsv2_error e{};
  const dsv2_engine engine = open_engine(), never{1u << 30}, null{0};
  dsv2_engine_info info;
  dsv2_session session, other;
  dsv2_scheduler scheduler;
  CHECK(dsv2_engine_info_get(engine, &info, &e) == DSV2_OK);
  CHECK(info.vocab_size == kVocab && info.cache_dim == kWidth && info.layers == kLayers && info.bos_token == -1);
  CHECK(info.eos_count == 1 && info.eos_tokens[0] == kEos && info.verified && std::string(info.backend) == "fake");
  CHECK(is(DSV2_USAGE, dsv2_engine_info_get(never, &info, &e), e));
  CHECK(is(DSV2_USAGE, dsv2_engine_info_get(null, &info, &e), e));
  CHECK(dsv2_session_open(engine, 2, 0, &session, &e) == DSV2_OK);
  CHECK(dsv2_session_open(engine, 2, 0, &other, &e) == DSV2_OK);
  CHECK(dsv2_scheduler_open(engine, nullptr, &scheduler, &e) == DSV2_OK);
  CHECK(is(DSV2_USAGE, dsv2_session_close({engine.id}, &e), e));  // another kind
  CHECK(is(DSV2_USAGE, dsv2_engine_close({session.id}, &e), e));
  CHECK(dsv2_session_close(session, &e) == DSV2_OK);
  CHECK(is(DSV2_USAGE, dsv2_session_close(session, &e), e));
  int64_t length;
  CHECK(is(DSV2_USAGE, dsv2_session_length(session, 0, &length, &e), e));
  CHECK(dsv2_session_open(engine, 2, 0, &session, &e) == DSV2_OK && session.id > scheduler.id);
  CHECK(dsv2_engine_close(engine, &e) == DSV2_OK);
  // with it went all that was opened of it
  CHECK(is(DSV2_USAGE, dsv2_engine_close(engine, &e), e));
  CHECK(is(DSV2_USAGE, dsv2_session_length(other, 0, &length, &e), e));
  CHECK(is(DSV2_USAGE, dsv2_session_close(other, &e), e));
  CHECK(is(DSV2_USAGE, dsv2_scheduler_drain(scheduler, &e), e));
  CHECK(is(DSV2_USAGE, dsv2_session_open(engine, 1, 0, &session, &e), e));
  CHECK(is(DSV2_USAGE, dsv2_scheduler_open(engine, nullptr, &scheduler, &e), e));
}

void check_null() {
  dsv2_error e{};
  const dsv2_engine engine = open_engine();
  dsv2_session s;
  dsv2_scheduler q;
  CHECK(dsv2_session_open(engine, 2, 0, &s, &e) == DSV2_OK && dsv2_scheduler_open(engine, nullptr, &q, &e) == DSV2_OK);
  const int32_t ids[] = {1}, ones[] = {1};
  const int64_t lengths[] = {1};
  const dsv2_draw draws[1] = {{{0, 0, 1, 0}, 0}};
  const dsv2_request no_prompt = {nullptr, 1, 1, draws[0].sampling, 0, nullptr, 0};
  const dsv2_request no_stop = {ids, 1, 1, draws[0].sampling, 0, nullptr, 1};
  float logits[kVocab];
  int32_t next[1];
  uint64_t number;
  const dsv2_code codes[] = {
      dsv2_engine_load(nullptr, nullptr, nullptr, &e),
      dsv2_engine_load("/nowhere", nullptr, nullptr, &e),
      dsv2_engine_info_get(engine, nullptr, &e),
      dsv2_session_open(engine, 1, 0, nullptr, &e),
      dsv2_session_prefill(s, nullptr, 1, 1, ones, nullptr, logits, &e),
      dsv2_session_prefill(s, ids, 1, 1, nullptr, nullptr, logits, &e),
      dsv2_session_prefill(s, ids, 1, 1, ones, nullptr, nullptr, &e),
      dsv2_session_extend(s, nullptr, 1, 1, ones, nullptr, logits, &e),
      dsv2_session_decode(s, nullptr, 1, nullptr, logits, &e),
      dsv2_session_decode(s, ids, 1, nullptr, nullptr, &e),
      dsv2_session_start(s, ids, 1, 1, ones, nullptr, nullptr, next, &e),
      dsv2_session_start(s, ids, 1, 1, ones, nullptr, draws, nullptr, &e),
      dsv2_session_start(s, ids, int64_t{1} << 40, 1, ones, nullptr, draws, next, &e),
      dsv2_session_resume(s, nullptr, 1, 1, ones, nullptr, draws, next, &e),
      dsv2_session_step(s, ids, 1, nullptr, nullptr, next, &e),
      dsv2_session_restore(s, nullptr, 1, 1, ones, nullptr, &e),
      dsv2_session_restore(s, logits, 1, 1, nullptr, nullptr, &e),
      dsv2_session_length(s, 0, nullptr, &e),
      dsv2_uniforms(0, 0, 1, nullptr, &e),
      dsv2_generate(engine, nullptr, lengths, 1, 1, nullptr, nullptr, nullptr, &e),
      dsv2_generate(engine, ids, nullptr, 1, 1, nullptr, nullptr, nullptr, &e),
      dsv2_generate(engine, ids, lengths, 0, 1, nullptr, nullptr, nullptr, &e),
      dsv2_scheduler_open(engine, nullptr, nullptr, &e),
      dsv2_scheduler_submit(q, nullptr, nullptr, nullptr, &number, &e),
      dsv2_scheduler_submit(q, &no_prompt, nullptr, nullptr, &number, &e),
      dsv2_scheduler_submit(q, &no_stop, nullptr, nullptr, &number, &e),
      dsv2_scheduler_stats_get(q, nullptr, &e),
  };
  for (const dsv2_code& code : codes) {
    CHECK(code == DSV2_USAGE);
    if (code != DSV2_USAGE) std::fprintf(stderr, "  call %td gave %d\n", &code - codes, code);
  }
  CHECK(dsv2_engine_close(engine, nullptr) == DSV2_OK);
}

int32_t count_tokens(const dsv2_token* token, void* user) {
  static_cast<std::vector<dsv2_token>*>(user)->push_back(*token);
  return token->request == 1;  // cancels the second
}

void check_generate() {
  dsv2_error e{};
  const dsv2_engine engine = open_engine({4, 8, 8});
  const int32_t prompts[] = {1, 2, 3, 4, 5};
  const int64_t lengths[] = {2, 2, 1};
  std::vector<dsv2_token> seen;
  CHECK(dsv2_generate(engine, prompts, lengths, 3, 4, nullptr, count_tokens, &seen, &e) == DSV2_OK);
  std::vector<int64_t> counts(3);
  for (const dsv2_token& token : seen) counts[token.request] += token.token != -1;
  CHECK(counts == std::vector<int64_t>({4, 1, 4}) && seen.size() == 10);
  const int32_t with_nan[] = {1, kNan};
  seen.clear();
  CHECK(is(DSV2_NUMERIC, dsv2_generate(engine, with_nan, lengths, 1, 4, nullptr, count_tokens, &seen, &e), e));
  const int64_t too_long[] = {int64_t{1} << 50}, negative[] = {-1}, empty[] = {0};
  CHECK(is(DSV2_USAGE, dsv2_generate(engine, prompts, too_long, 1, 4, nullptr, count_tokens, &seen, &e), e));
  CHECK(is(DSV2_USAGE, dsv2_generate(engine, prompts, negative, 1, 4, nullptr, count_tokens, &seen, &e), e));
  CHECK(is(DSV2_USAGE, dsv2_generate(engine, prompts, empty, 1, 4, nullptr, count_tokens, &seen, &e), e));
  CHECK(seen.empty());

  const dsv2_scheduler_options negative_chunk = {0, 0, -1, 0}, small = {1, 16, 0, 0};
  dsv2_scheduler scheduler;
  CHECK(is(DSV2_USAGE, dsv2_scheduler_open(engine, &negative_chunk, &scheduler, &e), e));
  CHECK(dsv2_scheduler_open(engine, &small, &scheduler, &e) == DSV2_OK);
  dsv2_request request{prompts, 17, 1, {0, 0, 1, 0}, 0, nullptr, 0};
  uint64_t number;
  CHECK(is(DSV2_USAGE, dsv2_scheduler_submit(scheduler, &request, nullptr, nullptr, &number, &e), e));
  request.prompt_length = 2;
  for (int i = 0; i < 2; ++i) {
    CHECK(dsv2_scheduler_submit(scheduler, &request, count_tokens, &seen, &number, &e) == DSV2_OK);
  }
  CHECK(dsv2_scheduler_drain(scheduler, &e) == DSV2_OK);
  CHECK(seen.size() == 2 && seen[0].finish == DSV2_LENGTH && seen[1].request == number);
  dsv2_scheduler_stats stats;
  CHECK(dsv2_scheduler_stats_get(scheduler, &stats, &e) == DSV2_OK && stats.finished == 2 && stats.page_count == 8);
  CHECK(dsv2_scheduler_close(scheduler, &e) == DSV2_OK && is(DSV2_USAGE, dsv2_scheduler_close(scheduler, &e), e));
  CHECK(dsv2_engine_close(engine, &e) == DSV2_OK);
}

struct Closing {
  dsv2_engine engine;
  std::atomic<int> codes{-1};
};

int32_t close_engine(const dsv2_token*, void* user) {
  auto* closing = static_cast<Closing*>(user);
  int expected = -1;
  dsv2_error e{};
  closing->codes.compare_exchange_strong(expected, dsv2_engine_close(closing->engine, &e));
  return 0;
}

// From within a callback: that of a scheduler cannot wait for itself, that of dsv2_generate ends its own call.
void check_close_in_callback() {
  Closing closing{open_engine()};
  dsv2_error e{};
  dsv2_scheduler scheduler;
  const int32_t ids[] = {1};
  const int64_t lengths[] = {1};
  const dsv2_request request{ids, 1, 2, {0, 0, 1, 0}, 0, nullptr, 0};
  uint64_t number;
  CHECK(dsv2_scheduler_open(closing.engine, nullptr, &scheduler, &e) == DSV2_OK);
  CHECK(dsv2_scheduler_submit(scheduler, &request, close_engine, &closing, &number, &e) == DSV2_OK);
  CHECK(dsv2_scheduler_drain(scheduler, &e) == DSV2_OK && closing.codes == DSV2_USAGE);
  closing.codes = -1;
  CHECK(is(DSV2_USAGE, dsv2_generate(closing.engine, ids, lengths, 1, 9, nullptr, close_engine, &closing, &e), e));
  CHECK(closing.codes == DSV2_OK && std::string(e.cause) == "The engine is closed.");
}

// Threads that use an engine's handles while others close them: each call works or is DSV2_USAGE.
void check_closing() {
  for (int round = 0; round < 20; ++round) {
    const dsv2_engine engine = open_engine();
    std::atomic<bool> bad{false};
    auto allowed = [&](dsv2_code code) { bad = bad || (code != DSV2_OK && code != DSV2_USAGE); };
    auto use = [&](int32_t token) {
      const int64_t lengths[] = {1};
      const dsv2_request request{&token, 1, 5, {0.5, 0, 1, 0}, 0, nullptr, 0};
      for (dsv2_code code = DSV2_OK; code == DSV2_OK;) {
        dsv2_session session;
        dsv2_scheduler scheduler;
        uint64_t number = 0;
        code = dsv2_generate(engine, &token, lengths, 1, 5, nullptr, nullptr, nullptr, nullptr);
        allowed(code);
        if (!dsv2_session_open(engine, 1, 0, &session, nullptr)) allowed(dsv2_session_close(session, nullptr));
        if (dsv2_scheduler_open(engine, nullptr, &scheduler, nullptr)) continue;
        allowed(dsv2_scheduler_submit(scheduler, &request, nullptr, nullptr, &number, nullptr));
        allowed(dsv2_scheduler_cancel(scheduler, number, nullptr));
        allowed(dsv2_scheduler_drain(scheduler, nullptr));
        allowed(dsv2_scheduler_close(scheduler, nullptr));
      }
    };
    std::vector<std::thread> threads;
    for (int32_t t = 1; t <= 3; ++t) threads.emplace_back(use, t);
    std::this_thread::sleep_for(std::chrono::milliseconds(round % 5));
    std::thread other([&] { allowed(dsv2_engine_close(engine, nullptr)); });
    allowed(dsv2_engine_close(engine, nullptr));
    other.join();
    for (std::thread& thread : threads) thread.join();
    CHECK(!bad);
  }
}

}  // namespace

int main() {
  check_guard();
  check_handles();
  check_null();
  check_generate();
  check_close_in_callback();
  check_closing();
  CHECK(dsv2_version()[0] != 0);
  return checks_result();
}
