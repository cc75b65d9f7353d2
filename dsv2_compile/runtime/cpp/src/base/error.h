// What goes wrong, as every part of the library raises it: a cause, a remedy, a code. Caught where the ABI begins.
#pragma once

#include <exception>
#include <string>
#include <utility>
#include <vector>

#include "dsv2/dsv2.h"

namespace dsv2 {

struct Error : std::exception {
  Error(dsv2_code code_, std::string cause_, std::string remedy_, std::vector<std::string> problems_ = {})
      : code(code_), cause(std::move(cause_)), remedy(std::move(remedy_)), problems(std::move(problems_)) {}
  const char* what() const noexcept override { return cause.c_str(); }

  dsv2_code code;
  std::string cause, remedy;
  std::vector<std::string> problems;
};

// What to do with an engine that is not, or not whole, what was built.
inline constexpr const char* kCopyAgain =
    "Copy the engine again from where it was built, or rebuild it with dsv2-compile build.";

}  // namespace dsv2
