// The functions of dsv2.h: generation and schedulers.
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "abi.h"

using dsv2::Engine;
using dsv2::Error;
using dsv2::guarded;
using dsv2::Handles;
using dsv2::Request;
using dsv2::require_given;
using dsv2::Scheduler;

namespace {

constexpr int64_t kChunkTokens = 256, kMaxWaiting = 1024;

std::shared_ptr<Scheduler> find(dsv2_scheduler scheduler) { return Handles::all().find<Scheduler>(scheduler.id); }

dsv2::OnToken callback(dsv2_on_token on_token, void* user) {
  if (!on_token) return nullptr;
  return [on_token, user](const dsv2::Event& event) {
    dsv2_token token{event.request, event.token, event.finish, DSV2_OK, nullptr};
    if (event.error) {
      token.code = event.error->code;
      token.cause = event.error->cause.c_str();
    }
    return on_token(&token, user) != 0;
  };
}

std::vector<int32_t> ids(const int32_t* given, int64_t count, const char* name) {
  if (count < 0) throw Error(DSV2_USAGE, std::string(name) + " has a negative length.", "Pass how many ids there are.");
  if (count) require_given(given, name);
  return {given, given + count};
}

// Of one that the caller says is ``length`` long: refused before that much is read.
std::vector<int32_t> prompt(const dsv2::Limits& limits, const int32_t* given, int64_t length) {
  limits.require_fits(length);
  return ids(given, length, "prompt");
}

int64_t option(const char* name, int64_t value, int64_t otherwise) {
  if (value < 0) {
    throw Error(DSV2_USAGE, std::string(name) + " is " + std::to_string(value) + ".", "It must be at least 1.");
  }
  return value ? value : otherwise;
}

}  // namespace

extern "C" {

dsv2_code dsv2_generate(dsv2_engine engine, const int32_t* prompts, const int64_t* lengths, int64_t count,
                        int64_t max_new_tokens, const dsv2_sampling* sampling, dsv2_on_token on_token, void* user,
                        dsv2_error* error) {
  return guarded(error, [&] {
    const auto found = Handles::all().find<Engine>(engine.id);
    if (count > 0) require_given(lengths, "lengths");
    const dsv2::Limits limits = found->limits(found->manifest().max_seq_len);
    std::vector<Request> requests;
    for (int64_t i = 0; i < count; ++i) {
      Request& request = requests.emplace_back();
      request.prompt = prompt(limits, prompts, lengths[i]);
      request.max_new_tokens = max_new_tokens;
      if (sampling) request.sampling = dsv2::sampling_of(*sampling);
      request.stream = static_cast<uint64_t>(i);
      prompts += lengths[i];
    }
    found->generate(std::move(requests), callback(on_token, user));
  });
}

dsv2_code dsv2_scheduler_open(dsv2_engine engine, const dsv2_scheduler_options* options, dsv2_scheduler* out,
                              dsv2_error* error) {
  return guarded(error, [&] {
    require_given(out, "out");
    const auto found = Handles::all().find<Engine>(engine.id);
    const dsv2_scheduler_options given = options ? *options : dsv2_scheduler_options{};
    const dsv2::Options chosen{option("chunk_tokens", given.chunk_tokens, kChunkTokens),
                               option("max_waiting", given.max_waiting, kMaxWaiting)};
    out->id = Handles::all().add(found->scheduler(given.max_batch, given.max_tokens, chosen), engine.id);
  });
}

dsv2_code dsv2_scheduler_submit(dsv2_scheduler scheduler, const dsv2_request* request, dsv2_on_token on_token,
                                void* user, uint64_t* out, dsv2_error* error) {
  return guarded(error, [&] {
    require_given(request, "request");
    require_given(out, "out");
    const auto found = find(scheduler);
    Request chosen;
    chosen.prompt = prompt(found->limits(), request->prompt, request->prompt_length);
    chosen.max_new_tokens = request->max_new_tokens;
    chosen.sampling = dsv2::sampling_of(request->sampling);
    chosen.stream = request->stream;
    chosen.stop = ids(request->stop_tokens, request->stop_count, "stop_tokens");
    *out = found->submit(std::move(chosen), callback(on_token, user));
  });
}

dsv2_code dsv2_scheduler_cancel(dsv2_scheduler scheduler, uint64_t request, dsv2_error* error) {
  return guarded(error, [&] { find(scheduler)->cancel(request); });
}

dsv2_code dsv2_scheduler_drain(dsv2_scheduler scheduler, dsv2_error* error) {
  return guarded(error, [&] { find(scheduler)->drain(); });
}

dsv2_code dsv2_scheduler_stats_get(dsv2_scheduler scheduler, dsv2_scheduler_stats* out, dsv2_error* error) {
  return guarded(error, [&] {
    require_given(out, "out");
    *out = find(scheduler)->stats();
  });
}

dsv2_code dsv2_scheduler_close(dsv2_scheduler scheduler, dsv2_error* error) {
  return guarded(error, [&] {
    find(scheduler)->close();
    Handles::all().take<Scheduler>(scheduler.id);
  });
}

}  // extern "C"
