// The regular expressions of tokenizer.json, which are Oniguruma's, in ICU's syntax.
#pragma once

#include <unicode/uregex.h>

#include <cstdint>
#include <string>
#include <string_view>

namespace dsv2 {

// Translates what both give one meaning: characters, sets, ``.`` ``$`` ``\s`` ``\d`` ``\p{category}`` and their
// negations, groups, ``|``, lookahead, ``?`` ``*`` ``+`` greedy, lazy and possessive, ``{n,m}``. Else Error model.
// ``pattern`` is UTF-8. To be compiled with kRegexFlags: $ is before every newline too, and no other line terminator.
inline constexpr uint32_t kRegexFlags = UREGEX_MULTILINE | UREGEX_UNIX_LINES;
std::string icu_regex(std::string_view pattern);

}  // namespace dsv2
