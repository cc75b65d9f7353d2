// The functions of dsv2.h: sessions.
#include <algorithm>
#include <memory>
#include <vector>

#include "abi.h"
#include "runtime/random.h"

using dsv2::Draw;
using dsv2::Engine;
using dsv2::guarded;
using dsv2::Handles;
using dsv2::require_given;
using dsv2::Session;
using dsv2::TokenRows;

namespace {

std::shared_ptr<Session> find(dsv2_session session) { return Handles::all().find<Session>(session.id); }

// tokens [rows, columns] with their lengths.
TokenRows prompts(const int32_t* tokens, int64_t rows, int64_t columns, const int32_t* lengths, const int32_t* slots) {
  require_given(tokens, "tokens");
  require_given(lengths, "lengths");
  return {tokens, rows, columns, lengths, slots};
}

// One token a row.
TokenRows column(const int32_t* tokens, int64_t rows, const int32_t* slots) {
  require_given(tokens, "tokens");
  return {tokens, rows, 1, nullptr, slots};
}

void logits_of(dsv2_session session, void (Session::*method)(const TokenRows&, float*), const TokenRows& rows,
               float* logits) {
  require_given(logits, "logits");
  (find(session).get()->*method)(rows, logits);
}

void next_of(dsv2_session session, void (Session::*method)(const TokenRows&, const Draw*, int32_t*),
             const TokenRows& rows, const dsv2_draw* draws, int32_t* next) {
  require_given(draws, "draws");
  require_given(next, "next");
  const std::shared_ptr<Session> found = find(session);
  std::vector<Draw> chosen;
  // no more than there can be: a session looks at none of them where there are too many rows
  for (int64_t b = 0; b < std::min(rows.rows, found->max_batch()); ++b) {
    chosen.push_back({dsv2::sampling_of(draws[b].sampling), draws[b].uniform});
  }
  (found.get()->*method)(rows, chosen.data(), next);
}

}  // namespace

extern "C" {

dsv2_code dsv2_session_open(dsv2_engine engine, int64_t max_batch, int64_t max_tokens, dsv2_session* out,
                            dsv2_error* error) {
  return guarded(error, [&] {
    require_given(out, "out");
    const auto found = Handles::all().find<Engine>(engine.id);
    out->id = Handles::all().add(found->session(max_batch, max_tokens), engine.id);
  });
}

dsv2_code dsv2_session_prefill(dsv2_session session, const int32_t* tokens, int64_t rows, int64_t columns,
                               const int32_t* lengths, const int32_t* slots, float* logits, dsv2_error* error) {
  return guarded(error, [&] {
    logits_of(session, &Session::prefill, prompts(tokens, rows, columns, lengths, slots), logits);
  });
}

dsv2_code dsv2_session_extend(dsv2_session session, const int32_t* tokens, int64_t rows, int64_t columns,
                              const int32_t* lengths, const int32_t* slots, float* logits, dsv2_error* error) {
  return guarded(error, [&] {
    logits_of(session, &Session::extend, prompts(tokens, rows, columns, lengths, slots), logits);
  });
}

dsv2_code dsv2_session_decode(dsv2_session session, const int32_t* tokens, int64_t rows, const int32_t* slots,
                              float* logits, dsv2_error* error) {
  return guarded(error, [&] { logits_of(session, &Session::decode, column(tokens, rows, slots), logits); });
}

dsv2_code dsv2_session_start(dsv2_session session, const int32_t* tokens, int64_t rows, int64_t columns,
                             const int32_t* lengths, const int32_t* slots, const dsv2_draw* draws, int32_t* next,
                             dsv2_error* error) {
  return guarded(error, [&] {
    next_of(session, &Session::start, prompts(tokens, rows, columns, lengths, slots), draws, next);
  });
}

dsv2_code dsv2_session_resume(dsv2_session session, const int32_t* tokens, int64_t rows, int64_t columns,
                              const int32_t* lengths, const int32_t* slots, const dsv2_draw* draws, int32_t* next,
                              dsv2_error* error) {
  return guarded(error, [&] {
    next_of(session, &Session::resume, prompts(tokens, rows, columns, lengths, slots), draws, next);
  });
}

dsv2_code dsv2_session_step(dsv2_session session, const int32_t* tokens, int64_t rows, const int32_t* slots,
                            const dsv2_draw* draws, int32_t* next, dsv2_error* error) {
  return guarded(error, [&] { next_of(session, &Session::step, column(tokens, rows, slots), draws, next); });
}

dsv2_code dsv2_session_restore(dsv2_session session, const float* cached, int64_t rows, int64_t positions,
                               const int32_t* lengths, const int32_t* slots, dsv2_error* error) {
  return guarded(error, [&] {
    require_given(cached, "cached");
    require_given(lengths, "lengths");
    find(session)->restore(cached, rows, positions, lengths, slots);
  });
}

dsv2_code dsv2_session_free(dsv2_session session, const int32_t* slots, int64_t count, dsv2_error* error) {
  return guarded(error, [&] { find(session)->free(slots, count); });
}

dsv2_code dsv2_session_length(dsv2_session session, int32_t slot, int64_t* out, dsv2_error* error) {
  return guarded(error, [&] {
    require_given(out, "out");
    *out = find(session)->length(slot);
  });
}

dsv2_code dsv2_session_close(dsv2_session session, dsv2_error* error) {
  return guarded(error, [&] { Handles::all().take<Session>(session.id)->close(); });
}

dsv2_code dsv2_uniforms(uint64_t seed, uint64_t stream, int64_t count, double* out, dsv2_error* error) {
  return guarded(error, [&] {
    require_given(out, "out");
    dsv2::RandomStream random(seed, stream);
    for (int64_t i = 0; i < count; ++i) out[i] = random.random();
  });
}

}  // extern "C"
