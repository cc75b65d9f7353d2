#include "native/executor.h"

#include <algorithm>
#include <cstring>

#include "native/rows.h"

namespace dsv2 {
namespace {

constexpr int64_t kStagingBytes = 64 << 20;

CuAddress at(CuAddress block, int64_t offset) { return block + static_cast<CuAddress>(offset); }

// Of every buffer of ``program``; 0 for inputs and outputs, whose place follows from the sizes of a call.
std::vector<CuAddress> fixed_addresses(const PlanProgram& program, const Blocks& blocks, const WeightLayout& weights) {
  std::vector<CuAddress> out;
  for (const Buffer& b : program.buffers) {
    switch (b.place) {
      case Place::weight: out.push_back(at(blocks.weights, weights.offsets.at(b.name))); break;
      case Place::cache: out.push_back(at(blocks.cache, b.offset)); break;
      case Place::arena: out.push_back(at(blocks.arena, b.offset)); break;
      default: out.push_back(0);
    }
  }
  return out;
}

}  // namespace

Executor::Executor(Plan plan, const std::string& root, const Manifest& manifest, std::unique_ptr<Driver> driver,
                   int64_t slots)
    : plan_(std::move(plan)),
      slots_(slots),
      driver_(std::move(driver)),
      weights_(weight_layout(plan_, manifest.weights)),
      needs_(memory_needs(plan_, weights_, slots)) {
  for (const PlanProgram& program : plan_.programs) replayed_.push_back(replayable(program));
  Driver::Current current(*driver_);
  try {
    open(root, manifest);
  } catch (...) {
    close();
    throw;
  }
}

Executor::~Executor() {
  try {
    Driver::Current current(*driver_);
    close();
  } catch (const DriverError&) {  // a GPU that faulted frees nothing before the process ends
  }
}

void Executor::open(const std::string& root, const Manifest& manifest) {
  for (const Kernel& kernel : plan_.kernels) kernels_.push_back(load_kernel(*driver_, root, manifest, kernel));
  blocks_ = reserve(*driver_, needs_);
  for (const PlanProgram& program : plan_.programs) fixed_.push_back(fixed_addresses(program, blocks_, weights_));
  explaining("take the weights", [&] {
    int64_t staging = std::max({kStagingBytes, needs_.inputs, needs_.outputs});
    host_ = driver_->pinned(static_cast<size_t>(staging));
    upload(*driver_, root, weights_.reads, blocks_.weights, host_, staging);
    driver_->fill(blocks_.cache, 0xff, static_cast<size_t>(std::max<int64_t>(needs_.cache, 1)));
    driver_->fill(blocks_.arena, 0xff, static_cast<size_t>(std::max<int64_t>(needs_.arena, 1)));
    driver_->wait();
  });
}

// Called with the context current.
void Executor::close() {
  try {
    driver_->wait();
    for (const auto& graph : graphs_) driver_->discard(graph.second);
    give_back(*driver_, blocks_);
  } catch (const DriverError&) {
  }
}

void Executor::run(size_t program, const Pieces& pieces, Output output, const std::vector<void*>& rows) {
  const PlanProgram& planned = plan_.programs[program];
  std::lock_guard lock(mutex_);
  explaining("run " + planned.name, [&] {
    Driver::Current current(*driver_);
    Call call = prepare(planned, pieces.sizes(slots_), replayed_[program]);
    pack(planned, pieces, call.sizes, call.inputs.offsets, host_);
    if (call.inputs.nbytes) driver_->copy_in(blocks_.inputs, host_, static_cast<size_t>(call.inputs.nbytes));
    // NaN: what nothing writes is seen
    if (call.outputs.nbytes) driver_->fill(blocks_.outputs, 0xff, static_cast<size_t>(call.outputs.nbytes));
    execute(program, call);
    download(planned, call, output, rows);
  });
}

// A step that is captured is launched first: a kernel's first launch may load it, which no capture allows.
void Executor::execute(size_t program, const Call& call) {
  std::pair key(program, call.sizes.rows);
  if (call.replayed && graphs_.count(key)) return driver_->replay(graphs_[key]);
  launch(program, call);
  if (call.replayed) graphs_[key] = driver_->capture([&] { launch(program, call); });
}

void Executor::launch(size_t program, const Call& call) {
  const PlanProgram& planned = plan_.programs[program];
  Addresses where = addresses(program, call);
  Resolved resolved;
  std::vector<void*> arguments;
  for (const Launch& item : planned.launches) {
    if (!resolve(plan_, item, call.sizes, where, &resolved)) continue;
    const Kernel& kernel = plan_.kernels[static_cast<size_t>(item.kernel)];
    arguments.clear();
    for (uint64_t& word : resolved.args) arguments.push_back(&word);
    driver_->launch(kernels_[static_cast<size_t>(item.kernel)], resolved.grid,
                    static_cast<unsigned>(kernel.warps * kWarp), static_cast<unsigned>(kernel.shared),
                    arguments.data());
  }
}

Addresses Executor::addresses(size_t program, const Call& call) const {
  Addresses out{fixed_[program], blocks_.scratch, needs_.scratch};
  const std::vector<Buffer>& buffers = plan_.programs[program].buffers;
  for (size_t i = 0; i < buffers.size(); ++i) {
    if (buffers[i].place == Place::input) out.buffers[i] = at(blocks_.inputs, call.inputs.offsets[i]);
    if (buffers[i].place == Place::output) out.buffers[i] = at(blocks_.outputs, call.outputs.offsets[i]);
  }
  return out;
}

// The inputs' host memory is free by then: all is done in the order of the stream.
void Executor::download(const PlanProgram& program, const Call& call, Output output, const std::vector<void*>& rows) {
  const char* name = output == Output::logits ? "logits" : "next_tokens";
  for (size_t i = 0; i < program.buffers.size(); ++i) {
    const Buffer& buffer = program.buffers[i];
    if (buffer.place != Place::output || buffer.name != name) continue;
    auto nbytes = static_cast<size_t>(buffer.nbytes(call.asked));
    char* host = host_ + call.outputs.offsets[i];
    driver_->copy_out(host, at(blocks_.outputs, call.outputs.offsets[i]), nbytes);
    driver_->wait();
    const size_t row_bytes = nbytes / rows.size();
    for (size_t b = 0; b < rows.size(); ++b) std::memcpy(rows[b], host + b * row_bytes, row_bytes);
  }
}

void Executor::write_rows(const std::vector<int64_t>& rows, const float* values, int64_t stride) {
  const Buffer& cache = cache_buffer(plan_);
  Sizes sizes{0, 0, 0, slots_};
  const int64_t layers = cache.shape[0].evaluate(sizes), width = cache.shape[2].evaluate(sizes);
  const auto row_bytes = static_cast<size_t>(width * item_bytes(cache.dtype));
  const size_t layer_bytes = rows.size() * row_bytes;
  std::vector<char> stored(static_cast<size_t>(layers) * layer_bytes);
  for (int64_t layer = 0; layer < layers; ++layer) {
    to_device(cache.dtype, values + layer * stride, static_cast<int64_t>(rows.size()) * width,
              stored.data() + static_cast<size_t>(layer) * layer_bytes);
  }
  std::lock_guard lock(mutex_);
  explaining("write the cache", [&] {
    Driver::Current current(*driver_);
    for (int64_t layer = 0; layer < layers; ++layer) {
      for (size_t start = 0, stop; start < rows.size(); start = stop) {  // a stretch of neighbours
        for (stop = start + 1; stop < rows.size() && rows[stop] == rows[stop - 1] + 1;) ++stop;
        CuAddress to = at(blocks_.cache, (layer * slots_ + rows[start]) * static_cast<int64_t>(row_bytes));
        driver_->copy_in(to, stored.data() + static_cast<size_t>(layer) * layer_bytes + start * row_bytes,
                         (stop - start) * row_bytes);
      }
    }
    driver_->wait();
  });
}

}  // namespace dsv2
