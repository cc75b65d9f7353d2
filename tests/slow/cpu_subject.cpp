// What bench_cpp_cpu.py measures of the C++ runtime; cpu_subject.py is the same program in Python.
//
//     cpu_subject ENGINE LIBRARY THREADS PROMPT CONTEXT STEPS REPEATS
#include <dsv2/dsv2.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <string>
#include <vector>

namespace {

using Clock = std::chrono::steady_clock;

double since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

void require(dsv2_code code, const dsv2_error &error) {
  if (code == DSV2_OK) return;
  std::fprintf(stderr, "%s\n%s\n", error.cause, error.problems);
  std::exit(1);
}

// {"anon": bytes, "file": bytes} of this process, as the kernel counts them.
std::string memory() {
  std::ifstream status("/proc/self/status");
  std::string word;
  long anon = 0, file = 0;
  while (status >> word) {
    if (word == "RssAnon:") status >> anon;
    if (word == "RssFile:") status >> file;
  }
  return "{\"anon\": " + std::to_string(anon * 1024) + ", \"file\": " + std::to_string(file * 1024) + "}";
}

template <typename T>
std::string list(const std::vector<T> &values) {
  std::string out;
  for (const T &value : values) out += (out.empty() ? "" : ", ") + std::to_string(value);
  return "[" + out + "]";
}

}  // namespace

int main(int, char **arguments) {
  const char *path = arguments[1];
  const int64_t prompt = std::atoll(arguments[4]), context = std::atoll(arguments[5]);
  const int steps = std::atoi(arguments[6]), repeats = std::atoi(arguments[7]);
  dsv2_load_options options = {std::atoi(arguments[3]), 0, arguments[2]};
  const std::string before = memory();
  dsv2_error error;
  dsv2_engine engine;

  // refused for an option without effect, which is known when all files have been checked; the first time warms up
  options.cache_tokens = 1;
  Clock::time_point start;
  double checking = 0;
  for (int i = 0; i < 2; ++i) {
    start = Clock::now();
    if (dsv2_engine_load(path, &options, &engine, &error) != DSV2_USAGE) require(DSV2_INTERNAL, error);
    checking = since(start);
  }
  options.cache_tokens = 0;
  start = Clock::now();
  require(dsv2_engine_load(path, &options, &engine, &error), error);
  const double loading = since(start);
  const std::string loaded = memory();

  dsv2_engine_info info;
  require(dsv2_engine_info_get(engine, &info, &error), error);
  dsv2_session session;
  require(dsv2_session_open(engine, 1, context + prompt + steps, &session, &error), error);
  const dsv2_draw greedy = {{0, 0, 1, 0}, 0};
  std::vector<int32_t> ids, tokens;
  for (int64_t i = 0; i < prompt; ++i) ids.push_back(static_cast<int32_t>((i * 7919 + 13) % info.vocab_size));
  const int32_t length = static_cast<int32_t>(prompt);
  int32_t token = 0;
  std::vector<double> prefills, decodes;
  for (int i = 0; i < repeats; ++i) {
    start = Clock::now();
    require(dsv2_session_start(session, ids.data(), 1, prompt, &length, nullptr, &greedy, &token, &error), error);
    prefills.push_back(1e3 * since(start));
    tokens.push_back(token);
  }
  std::vector<float> cached(static_cast<size_t>(info.layers * context * info.cache_dim));
  for (size_t i = 0; i < cached.size(); ++i) cached[i] = static_cast<float>(i * 7919 % 1000) / 1000 - 0.5f;
  const int32_t positions = static_cast<int32_t>(context);
  require(dsv2_session_restore(session, cached.data(), 1, context, &positions, nullptr, &error), error);
  cached = {};
  for (int i = 0; i < steps; ++i) {
    start = Clock::now();
    require(dsv2_session_step(session, &token, 1, nullptr, &greedy, &token, &error), error);
    decodes.push_back(1e3 * since(start));
    tokens.push_back(token);
  }
  std::printf("{\"checking_seconds\": %.9f, \"load_seconds\": %.9f, \"prefill_ms\": %s, \"decode_ms\": %s, \"tokens\": %s, "
              "\"memory\": {\"before\": %s, \"loaded\": %s, \"used\": %s}}\n",
              checking, loading, list(prefills).c_str(), list(decodes).c_str(), list(tokens).c_str(), before.c_str(),
              loaded.c_str(), memory().c_str());
}
