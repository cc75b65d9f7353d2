// tokenizer.json: a byte-level BPE, in the part of the tokenizers library's format that DeepSeek-V2 needs.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "text/bpe.h"
#include "text/pre_tokenizer.h"

namespace dsv2 {

struct AddedToken {
  std::string content;
  int32_t id;
  bool special;     // left out of decoded text
  bool normalized;  // looked for in what lies between those that are not
};

struct TokenizerFile {
  std::vector<AddedToken> added;
  Cuts cuts;
  BpeModel model;
  std::vector<std::string> texts;      // by id: the bytes a token decodes to, none where it is special
  std::vector<int32_t> before, after;  // the tokens put round every text
};

inline constexpr int64_t kTokenizerBytes = 64 << 20;

// Error model if malformed, if it has a token of ``vocab_size`` or more, or anything that is not done here.
TokenizerFile parse_tokenizer(std::string_view data, int64_t vocab_size);

}  // namespace dsv2
