#include "native/driver.h"

#include <utility>

namespace dsv2 {
namespace {

constexpr int kStaticShared = 48 << 10;  // bytes of shared memory that a block may have without being asked

}  // namespace

Driver::Driver(Gpu gpu) : gpu_(std::move(gpu)), api_(*gpu_.api) {
  check(api_.context_retain(&context_, gpu_.device));
  try {
    Current current(*this);
    check(api_.stream_create(&stream_, kCuStreamNonBlocking));
  } catch (...) {
    api_.context_release(gpu_.device);
    throw;
  }
}

// What the driver of a faulted GPU refuses to free is freed with the process.
Driver::~Driver() {
  if (!api_.context_push(context_)) {
    for (void* host : pinned_) api_.host_free(host);
    for (CuModule module : modules_) api_.module_unload(module);
    api_.stream_destroy(stream_);
    CuContext popped;
    api_.context_pop(&popped);
  }
  api_.context_release(gpu_.device);
}

Driver::Current::Current(const Driver& driver) : driver_(driver) {
  driver_.check(driver_.api_.context_push(driver_.context_));
}

Driver::Current::~Current() {
  CuContext popped;
  driver_.api_.context_pop(&popped);
}

void Driver::check(CuResult code) const {
  if (!code) return;
  const char *name = nullptr, *text = nullptr;
  api_.error_name(code, &name);
  api_.error_text(code, &text);
  throw DriverError(name ? name : "CUDA error " + std::to_string(code), text ? text : "");
}

std::pair<size_t, size_t> Driver::memory() const {
  std::pair<size_t, size_t> out;
  check(api_.memory(&out.first, &out.second));
  return out;
}

CuAddress Driver::alloc(size_t nbytes) {
  CuAddress address = 0;
  check(api_.alloc(&address, nbytes));
  return address;
}

void Driver::free(CuAddress address) { check(api_.free(address)); }

char* Driver::pinned(size_t nbytes) {
  void* address = nullptr;
  pinned_.reserve(pinned_.size() + 1);
  check(api_.host_alloc(&address, nbytes));
  pinned_.push_back(address);
  return static_cast<char*>(address);
}

void Driver::copy_in(CuAddress address, const void* host, size_t nbytes) {
  check(api_.copy_in(address, host, nbytes, stream_));
}

void Driver::copy_out(void* host, CuAddress address, size_t nbytes) {
  check(api_.copy_out(host, address, nbytes, stream_));
}

void Driver::fill(CuAddress address, unsigned char value, size_t nbytes) {
  check(api_.fill(address, value, nbytes, stream_));
}

CuFunction Driver::load(const std::string& image, const std::string& symbol, int shared) {
  CuModule module = nullptr;
  modules_.reserve(modules_.size() + 1);
  check(api_.module_load(&module, image.data()));
  modules_.push_back(module);
  CuFunction function = nullptr;
  check(api_.module_function(&function, module, symbol.c_str()));
  if (shared > kStaticShared) check(api_.function_set(function, kCuMaxDynamicShared, shared));
  return function;
}

std::optional<std::vector<int64_t>> Driver::parameters(CuFunction kernel) const {
  if (!api_.parameter_info) return std::nullopt;
  std::vector<int64_t> out;
  size_t offset, nbytes;
  while (!api_.parameter_info(kernel, out.size(), &offset, &nbytes)) out.push_back(static_cast<int64_t>(nbytes));
  return out;
}

void Driver::launch(CuFunction kernel, const unsigned (&grid)[3], unsigned threads, unsigned shared,
                    void** arguments) {
  check(api_.launch(kernel, grid[0], grid[1], grid[2], threads, 1, 1, shared, stream_, arguments, nullptr));
}

CuGraphExec Driver::capture(const std::function<void()>& work) {
  check(api_.capture_begin(stream_, kCuCaptureThreadLocal));
  CuGraph graph = nullptr;
  try {
    work();
  } catch (...) {
    if (!api_.capture_end(stream_, &graph) && graph) api_.graph_destroy(graph);
    throw;
  }
  check(api_.capture_end(stream_, &graph));
  CuGraphExec made = nullptr;
  CuResult code = api_.graph_instantiate(&made, graph, 0);
  api_.graph_destroy(graph);
  check(code);
  return made;
}

void Driver::replay(CuGraphExec graph) { check(api_.graph_launch(graph, stream_)); }

void Driver::discard(CuGraphExec graph) { check(api_.graph_free(graph)); }

void Driver::wait() { check(api_.stream_wait(stream_)); }

}  // namespace dsv2
