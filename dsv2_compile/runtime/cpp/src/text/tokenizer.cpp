#include "text/tokenizer.h"

#include <algorithm>
#include <cstddef>
#include <utility>

#include "base/json.h"
#include "base/utf8.h"
#include "text/refuse.h"

namespace dsv2 {
namespace {

constexpr size_t kWindow = 16, kContext = 4;

// DeepSeek-V2 asks for the bos token here, not in tokenizer.json.
bool adds_bos(const std::optional<std::string>& settings) {
  if (!settings) return false;
  try {
    const Json options = parse_json(*settings, JsonLimits{kTokenizerBytes});
    const Json* asked = options.find("add_bos_token");
    return asked && asked->is_boolean() && asked->boolean();
  } catch (const JsonError& e) {
    malformed(std::string("tokenizer_config.json: ") + e.what());
  }
}

void require_token(int32_t id) {
  if (id < 0) throw Error(DSV2_USAGE, "Token " + std::to_string(id) + " is negative.", "Pass token ids.");
}

}  // namespace

Tokenizer::Tokenizer(std::string_view tokenizer, const std::optional<std::string>& settings, int64_t vocab_size,
                     int64_t bos)
    : Tokenizer(parse_tokenizer(tokenizer, vocab_size), adds_bos(settings) ? bos : -1) {}

Tokenizer::Tokenizer(TokenizerFile file, int64_t bos)
    : bpe_(std::move(file.model)),
      pre_tokenizer_(std::move(file.cuts)),
      texts_(std::move(file.texts)),
      before_(std::move(file.before)),
      after_(std::move(file.after)),
      bos_(bos) {
  for (const AddedToken& token : file.added) (token.normalized ? second_ : first_).add(token.content, token.id);
}

std::vector<int32_t> Tokenizer::encode(std::string_view text) const {
  if (text.size() > PreTokenizer::kMaxText) {
    throw Error(DSV2_USAGE, "The text has " + std::to_string(text.size()) + " bytes, the limit is " +
                std::to_string(PreTokenizer::kMaxText) + ".", "Pass it in parts.");
  }
  if (!is_utf8(text)) throw Error(DSV2_USAGE, "The text is not UTF-8.", "Convert it to UTF-8.");
  std::vector<int32_t> ids = before_;
  const auto word = [&](std::string_view w) { bpe_.encode(w, ids); };
  const auto found = [&](int32_t id) { ids.push_back(id); };
  const auto plain = [&](std::string_view part) { pre_tokenizer_.words(part, word); };
  first_.split(text, [&](std::string_view part) { second_.split(part, plain, found); }, found);
  ids.insert(ids.end(), after_.begin(), after_.end());
  if (bos_ >= 0 && (ids.empty() || ids[0] != bos_)) ids.insert(ids.begin(), static_cast<int32_t>(bos_));
  return ids;
}

std::string Tokenizer::decode(const int32_t* ids, size_t count) const {
  std::string bytes;
  for (size_t i = 0; i < count; ++i) {
    require_token(ids[i]);
    if (static_cast<size_t>(ids[i]) < texts_.size()) bytes += texts_[static_cast<size_t>(ids[i])];
  }
  return replace_invalid_utf8(bytes);
}

std::string TextStream::push(int32_t token) {
  require_token(token);
  ids_.push_back(token);
  const std::string text = decode();
  std::string_view whole = text;
  while (text.size() - whole.size() < 3 * kReplacementUtf8.size() && whole.size() >= kReplacementUtf8.size() &&
         whole.substr(whole.size() - kReplacementUtf8.size()) == kReplacementUtf8) {
    whole.remove_suffix(kReplacementUtf8.size());
  }
  std::string out(whole.substr(std::min(given_, whole.size())));
  given_ += out.size();
  if (whole.size() == text.size() && ids_.size() > kWindow) {
    // some tokens stay as context: the first of a decoded run may lose its leading space
    ids_.erase(ids_.begin(), ids_.end() - static_cast<std::ptrdiff_t>(kContext));
    given_ = decode().size();
  }
  return out;
}

std::string TextStream::end() {
  const std::string text = decode();
  std::string out = text.substr(std::min(given_, text.size()));
  given_ += out.size();
  return out;
}

}  // namespace dsv2
