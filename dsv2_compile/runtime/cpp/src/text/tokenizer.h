// Text to tokens and back, with the tokenizer files of an engine.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "text/added_tokens.h"
#include "text/bpe.h"
#include "text/pre_tokenizer.h"
#include "text/tokenizer_file.h"

namespace dsv2 {

// ``tokenizer`` and ``settings``: tokenizer.json and, if there is one, tokenizer_config.json.
class Tokenizer {
 public:
  // ``bos``: the model's, -1 for none. Error model if a file is malformed or needs what is not done here.
  Tokenizer(std::string_view tokenizer, const std::optional<std::string>& settings, int64_t vocab_size, int64_t bos);

  // Error usage if ``text`` is not UTF-8. Any thread.
  std::vector<int32_t> encode(std::string_view text) const;

  // UTF-8, U+FFFD where the bytes of the tokens are none. Special tokens, and ids without a token, have no text. Error
  // usage for a negative id. Any thread.
  std::string decode(const int32_t* ids, size_t count) const;

 private:
  Tokenizer(TokenizerFile file, int64_t bos);

  Bpe bpe_;
  PreTokenizer pre_tokenizer_;
  AddedTokens first_, second_;  // the latter are looked for in what the former leave
  std::vector<std::string> texts_;
  std::vector<int32_t> before_, after_;
  int64_t bos_;  // begins every text; -1: none
};

// Decodes a growing sequence of tokens; never gives out part of a character.
//
// Bytes of an unfinished UTF-8 character decode to up to three trailing U+FFFD, which are held back.
class TextStream {
 public:
  // ``tokenizer`` outlives this.
  explicit TextStream(const Tokenizer& tokenizer) : tokenizer_(tokenizer) {}

  // The text that ``token`` completes; may be empty.
  std::string push(int32_t token);
  // What was held back: U+FFFD for a character that never came to its end.
  std::string end();

 private:
  std::string decode() const { return tokenizer_.decode(ids_.data(), ids_.size()); }

  const Tokenizer& tokenizer_;
  std::vector<int32_t> ids_;
  size_t given_ = 0;  // bytes of the decoded window already returned
};

}  // namespace dsv2
