// Runs the vectors of tests/vectors/batch, which the Python runtime is held to as well. Takes their folder.
#include <filesystem>
#include <fstream>
#include <sstream>
#include <tuple>

#include "base/json.h"
#include "check.h"
#include "fake_calls.h"

using namespace dsv2;

namespace {

using Traced = std::tuple<int64_t, int64_t, std::string>;  // request, token or -1, finish

const char* name(dsv2_finish finish) {
  constexpr const char* kNames[] = {"", "stop", "length", "cancelled", "failed"};
  return kNames[finish];
}

std::vector<int64_t> integers(const Json& value) {
  std::vector<int64_t> out;
  for (const Json& item : value.array()) out.push_back(item.integer());
  return out;
}

std::vector<int32_t> tokens(const Json& value) {
  std::vector<int64_t> wide = integers(value);
  std::vector<int32_t> out;
  for (int64_t token : wide) out.push_back(static_cast<int32_t>(token));
  return out;
}

Request request(const Json& j) {
  return {tokens(j.at("prompt")),
          j.at("max_new_tokens").integer(),
          {j.at("temperature").number(), j.at("top_k").integer(), j.at("top_p").number(),
           static_cast<uint64_t>(j.at("seed").integer())},
          static_cast<uint64_t>(j.at("stream").integer()),
          tokens(j.at("stop"))};
}

struct Run {
  explicit Run(const Json& vector)
      : script(vector.at("script").array()),
        fake(vector.at("vocab").integer(), vector.at("max_batch").integer(), nan_tokens(vector)),
        batch(&fake,
              {vector.at("vocab").integer(), vector.at("max_tokens").integer(),
               {vector.at("page").integer(), vector.at("pages").integer(), 0}},
              integers(vector.at("eos")), {vector.at("chunk").integer(), vector.at("max_waiting").integer()}) {}

  static std::set<int32_t> nan_tokens(const Json& vector) {
    std::vector<int32_t> ids = tokens(vector.at("nan_tokens"));
    return {ids.begin(), ids.end()};
  }

  void all() {
    for (int64_t step = 0; at < script.size() || batch.busy(); ++step) {
      for (; at < script.size() && script[at].at("step").integer() <= step; ++at) act(script[at]);
      for (const Event& event : batch.step()) {
        trace.emplace_back(event.request, event.token, name(event.finish));
        CHECK(event.error.has_value() == (event.finish == DSV2_FAILED));
        CHECK(!event.error || event.error->code == DSV2_NUMERIC);
      }
      CHECK(batch.stats().pages_committed <= batch.stats().page_count);
    }
  }

  void act(const Json& action) {
    if (const Json* cancelled = action.find("cancel")) {
      batch.cancel(static_cast<uint64_t>(cancelled->integer()));
      return;
    }
    try {
      batch.submit(submitted, request(action.at("submit")));
    } catch (const Error& e) {
      trace.emplace_back(submitted, -1, "refused");
      refusals.push_back(e.code);
    }
    ++submitted;
  }

  const Array& script;
  FakeCalls fake;
  Batch batch;
  size_t at = 0;
  uint64_t submitted = 0;
  std::vector<Traced> trace;
  std::vector<int64_t> refusals;
};

void check_vector(const std::filesystem::path& path) {
  std::ifstream file(path);
  std::stringstream text;
  text << file.rdbuf();
  const Json vector = parse_json(text.str(), {16 << 20});
  const int before = failed_checks;
  Run run(vector);
  run.all();

  std::vector<Traced> trace;
  for (const Json& row : vector.at("trace").array()) {
    const Array& r = row.array();
    trace.emplace_back(r.at(0).integer(), r.at(1).integer(), r.at(2).string());
  }
  CHECK(run.trace == trace);
  CHECK(run.refusals == integers(vector.at("refusals")));

  const Array& calls = vector.at("calls").array();
  CHECK(run.fake.calls.size() == calls.size());
  for (size_t i = 0; i < std::min(calls.size(), run.fake.calls.size()); ++i) {
    const Array& r = calls[i].array();
    const FakeCall& made = run.fake.calls[i];
    CHECK(made.kind == r.at(0).string() && made.slots == integers(r.at(1)));
    CHECK(made.counts == integers(r.at(2)) && made.past == integers(r.at(3)));
  }
  CHECK(!run.fake.holds());
  const dsv2_scheduler_stats stats = run.batch.stats();
  CHECK(stats.pages_committed == 0 && stats.live == 0 && stats.waiting == 0);
  CHECK(stats.submitted == stats.finished + stats.cancelled + stats.failed);
  if (failed_checks > before) std::fprintf(stderr, "in %s\n", path.c_str());
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 2) {
    std::fprintf(stderr, "usage: unit_batch tests/vectors/batch\n");
    return 2;
  }
  int vectors = 0;
  for (const auto& entry : std::filesystem::directory_iterator(arguments[1])) {
    if (entry.path().extension() != ".json") continue;
    check_vector(entry.path());
    ++vectors;
  }
  CHECK(vectors > 0);
  return checks_result();
}
