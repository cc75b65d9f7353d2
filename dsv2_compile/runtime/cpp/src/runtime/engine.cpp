#include "runtime/engine.h"

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "engine/integrity.h"

namespace dsv2 {
namespace {

Error engine_closed() { return {DSV2_USAGE, "The engine is closed.", "Load it again."}; }

void require_limit(const char* name, int64_t value, int64_t limit) {
  if (value < 1 || value > limit) {
    const std::string given = std::to_string(value), most = std::to_string(limit);
    throw Error(DSV2_USAGE, std::string(name) + " is " + given + ", this engine takes 1.." + most + ".",
                "Rebuild it for a larger limit.");
  }
}

// Adds ``object`` to ``all``, from which those that are gone go.
template <class T>
void remember(std::vector<std::weak_ptr<T>>* all, const std::shared_ptr<T>& object) {
  all->erase(std::remove_if(all->begin(), all->end(), [](const auto& other) { return other.expired(); }), all->end());
  all->push_back(object);
}

}  // namespace

std::shared_ptr<Engine> Engine::load(const std::string& root, const LoadOptions& options) {
  if (options.threads < 0) {
    throw Error(DSV2_USAGE, "threads is " + std::to_string(options.threads) + ".", "Use at least one thread.");
  }
  if (options.cache_tokens < 0) {
    throw Error(DSV2_USAGE, "cache_tokens is " + std::to_string(options.cache_tokens) + ".",
                "Give the cache room for one token at least.");
  }
  Manifest manifest = read_manifest(root);
  const Backend& functions = backend(manifest);
  functions.require_compatible(root, manifest, options);
  verify_files(root, manifest);
  std::shared_ptr<Loaded> loaded = functions.load(root, manifest, options);
  return std::make_shared<Engine>(std::move(manifest), std::move(loaded));
}

Engine::Engine(Manifest manifest, std::shared_ptr<Loaded> loaded)
    : manifest_(std::move(manifest)), loaded_(std::move(loaded)) {}

Pages Engine::pages() const { return require_open()->pages(); }

std::shared_ptr<Session> Engine::session(int64_t max_batch, int64_t max_tokens) {
  std::shared_ptr<Loaded> loaded = require_open();
  const int64_t positions = max_tokens ? max_tokens : manifest_.max_seq_len;
  require_limit("max_batch", max_batch, manifest_.max_batch_size);
  require_limit("max_tokens", positions, manifest_.max_seq_len);
  auto session = std::make_shared<Session>(manifest_.model, max_batch, positions, loaded->store(max_batch, positions));
  std::lock_guard lock(mutex_);
  if (!loaded_) throw engine_closed();
  remember(&sessions_, session);
  return session;
}

std::shared_ptr<Scheduler> Engine::scheduler(int64_t max_batch, int64_t max_tokens, Options options) {
  std::shared_ptr<Session> opened = session(max_batch ? max_batch : manifest_.max_batch_size, max_tokens);
  const Limits of_session = limits(max_tokens ? max_tokens : manifest_.max_seq_len);
  auto scheduler = std::make_shared<Scheduler>(std::move(opened), of_session, manifest_.model.eos_token_ids, options);
  std::lock_guard lock(mutex_);
  if (!loaded_) throw engine_closed();
  remember(&schedulers_, scheduler);
  return scheduler;
}

void Engine::generate(std::vector<Request> requests, const OnToken& on_token) {
  if (requests.empty()) throw Error(DSV2_USAGE, "There is no prompt.", "Pass at least one.");
  const int64_t most = manifest_.max_seq_len;
  const Limits of_engine = limits(most);
  int64_t positions = 0;
  for (const Request& request : requests) {
    of_engine.check(request);
    const auto length = static_cast<int64_t>(request.prompt.size());
    positions = std::max(positions, length + std::min(request.max_new_tokens, most - length));
  }
  auto slots = std::min(static_cast<int64_t>(requests.size()), manifest_.max_batch_size);
  std::shared_ptr<Session> opened = session(slots, positions);
  Batch batch(opened.get(), limits(positions), manifest_.model.eos_token_ids, {});
  for (size_t i = 0; i < requests.size(); ++i) batch.submit(i, std::move(requests[i]));
  while (batch.busy()) {
    for (const Event& event : batch.step()) {
      if (event.error) throw *event.error;
      if (on_token && on_token(event) && !event.finish) batch.cancel(event.request);
    }
  }
}

void Engine::close() {
  std::vector<std::shared_ptr<Session>> sessions;
  std::vector<std::shared_ptr<Scheduler>> schedulers;
  {
    std::lock_guard lock(mutex_);
    for (const auto& weak : schedulers_) {
      if (auto scheduler = weak.lock()) schedulers.push_back(std::move(scheduler));
    }
    for (const auto& weak : sessions_) {
      if (auto session = weak.lock()) sessions.push_back(std::move(session));
    }
  }
  for (const auto& scheduler : schedulers) scheduler->require_other_thread();
  std::shared_ptr<Loaded> loaded;
  {
    std::lock_guard lock(mutex_);
    loaded = std::move(loaded_);
  }
  for (const auto& session : sessions) session->close(engine_closed());
  for (const auto& scheduler : schedulers) scheduler->close();
}

std::shared_ptr<Loaded> Engine::require_open() const {
  std::lock_guard lock(mutex_);
  if (!loaded_) throw engine_closed();
  return loaded_;
}

}  // namespace dsv2
