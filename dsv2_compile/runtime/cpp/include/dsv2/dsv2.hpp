// The C ABI of dsv2.h for C++17: handles that close themselves, errors as values. Needs neither exceptions nor RTTI.
//
// Names and meanings are those of the Python runtime. Everything may be called from any thread.
#pragma once

#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "dsv2/dsv2.h"
#include "dsv2/result.hpp"
#include "dsv2/session.hpp"

namespace dsv2 {
inline namespace api {

using EngineInfo = dsv2_engine_info;
using SchedulerOptions = dsv2_scheduler_options;  // zero in a field: its default
using SchedulerStats = dsv2_scheduler_stats;
using Token = dsv2_token;

// True cancels the request.
using OnToken = std::function<bool(const Token&)>;

struct LoadOptions {
  int32_t threads = 0;       // of a CPU engine, per program call; 0: all that the process may use
  int64_t cache_tokens = 0;  // positions of the KV cache of a GPU engine; 0: as many as fit
  std::string onnxruntime;   // its library; empty: $DSV2_ONNXRUNTIME, else libonnxruntime.so.1
};

struct Request {
  Ids prompt;
  int64_t max_new_tokens = 128;
  Sampling sampling;
  uint64_t stream = 0;  // of its random numbers
  Ids stop_tokens;
};

namespace detail {

// A callback whose exceptions stay on this side of the C ABI.
class Guarded {
 public:
  explicit Guarded(OnToken on_token) : on_token_(std::move(on_token)) {}

  // Nonzero cancels, as it does from an exception on.
  int32_t operator()(const Token& token) {
#if defined(__cpp_exceptions)
    if (thrown_) return 1;
    try {
      return on_token_(token);
    } catch (...) {
      thrown_ = std::current_exception();
      return 1;
    }
#else
    return on_token_(token);
#endif
  }
  void rethrow() const {
#if defined(__cpp_exceptions)
    if (thrown_) std::rethrow_exception(thrown_);
#endif
  }

 private:
  OnToken on_token_;
  std::exception_ptr thrown_;
};

}  // namespace detail

// Runs requests together, as they come: each joins the batch when there is room and leaves when it has ended. Callbacks
// run on the scheduler's own thread, one at a time, and must not wait for it: what they do delays all requests.
class Scheduler : public detail::Owner<dsv2_scheduler, dsv2_scheduler_close> {
 public:
  using Owner::Owner;

  // The number of the request. ``on_token``, which may be empty, is called for every token and, where the request ends
  // without one, once more; it may be before this returns. One that throws cancels the request, and is called no more.
  Result<uint64_t> submit(const Request& request, OnToken on_token = nullptr) {
    const dsv2_request given{request.prompt.data(),
                             static_cast<int64_t>(request.prompt.size()),
                             request.max_new_tokens,
                             request.sampling,
                             request.stream,
                             request.stop_tokens.data(),
                             static_cast<int64_t>(request.stop_tokens.size())};
    auto owned = on_token ? std::make_unique<detail::Guarded>(std::move(on_token)) : nullptr;
    return detail::checked(uint64_t{0}, [&](uint64_t* out, dsv2_error* error) {
      const dsv2_on_token call = owned ? deliver : nullptr;
      const dsv2_code code = dsv2_scheduler_submit(handle(), &given, call, owned.get(), out, error);
      if (code == DSV2_OK) owned.release();  // from here on it is deliver's
      return code;
    });
  }
  // A request that has ended is no error.
  Result<void> cancel(uint64_t request) {
    return detail::checked([&](dsv2_error* error) { return dsv2_scheduler_cancel(handle(), request, error); });
  }
  // Returns when nothing waits and nothing is live.
  Result<void> drain() {
    return detail::checked([&](dsv2_error* error) { return dsv2_scheduler_drain(handle(), error); });
  }
  Result<SchedulerStats> stats() const {
    return detail::checked(SchedulerStats{}, [&](SchedulerStats* out, dsv2_error* error) {
      return dsv2_scheduler_stats_get(handle(), out, error);
    });
  }

 private:
  static int32_t deliver(const dsv2_token* token, void* user) {
    auto* on_token = static_cast<detail::Guarded*>(user);
    const int32_t cancels = (*on_token)(*token);
    if (token->finish != DSV2_RUNNING) delete on_token;
    return cancels;
  }
};

// A loaded engine. Sessions and schedulers share its weights; they end with it.
class Engine : public detail::Owner<dsv2_engine, dsv2_engine_close> {
 public:
  // Checks every file's SHA-256, then loads. Whether the numbers of its build were checked: info()->verified.
  static Result<Engine> load(const std::string& path, const LoadOptions& options = {}) {
    const char* library = options.onnxruntime.empty() ? nullptr : options.onnxruntime.c_str();
    const dsv2_load_options given{options.threads, options.cache_tokens, library};
    Result<dsv2_engine> handle = detail::checked(dsv2_engine{}, [&](dsv2_engine* out, dsv2_error* error) {
      return dsv2_engine_load(path.c_str(), &given, out, error);
    });
    if (!handle) return handle.error();
    return Engine(*handle);
  }

  Result<EngineInfo> info() const {
    return detail::checked(EngineInfo{}, [&](EngineInfo* out, dsv2_error* error) {
      return dsv2_engine_info_get(handle(), out, error);
    });
  }
  // ``max_batch`` slots of ``max_tokens`` positions; max_tokens 0: the engine's limit.
  Result<Session> session(int64_t max_batch = 1, int64_t max_tokens = 0) {
    Result<EngineInfo> known = info();
    if (!known) return known.error();
    Result<dsv2_session> opened = detail::checked(dsv2_session{}, [&](dsv2_session* out, dsv2_error* error) {
      return dsv2_session_open(handle(), max_batch, max_tokens, out, error);
    });
    if (!opened) return opened.error();
    return Session(*opened, known->vocab_size);
  }
  Result<Scheduler> scheduler(const SchedulerOptions& options = {}) {
    Result<dsv2_scheduler> opened = detail::checked(dsv2_scheduler{}, [&](dsv2_scheduler* out, dsv2_error* error) {
      return dsv2_scheduler_open(handle(), &options, out, error);
    });
    if (!opened) return opened.error();
    return Scheduler(*opened);
  }
  // Every token of every prompt goes to ``on_token``; returns when all are done. Prompts beyond max_batch_size wait for
  // a free slot; one that fails is the error. What ``on_token`` throws is thrown on, when all prompts have left.
  Result<void> generate(const Prompts& prompts, int64_t max_new_tokens, const Sampling& sampling,
                        const OnToken& on_token) {
    Ids ids;
    std::vector<int64_t> lengths;
    for (const Ids& prompt : prompts) {
      ids.insert(ids.end(), prompt.begin(), prompt.end());
      lengths.push_back(static_cast<int64_t>(prompt.size()));
    }
    const dsv2_sampling chosen = sampling;
    detail::Guarded guarded(on_token);
    auto call = [](const dsv2_token* token, void* user) { return (*static_cast<detail::Guarded*>(user))(*token); };
    Result<void> done = detail::checked([&](dsv2_error* error) {
      return dsv2_generate(handle(), ids.data(), lengths.data(), static_cast<int64_t>(lengths.size()), max_new_tokens,
                           &chosen, call, &guarded, error);
    });
    guarded.rethrow();
    return done;
  }

 private:
  using Owner::Owner;
};

}  // namespace api
}  // namespace dsv2
