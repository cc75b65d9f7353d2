// An engine directory, checked and loaded.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "engine/manifest.h"
#include "runtime/backend.h"
#include "runtime/scheduler.h"
#include "runtime/session.h"

namespace dsv2 {

// Sessions share its weights; it may be used from several threads.
class Engine {
 public:
  // Checks and loads the engine at ``root``. Nothing but the manifest is read before it is known that this process can
  // run it, nothing loaded before the hashes are checked. One that is unverified is loaded: see Manifest::verified.
  static std::shared_ptr<Engine> load(const std::string& root, const LoadOptions& options);

  Engine(Manifest manifest, std::shared_ptr<Loaded> loaded);

  const Manifest& manifest() const { return manifest_; }
  Pages pages() const;
  // What a sequence may be in a session of ``max_tokens`` positions.
  Limits limits(int64_t max_tokens) const { return {manifest_.model.vocab_size, max_tokens, pages()}; }
  // ``max_batch`` slots with ``max_tokens`` positions each; max_tokens 0: the engine's limit.
  std::shared_ptr<Session> session(int64_t max_batch, int64_t max_tokens);
  // Of at most ``max_batch`` sequences at once, ``max_tokens`` positions each; 0: the engine's limits.
  std::shared_ptr<Scheduler> scheduler(int64_t max_batch, int64_t max_tokens, Options options);
  // All tokens of all requests to ``on_token``, which may be empty; those beyond max_batch_size wait for a free slot. A
  // request that fails is the error that is thrown.
  void generate(std::vector<Request> requests, const OnToken& on_token);
  // Unloads; later calls of this and of its sessions are Errors usage, and what is left in its schedulers fails. Waits
  // for calls that run. Error usage in a callback of one of its schedulers.
  void close();

 private:
  std::shared_ptr<Loaded> require_open() const;

  const Manifest manifest_;
  mutable std::mutex mutex_;
  std::shared_ptr<Loaded> loaded_;  // null: closed
  std::vector<std::weak_ptr<Session>> sessions_;
  std::vector<std::weak_ptr<Scheduler>> schedulers_;
};

}  // namespace dsv2
