// Any bytes as tokenizer.json. One that is accepted makes tokens of a text, and text of its tokens.
#include <cstdlib>
#include <optional>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "text/tokenizer.h"

using namespace dsv2;

namespace {

constexpr int32_t kVocab = 512;
constexpr std::string_view kText = "ab abc\r\n  <s>1 23\t\xE4\xB8\xAD\xE6\x96\x87, e\xCC\x81<s\xF0\x9F\x99\x82> ab.\n ";

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    const Tokenizer tokenizer({reinterpret_cast<const char*>(data), size}, std::nullopt, kVocab, 1);
    const std::vector<int32_t> ids = tokenizer.encode(kText);
    TextStream stream(tokenizer);
    for (const int32_t id : ids) {
      if (id < 0 || id >= kVocab) std::abort();
      stream.push(id);
    }
    tokenizer.decode(ids.data(), ids.size());
  } catch (const Error& e) {
    if (e.code != DSV2_MODEL) std::abort();
  }
  return 0;
}
