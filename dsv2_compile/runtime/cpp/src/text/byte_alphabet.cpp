#include "text/byte_alphabet.h"

#include <array>

#include "base/utf8.h"

namespace dsv2 {
namespace {

constexpr bool printable(int byte) {
  return (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xFF && byte != 0xAD);
}

struct Alphabet {
  std::array<char32_t, 256> character{};
  std::array<int, 512> byte{};  // -1: stands for none
};

constexpr Alphabet make_alphabet() {
  Alphabet out;
  for (int& byte : out.byte) byte = -1;
  char32_t other = 0x100;
  for (int byte = 0; byte < 256; ++byte) {
    const char32_t c = printable(byte) ? static_cast<char32_t>(byte) : other++;
    out.character[static_cast<size_t>(byte)] = c;
    out.byte[c] = byte;
  }
  return out;
}

constexpr Alphabet kAlphabet = make_alphabet();

}  // namespace

std::string byte_character(unsigned char byte) {
  std::string out;
  append_utf8(out, kAlphabet.character[byte]);
  return out;
}

std::optional<std::string> bytes_of(std::string_view token) {
  std::string out;
  for (size_t at = 0; at < token.size();) {
    const Utf8Char c = utf8_at(token, at);
    if (c.value >= kAlphabet.byte.size() || kAlphabet.byte[c.value] < 0) return std::nullopt;
    out.push_back(static_cast<char>(kAlphabet.byte[c.value]));
    at += c.length;
  }
  return out;
}

}  // namespace dsv2
