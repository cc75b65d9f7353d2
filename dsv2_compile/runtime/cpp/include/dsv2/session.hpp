// Sequences in flight. Part of dsv2.hpp.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "dsv2/dsv2.h"
#include "dsv2/result.hpp"

namespace dsv2 {
inline namespace api {

using Ids = std::vector<int32_t>;
using Prompts = std::vector<Ids>;
using Slots = std::optional<Ids>;  // none: 0, 1 .. for the rows of a call

// ``temperature`` 0 is greedy; ``top_k`` 0 and ``top_p`` 1 keep all tokens; both given, top_k cuts first.
struct Sampling {
  double temperature = 0;
  int64_t top_k = 0;
  double top_p = 1;
  uint64_t seed = 0;

  operator dsv2_sampling() const { return {temperature, top_k, top_p, seed}; }
};

// How one token is chosen; ``uniform`` in [0, 1).
struct Draw {
  Sampling sampling;
  double uniform = 0;
};

using Draws = std::vector<Draw>;

// Random numbers in [0, 1) of stream number ``stream`` of ``seed``, for Draw.
inline Result<std::vector<double>> uniforms(uint64_t seed, uint64_t stream, size_t count) {
  return detail::checked(std::vector<double>(count), [&](std::vector<double>* out, dsv2_error* error) {
    return dsv2_uniforms(seed, stream, static_cast<int64_t>(count), out->data(), error);
  });
}

// Opened by Engine::session. Its calls wait for each other. One that is refused changes nothing.
class Session : public detail::Owner<dsv2_session, dsv2_session_close> {
 public:
  using Logits = std::vector<float>;  // [rows, vocab_size]

  Session(dsv2_session handle, int64_t vocab_size) : Owner(handle), vocab_size_(static_cast<size_t>(vocab_size)) {}

  // Starts sequences -> logits of each prompt's last token. What a slot held before is discarded.
  Result<Logits> prefill(const Prompts& prompts, const Slots& slots = {}) {
    return logits(dsv2_session_prefill, prompts, slots);
  }
  // More tokens for sequences already there.
  Result<Logits> extend(const Prompts& prompts, const Slots& slots = {}) {
    return logits(dsv2_session_extend, prompts, slots);
  }
  // One token for each.
  Result<Logits> decode(const Ids& tokens, const Slots& slots = {}) {
    if (auto sizes = same(tokens.size(), slots); !sizes) return sizes.error();
    return detail::checked(Logits(tokens.size() * vocab_size_), [&](Logits* out, dsv2_error* error) {
      return dsv2_session_decode(handle(), tokens.data(), size(tokens), data(slots), out->data(), error);
    });
  }
  // As prefill, extend and decode -> the next token of each row, chosen by draws[row].
  Result<Ids> start(const Prompts& prompts, const Draws& draws, const Slots& slots = {}) {
    return next(dsv2_session_start, prompts, draws, slots);
  }
  Result<Ids> resume(const Prompts& prompts, const Draws& draws, const Slots& slots = {}) {
    return next(dsv2_session_resume, prompts, draws, slots);
  }
  Result<Ids> step(const Ids& tokens, const Draws& draws, const Slots& slots = {}) {
    if (auto sizes = same(tokens.size(), slots, &draws); !sizes) return sizes.error();
    const std::vector<dsv2_draw> chosen = converted(draws);
    return detail::checked(Ids(tokens.size()), [&](Ids* out, dsv2_error* error) {
      return dsv2_session_step(handle(), tokens.data(), size(tokens), data(slots), chosen.data(), out->data(), error);
    });
  }
  // Starts sequences from cache rows [layers, rows, positions, cache_dim] computed elsewhere; lengths [rows].
  Result<void> restore(const std::vector<float>& cached, int64_t positions, const Ids& lengths,
                       const Slots& slots = {}) {
    if (auto sizes = same(lengths.size(), slots); !sizes) return sizes;
    return detail::checked([&](dsv2_error* error) {
      return dsv2_session_restore(handle(), cached.data(), size(lengths), positions, lengths.data(), data(slots),
                                  error);
    });
  }
  // Ends sequences; none given: all.
  Result<void> free(const Slots& slots = {}) {
    return detail::checked([&](dsv2_error* error) {
      return dsv2_session_free(handle(), data(slots), slots ? size(*slots) : 0, error);
    });
  }
  // Cached positions of the sequence in ``slot``.
  Result<int64_t> length(int32_t slot) const {
    return detail::checked(int64_t{0}, [&](int64_t* out, dsv2_error* error) {
      return dsv2_session_length(handle(), slot, out, error);
    });
  }

 private:
  // Prompts as the C ABI takes them: [rows, columns], padded on the right.
  struct Padded {
    explicit Padded(const Prompts& prompts) {
      for (const Ids& prompt : prompts) columns = std::max(columns, prompt.size());
      for (const Ids& prompt : prompts) {
        lengths.push_back(static_cast<int32_t>(prompt.size()));
        tokens.insert(tokens.end(), prompt.begin(), prompt.end());
        tokens.resize(lengths.size() * columns);
      }
    }
    size_t columns = 1;
    Ids tokens, lengths;
  };

  template <class Function>
  Result<Logits> logits(Function function, const Prompts& prompts, const Slots& slots) {
    if (auto sizes = same(prompts.size(), slots); !sizes) return sizes.error();
    const Padded rows(prompts);
    return detail::checked(Logits(prompts.size() * vocab_size_), [&](Logits* out, dsv2_error* error) {
      return function(handle(), rows.tokens.data(), size(rows.lengths), static_cast<int64_t>(rows.columns),
                      rows.lengths.data(), data(slots), out->data(), error);
    });
  }

  template <class Function>
  Result<Ids> next(Function function, const Prompts& prompts, const Draws& draws, const Slots& slots) {
    if (auto sizes = same(prompts.size(), slots, &draws); !sizes) return sizes.error();
    const Padded rows(prompts);
    const std::vector<dsv2_draw> chosen = converted(draws);
    return detail::checked(Ids(prompts.size()), [&](Ids* out, dsv2_error* error) {
      return function(handle(), rows.tokens.data(), size(rows.lengths), static_cast<int64_t>(rows.columns),
                      rows.lengths.data(), data(slots), chosen.data(), out->data(), error);
    });
  }

  // What the C ABI cannot see: that there is one slot and one draw a sequence.
  static Result<void> same(size_t rows, const Slots& slots, const Draws* draws = nullptr) {
    if (rows == 0) return refused("There is no sequence.", "Pass at least one.");
    const std::string sequences = " for " + std::to_string(rows) + " sequences.";
    if (slots && slots->size() != rows) {
      return refused(std::to_string(slots->size()) + " slots" + sequences, "Pass one slot per sequence.");
    }
    if (draws && draws->size() != rows) {
      return refused(std::to_string(draws->size()) + " draws" + sequences, "Pass one draw per sequence.");
    }
    return {};
  }
  static Error refused(std::string cause, std::string remedy) {
    return {DSV2_USAGE, std::move(cause), std::move(remedy), {}};
  }

  static std::vector<dsv2_draw> converted(const Draws& draws) {
    std::vector<dsv2_draw> out;
    for (const Draw& draw : draws) out.push_back({draw.sampling, draw.uniform});
    return out;
  }
  static int64_t size(const Ids& ids) { return static_cast<int64_t>(ids.size()); }
  static const int32_t* data(const Slots& slots) { return slots ? slots->data() : nullptr; }

  size_t vocab_size_;
};

}  // namespace api
}  // namespace dsv2
