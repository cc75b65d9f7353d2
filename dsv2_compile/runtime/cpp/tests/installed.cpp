// The C++ headers as a program outside of this tree uses them: built against an installed tree, run on the engine given.
#include <cstring>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>

#include "check.h"
#include "dsv2/dsv2.hpp"

namespace {

static_assert(!std::is_copy_constructible_v<dsv2::Session> && std::is_nothrow_move_constructible_v<dsv2::Session>);
static_assert(!std::is_copy_constructible_v<dsv2::Engine> && std::is_nothrow_move_assignable_v<dsv2::Engine>);

int32_t argmax(const std::vector<float>& logits) {
  return static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

void check_session(dsv2::Engine& engine) {
  dsv2::Session session = engine.session(2).value();
  const dsv2::Draws greedy(2);
  const dsv2::Slots swapped = dsv2::Ids{1, 0};
  const auto logits = session.prefill({{1, 2, 3}, {4}}).value();
  const size_t vocab = logits.size() / 2;
  const auto second = std::vector<float>(logits.begin() + static_cast<std::ptrdiff_t>(vocab), logits.end());
  CHECK(session.length(0).value() == 3 && session.length(1).value() == 1);
  CHECK(session.start({{4}, {1, 2, 3}}, greedy, swapped).value()[0] == argmax(second));
  const auto extended = session.extend({{5}, {6, 7}}).value(), decoded = session.decode({8, 9}, swapped).value();
  CHECK(session.prefill({{1, 2, 3, 5, 9}}).value().size() == vocab && session.length(0).value() == 5);
  const std::vector<float> alone = session.prefill({{1, 2, 3, 5, 9}}).value();
  CHECK(argmax(alone) == argmax({decoded.begin() + static_cast<std::ptrdiff_t>(vocab), decoded.end()}));
  CHECK(session.resume({{1}, {2}}, greedy).value().size() == 2 && session.step({1, 2}, greedy).value().size() == 2);

  const auto info = engine.info().value();
  const std::vector<float> cached(static_cast<size_t>(info.layers * 2 * 3 * info.cache_dim), 0.5f);
  CHECK(session.restore(cached, 3, {3, 2}) && session.length(1).value() == 2);
  CHECK(session.free(dsv2::Ids{0}) && !session.length(0) && session.free() && !session.length(1));

  CHECK(session.prefill({}).error().code == DSV2_USAGE);
  CHECK(session.prefill({{}}).error().code == DSV2_USAGE);
  CHECK(session.prefill({{1}, {2}}, dsv2::Ids{0}).error().cause == "1 slots for 2 sequences.");
  CHECK(session.start({{1}}, greedy).error().cause == "2 draws for 1 sequences.");
  dsv2::Session moved = std::move(session);
  CHECK(session.length(0).error().code == DSV2_USAGE);  // holds nothing
  CHECK(moved.close() && moved.close().error().code == DSV2_USAGE);
}

void check_generate(dsv2::Engine& engine) {
  const dsv2::Prompts prompts = {{1, 2}, {3}};
  dsv2::Prompts made(2), served(2);
  CHECK(engine.generate(prompts, 4, {}, [&](const dsv2::Token& token) {
    made[token.request].push_back(token.token);
    return false;
  }));
  CHECK(made[0].size() == 4 && made[1].size() == 4);

  auto scheduler = engine.scheduler({2, 0, 0, 0}).value();
  for (size_t i = 0; i < 2; ++i) {
    CHECK(scheduler.submit({prompts[i], 4, {}, 0, {}}, [&served, i](const dsv2::Token& token) {
      served[i].push_back(token.token);
      return false;
    }));
  }
  CHECK(scheduler.drain() && served == made);
  const uint64_t unheard = scheduler.submit({{1}, 1000000, {}, 0, {}}).value();
  CHECK(scheduler.cancel(unheard) && scheduler.drain());
  CHECK(scheduler.submit({{-1}, 1, {}, 0, {}}, [](const dsv2::Token&) { return false; }).error().code == DSV2_USAGE);
  CHECK(scheduler.stats()->cancelled == 1 && scheduler.stats()->finished == 2);

#if defined(__cpp_exceptions)
  int calls = 0;
  auto throws = [&](const dsv2::Token&) -> bool { throw std::runtime_error("call " + std::to_string(++calls)); };
  std::string thrown;
  try {
    engine.generate(prompts, 4, {}, throws).value();
  } catch (const std::runtime_error& e) {
    thrown = e.what();
  }
  CHECK(thrown == "call 1" && calls == 1);
  CHECK(scheduler.submit({{1}, 4, {}, 0, {}}, throws) && scheduler.drain() && calls == 2);
  CHECK(scheduler.stats()->cancelled == 2);
#endif
}

}  // namespace

int main(int count, char** arguments) {
  if (count > 2 && !std::strcmp(arguments[2], "misuse")) {
    return static_cast<int>(dsv2::Engine::load("/nowhere").value().handle().id);  // ends the program
  }
  const auto missing = dsv2::Engine::load("/nowhere");
  CHECK(!missing && missing.error().code == DSV2_USAGE && !missing.error().remedy.empty());
  CHECK(dsv2::uniforms(0, 0, 2).value()[0] != 0);
  dsv2::Engine engine = dsv2::Engine::load(arguments[1]).value();
  CHECK(engine.info()->verified);
  check_session(engine);
  check_generate(engine);
  dsv2::Session session = engine.session().value();
  engine.close().value();
  CHECK(session.length(0).error().code == DSV2_USAGE && !engine.info());
  return checks_result();
}
