#include "runtime/requests.h"

#include <algorithm>
#include <string>

#include "runtime/arguments.h"
#include "runtime/sampling.h"

namespace dsv2 {

void Limits::check(const Request& request) const {
  require_valid(request.sampling);
  if (request.max_new_tokens < 1) {
    throw Error(DSV2_USAGE, "max_new_tokens is " + std::to_string(request.max_new_tokens) + ".",
                "Ask for at least one token.");
  }
  const auto length = static_cast<int64_t>(request.prompt.size());
  if (!length) {
    throw Error(DSV2_USAGE, "prompt is empty.", "Pass at least one sequence, and at least one token in each.");
  }
  require_vocabulary(request.prompt.data(), length, vocab_size);
  require_fits(length);
  if (pages.count && pages_of(request) > pages.count) {
    throw Error(DSV2_RESOURCE,
                "A request needs " + std::to_string(pages_of(request)) + " pages, the KV cache has " +
                    std::to_string(pages.count) + " of " + std::to_string(pages.size) + " tokens.",
                "Shorten the prompt, ask for fewer tokens, or load the engine with a larger cache_tokens.");
  }
}

void Limits::require_fits(int64_t prompt_length) const {
  if (prompt_length > max_tokens) {
    throw Error(DSV2_USAGE,
                "A prompt has " + std::to_string(prompt_length) + " tokens, the engine takes " +
                    std::to_string(max_tokens) + ".",
                "Shorten the prompt, or rebuild the engine with a larger --max-seq-len.");
  }
}

int64_t Limits::pages_of(const Request& request) const {
  if (!pages.count) return 0;
  const int64_t room = max_tokens - static_cast<int64_t>(request.prompt.size());
  const int64_t positions = max_tokens - room + std::min(request.max_new_tokens, room);
  return (positions + pages.size - 1) / pages.size;
}

}  // namespace dsv2
