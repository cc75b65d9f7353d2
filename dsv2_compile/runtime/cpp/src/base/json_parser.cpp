#include "base/json.h"

#include <locale.h>  // newlocale, strtod_l
#include <stdlib.h>

#include <algorithm>
#include <cmath>

#include "base/utf8.h"

namespace dsv2 {
namespace {

class Parser {
 public:
  Parser(std::string_view data, const JsonLimits& limits) : data_(data), limits_(limits) {}

  Json document() {
    Json out = value(0);
    skip_space();
    if (at_ != data_.size()) fail("expected the end");
    return out;
  }

 private:
  Json value(int depth) {
    if (depth > limits_.depth) throw JsonError("nested deeper than " + std::to_string(limits_.depth));
    skip_space();
    switch (peek()) {
      case '{': return {object(depth)};
      case '[': return {array(depth)};
      case '"': return {string()};
      case 't': return word("true", {true});
      case 'f': return word("false", {false});
      case 'n': return word("null", {nullptr});
      default: return number();
    }
  }

  Object object(int depth) {
    Object out;
    ++at_;
    skip_space();
    if (take('}')) return out;
    do {
      skip_space();
      if (peek() != '"') fail("expected a key");
      std::string key = string();
      skip_space();
      if (!take(':')) fail("expected ':'");
      Json item = value(depth + 1);
      out.emplace_back(std::move(key), std::move(item));
      skip_space();
    } while (take(','));
    if (!take('}')) fail("expected ',' or '}'");
    require_unique(out);
    return out;
  }

  Array array(int depth) {
    Array out;
    ++at_;
    skip_space();
    if (take(']')) return out;
    do {
      out.push_back(value(depth + 1));
      skip_space();
    } while (take(','));
    if (!take(']')) fail("expected ',' or ']'");
    return out;
  }

  static void require_unique(const Object& object) {
    std::vector<std::string_view> keys;
    keys.reserve(object.size());
    for (const Member& member : object) keys.push_back(member.first);
    std::sort(keys.begin(), keys.end());
    auto twice = std::adjacent_find(keys.begin(), keys.end());
    if (twice != keys.end()) throw JsonError("duplicate key " + quoted(*twice));
  }

  std::string string() {
    std::string out;
    int64_t points = 0;
    for (++at_; !take('"'); ++points) {
      unsigned char c = byte();
      if (c < 0x20) fail("control character in a string");
      if (c == '\\') {
        ++at_;
        escape(out);
      } else {
        const Utf8Char point = utf8_at(data_, at_);
        if (!point.valid) fail("not UTF-8");
        out += data_.substr(at_, point.length);
        at_ += point.length;
      }
    }
    if (points > limits_.string) {
      throw JsonError("string of " + std::to_string(points) + " characters, the limit is " +
                      std::to_string(limits_.string));
    }
    return out;
  }

  void escape(std::string& out) {
    static constexpr std::string_view names = "\"\\/bfnrt", values = "\"\\/\b\f\n\r\t";
    char c = static_cast<char>(byte());
    ++at_;
    if (size_t i = names.find(c); i != names.npos) {
      out += values[i];
    } else if (c == 'u') {
      uint32_t point = hex();
      if (point >= 0xd800 && point < 0xdc00 && data_.substr(at_, 2) == "\\u") {
        at_ += 2;
        uint32_t low = hex();
        if (low < 0xdc00 || low > 0xdfff) throw JsonError("string with a lone surrogate");
        point = 0x10000 + ((point - 0xd800) << 10) + (low - 0xdc00);
      }
      if (point >= 0xd800 && point <= 0xdfff) throw JsonError("string with a lone surrogate");
      append_utf8(out, point);
    } else {
      fail("unknown escape");
    }
  }

  uint32_t hex() {
    uint32_t out = 0;
    for (int i = 0; i < 4; ++i, ++at_) {
      unsigned char c = byte();
      uint32_t digit = c >= '0' && c <= '9'   ? c - '0'
                       : c >= 'a' && c <= 'f' ? c - 'a' + 10
                       : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                              : 16u;
      if (digit == 16) fail("expected four hexadecimal digits");
      out = out * 16 + digit;
    }
    return out;
  }

  Json number() {
    size_t start = at_;
    take('-');
    if (!digit(at_)) fail("expected a value");
    if (!take('0')) skip_digits();
    bool whole = true;
    if (peek() == '.' && digit(at_ + 1)) {
      whole = false;
      ++at_;
      skip_digits();
    }
    if (peek() == 'e' || peek() == 'E') {
      size_t digits = at_ + 1;
      if (digits < data_.size() && (data_[digits] == '+' || data_[digits] == '-')) ++digits;
      if (digit(digits)) {
        whole = false;
        at_ = digits;
        skip_digits();
      }
    }
    std::string text(data_.substr(start, at_ - start));
    return whole ? Json{integer(text)} : Json{real(text)};
  }

  static int64_t integer(const std::string& text) {
    bool negative = text[0] == '-';
    uint64_t limit = uint64_t{1} << 63, size = 0;
    if (text.size() > 20) fail_integer(text);
    for (char c : text.substr(negative)) {
      uint64_t next = static_cast<uint64_t>(c - '0');
      if (size > (limit - next) / 10) fail_integer(text);
      size = size * 10 + next;
    }
    if (!negative && size == limit) fail_integer(text);
    return static_cast<int64_t>(negative ? 0 - size : size);
  }

  static double real(const std::string& text) {
    // strtod alone would read the decimal point of the program's locale
    static const locale_t c_locale = newlocale(LC_ALL_MASK, "C", nullptr);
    double out = text.size() > 64 ? HUGE_VAL : strtod_l(text.c_str(), nullptr, c_locale);
    if (!std::isfinite(out)) throw JsonError("number " + text.substr(0, 24) + " is out of range");
    return out;
  }

  [[noreturn]] static void fail_integer(const std::string& text) {
    throw JsonError("integer " + text.substr(0, 24) + " does not fit 64 bits");
  }

  Json word(std::string_view text, Json out) {
    if (data_.substr(at_, text.size()) != text) fail("expected a value");
    at_ += text.size();
    return out;
  }

  void skip_space() {
    while (at_ < data_.size() && (data_[at_] == ' ' || data_[at_] == '\t' || data_[at_] == '\n' || data_[at_] == '\r'))
      ++at_;
  }

  void skip_digits() {
    while (digit(at_)) ++at_;
  }

  bool digit(size_t at) const { return at < data_.size() && data_[at] >= '0' && data_[at] <= '9'; }

  // 0 at the end, as for a NUL: neither begins anything.
  char peek() const { return at_ < data_.size() ? data_[at_] : '\0'; }

  bool take(char c) {
    bool there = at_ < data_.size() && data_[at_] == c;
    at_ += there;
    return there;
  }

  // Of a string, which may not end here.
  unsigned char byte() const {
    if (at_ == data_.size()) fail("unterminated string");
    return static_cast<unsigned char>(data_[at_]);
  }

  [[noreturn]] void fail(const char* what) const {
    throw JsonError(std::string("not valid JSON: ") + what + " at byte " + std::to_string(at_));
  }

  std::string_view data_;
  const JsonLimits& limits_;
  size_t at_ = 0;
};

}  // namespace

Json parse_json(std::string_view data, const JsonLimits& limits) {
  auto size = static_cast<int64_t>(data.size());
  if (size > limits.bytes) {
    throw JsonError(std::to_string(size) + " bytes, the limit is " + std::to_string(limits.bytes));
  }
  if (std::count(data.begin(), data.end(), ',') > limits.elements) {
    throw JsonError("more than " + std::to_string(limits.elements) + " elements");
  }
  return Parser(data, limits).document();
}

}  // namespace dsv2
