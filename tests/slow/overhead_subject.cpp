// What bench_runtime_overhead.py measures of the C++ runtime: microseconds of every call.
//
//     overhead_subject ENGINE BATCH POSITIONS KIND WARM CALLS
//
// KIND: step (the next tokens), decode (logits), resume (one token each, whose launches are not replayed).
#include <dsv2/dsv2.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

namespace {

void require(dsv2_code code, const dsv2_error &error) {
  if (code == DSV2_OK) return;
  std::fprintf(stderr, "%s\n%s\n", error.cause, error.problems);
  std::exit(1);
}

}  // namespace

int main(int, char **arguments) {
  const int64_t batch = std::atoll(arguments[2]), positions = std::atoll(arguments[3]);
  const std::string kind = arguments[4];
  const int warm = std::atoi(arguments[5]), calls = std::atoi(arguments[6]);
  dsv2_error error;
  dsv2_engine engine;
  dsv2_session session;
  dsv2_engine_info info;
  require(dsv2_engine_load(arguments[1], nullptr, &engine, &error), error);
  require(dsv2_engine_info_get(engine, &info, &error), error);
  require(dsv2_session_open(engine, batch, 0, &session, &error), error);
  const auto rows = static_cast<size_t>(batch);
  const std::vector<dsv2_draw> greedy(rows, dsv2_draw{{0, 0, 1, 0}, 0});
  std::vector<int32_t> prompt(rows * static_cast<size_t>(positions), 1), next(rows);
  const std::vector<int32_t> lengths(rows, static_cast<int32_t>(positions)), ones(rows, 1);
  std::vector<float> logits(rows * static_cast<size_t>(info.vocab_size));
  require(dsv2_session_start(session, prompt.data(), batch, positions, lengths.data(), nullptr, greedy.data(),
                             next.data(), &error),
          error);
  std::printf("[");
  for (int i = 0; i < warm + calls; ++i) {
    const auto start = std::chrono::steady_clock::now();
    dsv2_code code;
    if (kind == "step") {
      code = dsv2_session_step(session, next.data(), batch, nullptr, greedy.data(), next.data(), &error);
    } else if (kind == "decode") {
      code = dsv2_session_decode(session, next.data(), batch, nullptr, logits.data(), &error);
    } else {
      code = dsv2_session_resume(session, next.data(), batch, 1, ones.data(), nullptr, greedy.data(), next.data(),
                                 &error);
    }
    const double micros = std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start).count();
    require(code, error);
    if (i >= warm) std::printf("%s%.3f", i > warm ? ", " : "", micros);
  }
  std::printf("]\n");
  require(dsv2_engine_close(engine, &error), error);
}
