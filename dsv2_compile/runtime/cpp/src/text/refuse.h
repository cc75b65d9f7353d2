// How a tokenizer that cannot be used is refused.
#pragma once

#include <string>

#include "base/error.h"

namespace dsv2 {

// ``what`` is in tokenizer.json, means something, and is not done here.
[[noreturn]] inline void refuse(const std::string& what) {
  throw Error(DSV2_MODEL, "tokenizer.json has " + what + ", which this runtime does not do.",
              "Pass token ids instead of text.");
}

[[noreturn]] inline void malformed(const std::string& what) {
  throw Error(DSV2_MODEL, "The tokenizer files are malformed: " + what.substr(0, 200) + ".", "Check tokenizer.json.");
}

}  // namespace dsv2
