// The characters that stand for bytes in a byte-level vocabulary: what Latin-1 can print stands for itself, the other
// bytes, in their order, for U+0100 and on.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace dsv2 {

// The character, in UTF-8, of each byte.
std::string byte_character(unsigned char byte);

// The bytes that ``token`` stands for; none if one of its characters stands for no byte.
std::optional<std::string> bytes_of(std::string_view token);

}  // namespace dsv2
