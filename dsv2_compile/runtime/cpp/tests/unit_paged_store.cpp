// Sessions of a GPU engine over one executor and one pool of pages, from several threads; a call that fails adds
// nothing.
#include <fstream>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "base/error.h"
#include "base/sha256.h"
#include "check.h"
#include "cubin_file.h"
#include "native/store.h"
#include "plan/text.h"
#include "stub_driver.h"

using namespace dsv2;

namespace {

constexpr int64_t kVocab = 10, kPage = 4, kPages = 24;
const std::vector<Draw> kGreedy(8);

std::string program(const std::string& phase, int rows, int batch, int context) {
  return "\"" + phase + "\":{\"phase\":\"" + phase + "\",\"limits\":{\"rows\":" + std::to_string(rows) +
         ",\"batch\":" + std::to_string(batch) + ",\"context\":" + std::to_string(context) +
         R"(},"arena_bytes":0,"buffers":[["logits","fp32","output",0,["batch",10]],)"
         R"(["next_tokens","i32","output",0,["batch"]],["cache","fp32","cache",0,[2,"slots",3]],)"
         R"(["head","fp32","weight",0,[2]],["tokens","i32","input",0,["rows"]],)"
         R"(["page_table","i32","input",0,["batch",6]],["top_p","fp32","input",0,["batch"]]],)"
         R"("launches":[[0,["rows",1,1],[{"b":4,"o":0},{"b":3,"o":4},"batch"],"what"]]})";
}

Plan plan() {
  return parse_plan(
      R"({"schema":"dsv2/plan/2","target":"h800","capability":"sm_90","dtype":"fp32","page":4,"pages":6,"kernels":[)"
      R"({"kernel":"k","cubin":"k.cubin","symbol":"k","args":["*i32","*fp32","i32"],"aligned":[true,false,false],)"
      R"("constants":{},"warps":4,"shared":50000,"scratch":16,"scratch_align":16}],"programs":{)" +
      program("extend", 6, 2, 48) + "," + program("decode", 3, 3, 72) + "}}");
}

// An executor of `plan`, its files in the stand-in's folder.
std::shared_ptr<Executor> executor(const StubDriver& stub) {
  Manifest manifest{};
  const std::vector<std::pair<std::string, std::string>> files = {{"k.cubin", cubin_file("k", {8, 8, 4, 8, 8})},
                                                                  {"w", "12345678"}};
  for (const auto& [name, data] : files) {
    std::ofstream(stub.folder() + "/" + name, std::ios::binary) << data;
    manifest.files[name] = {sha256_hex(data), static_cast<int64_t>(data.size())};
  }
  manifest.weights["head"] = {"w", 0, 8, "float32", {2}};
  return std::make_shared<Executor>(plan(), stub.folder(), manifest, std::make_unique<Driver>(find_gpu()),
                                    kPages * kPage);
}

Rows rows(const int32_t* ids, int64_t columns, std::vector<int64_t> counts, std::vector<int64_t> slots,
          std::vector<int64_t> past) {
  return {ids, columns, std::move(counts), std::move(slots), std::move(past)};
}

// A session of two sequences that begin, grow and end.
void work(PagedStore* store) {
  const std::vector<int32_t> ids(2 * 10, 1);
  std::vector<float> logits(2 * kVocab, -1);
  int32_t next[2];
  for (int turn = 0; turn < 10; ++turn) {
    store->append(Phase::prefill, rows(ids.data(), 10, {10, 7}, {0, 1}, {0, 0}), logits.data());
    for (int64_t i = 0; i < 4; ++i) {
      store->choose(Phase::decode, rows(ids.data(), 1, {1, 1}, {1, 0}, {7 + i, 10 + i}), kGreedy, next);
    }
    const std::vector<float> cached(2 * 5 * 3, 0.5f);
    store->release({0}, false);
    store->put(0, cached.data(), 5, 15);
    store->release({0, 1}, true);
  }
  CHECK(next[0] == 0 && next[1] == 0 && logits == std::vector<float>(2 * kVocab, 0));
}

void threads_share_an_executor() {
  StubDriver stub;
  auto shared = executor(stub);
  auto pool = std::make_shared<PagePool>(kPages, kPage);
  {
    std::vector<std::unique_ptr<PagedStore>> stores;
    std::vector<std::thread> threads;
    for (int i = 0; i < 3; ++i) stores.push_back(std::make_unique<PagedStore>(shared, pool, 2, kVocab));
    for (auto& store : stores) threads.emplace_back(work, store.get());
    for (std::thread& thread : threads) thread.join();
  }
  CHECK(pool->free() == kPages);
  shared.reset();
  std::ifstream log(stub.log());
  int launches = 0, graphs = 0, replays = 0, blocks = 0;
  for (std::string line; std::getline(log, line);) {
    std::string word = line.substr(0, line.find(' '));
    launches += word == "launch";
    graphs += word == "graph";
    replays += word == "replay";
    blocks += word == "alloc" ? 1 : word == "free" ? -1 : 0;
    CHECK(word != "fault");
  }
  // three parts of each prompt pair; of 120 steps the first is launched, and once more for its graph
  CHECK(launches == 3 * 10 * 3 + 2 && graphs == 1 && replays == 3 * 10 * 4 - 1 && blocks == 0);
}

void a_refusal_leaves_everything_as_it_was() {
  StubDriver stub;
  auto pool = std::make_shared<PagePool>(kPages, kPage);
  PagedStore store(executor(stub), pool, 8, kVocab);
  const std::vector<int32_t> ids(8 * 24, 1);
  std::vector<float> logits(8 * kVocab);
  store.append(Phase::prefill, rows(ids.data(), 24, {9}, {0}, {0}), logits.data());
  CHECK(pool->free() == kPages - 3);
  dsv2_code code = DSV2_OK;
  try {
    store.append(Phase::prefill, rows(ids.data(), 24, {24, 24, 24, 24}, {1, 2, 3, 4}, {0, 0, 0, 0}), logits.data());
  } catch (const Error& e) {
    code = e.code;
  }
  CHECK(code == DSV2_RESOURCE && pool->free() == kPages - 3);
  store.append(Phase::extend, rows(ids.data(), 24, {3}, {0}, {9}), logits.data());
  CHECK(pool->free() == kPages - 3);
  setenv("DSV2_STUB_READS", "255", 1);
  code = DSV2_OK;
  try {
    store.append(Phase::extend, rows(ids.data(), 24, {8}, {0}, {12}), logits.data());
  } catch (const Error& e) {
    code = e.code;
  }
  unsetenv("DSV2_STUB_READS");
  CHECK(code == DSV2_NUMERIC && pool->free() == kPages - 3);
}

}  // namespace

int main() {
  threads_share_an_executor();
  a_refusal_leaves_everything_as_it_was();
  return checks_result();
}
