// Runs the programs of a native plan on a GPU.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "engine/manifest.h"
#include "native/calls.h"
#include "native/driver.h"
#include "native/launches.h"
#include "native/opening.h"
#include "native/pack.h"
#include "plan/plan.h"

namespace dsv2 {

enum class Output { logits, next_tokens };

// The plan of an engine whose files have been checked, on one GPU, with its own cache of ``slots`` rows, a multiple of
// the page. A step of decode is padded to 1, 2, 4, ... rows, captured the first time and replayed from then on. Calls
// from several threads wait for each other.
//
// Error incompatible: this machine cannot run the engine. Resource: it does not fit the GPU's free memory. Integrity:
// the engine's files do not belong to its plan.
class Executor {
 public:
  Executor(Plan plan, const std::string& root, const Manifest& manifest, std::unique_ptr<Driver> driver, int64_t slots);
  ~Executor();

  const Plan& plan() const { return plan_; }

  // Executes program number ``program``; what it adds goes to the cache. Of one output, fp32 [batch, vocabulary] or i32
  // [batch], the row of sequence b comes back to rows[b].
  void run(size_t program, const Pieces& pieces, Output output, const std::vector<void*>& rows);

  // Cache rows: of layer l, the values for row rows[i] are at values + l * stride + i * width.
  void write_rows(const std::vector<int64_t>& rows, const float* values, int64_t stride);

 private:
  void open(const std::string& root, const Manifest& manifest);
  void execute(size_t program, const Call& call);
  void launch(size_t program, const Call& call);
  Addresses addresses(size_t program, const Call& call) const;
  void download(const PlanProgram& program, const Call& call, Output output, const std::vector<void*>& rows);
  void close();

  const Plan plan_;
  const int64_t slots_;
  std::mutex mutex_;
  std::unique_ptr<Driver> driver_;
  std::vector<bool> replayed_;  // by program
  WeightLayout weights_;
  Needs needs_;
  std::vector<CuFunction> kernels_;
  Blocks blocks_{};
  std::vector<std::vector<CuAddress>> fixed_;  // by program, of every buffer; 0 for inputs and outputs
  char* host_ = nullptr;
  std::map<std::pair<size_t, int64_t>, CuGraphExec> graphs_;  // by program and rows
};

}  // namespace dsv2
