// UTF-8 as Unicode defines it: no overlong forms, no surrogates, nothing above U+10FFFF.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace dsv2 {

inline constexpr char32_t kReplacement = 0xFFFD;
inline constexpr std::string_view kReplacementUtf8 = "\xEF\xBF\xBD";

// ``length`` bytes are one character or, where ``valid`` is false, the longest part of one that is there, at least 1.
struct Utf8Char {
  char32_t value;
  size_t length;
  bool valid;
};

// The character at ``at``, which is below text.size().
Utf8Char utf8_at(std::string_view text, size_t at);

bool is_utf8(std::string_view text);

void append_utf8(std::string& out, char32_t value);

// ``bytes`` with U+FFFD in place of every part that is not UTF-8.
std::string replace_invalid_utf8(std::string_view bytes);

}  // namespace dsv2
