#include "text/regex.h"

#include <algorithm>
#include <cstdio>
#include <string>

#include "base/json.h"
#include "base/utf8.h"
#include "text/refuse.h"

namespace dsv2 {
namespace {

constexpr int kMaxDepth = 32;
constexpr int kMaxRepeat = 1000;
constexpr std::u32string_view kSpecial = U"\\^$.|?*+()[]{}";

bool is_digit(char32_t c) { return c >= '0' && c <= '9'; }

std::string character(char32_t c) {
  char text[16];
  std::snprintf(text, sizeof text, "\\x{%X}", static_cast<unsigned>(c));
  return text;
}

// General categories; C is not one of them here, since what is unassigned differs between versions of Unicode.
bool is_category(const std::string& name) {
  static constexpr std::string_view kNames[] = {"L",  "Lu", "Ll", "Lt", "Lm", "Lo", "M",  "Mn", "Mc", "Me",
                                                "N",  "Nd", "Nl", "No", "P",  "Pc", "Pd", "Ps", "Pe", "Pi",
                                                "Pf", "Po", "S",  "Sm", "Sc", "Sk", "So", "Z",  "Zs", "Zl", "Zp"};
  return std::find(std::begin(kNames), std::end(kNames), name) != std::end(kNames);
}

class Translator {
 public:
  explicit Translator(std::string_view pattern) : source_(pattern) {
    for (size_t at = 0; at < pattern.size();) {
      const Utf8Char c = utf8_at(pattern, at);
      in_.push_back(c.value);
      at += c.length;
    }
  }

  std::string run() {
    alternatives(0);
    if (!done()) no("a ) that nothing opens");
    return std::move(out_);
  }

 private:
  bool done() const { return at_ == in_.size(); }
  bool ahead(char32_t c, size_t by = 0) const { return at_ + by < in_.size() && in_[at_ + by] == c; }
  bool take(std::u32string_view text) {
    if (in_.compare(at_, text.size(), text) != 0) return false;
    at_ += text.size();
    return true;
  }
  char32_t next() {
    if (done()) no("an unfinished end");
    return in_[at_++];
  }
  [[noreturn]] void no(const std::string& what) const {
    refuse("the pattern " + quoted(source_) + " with " + what);
  }

  void alternatives(int depth) {
    if (depth > kMaxDepth) no("groups nested deeper than " + std::to_string(kMaxDepth));
    while (!done() && !ahead(')')) {
      if (take(U"|")) {
        out_ += '|';
      } else if (atom(depth)) {
        quantifier();
      }
    }
  }

  // Whether it may be repeated.
  bool atom(int depth) {
    if (take(U"(?=")) {
      group("(?=", depth);
      return false;
    }
    if (take(U"(?!")) {
      group("(?!", depth);
      return false;
    }
    if (take(U"(?:") || (!ahead('?', 1) && take(U"("))) {
      group("(?:", depth);
      return true;
    }
    if (ahead('(')) no("a group of another kind than (?: (?= (?!");
    if (take(U"[")) {
      set();
      return true;
    }
    if (take(U".")) {
      out_ += "[^\\x{A}]";
      return true;
    }
    if (take(U"$")) {
      out_ += '$';
      return false;
    }
    if (ahead('\\')) {
      const char32_t c = escape(out_);
      if (c != kClass) out_ += character(c);
      return true;
    }
    const char32_t c = next();
    if (kSpecial.find(c) != kSpecial.npos) no("a bare " + std::string(1, static_cast<char>(c)));
    out_ += character(c);
    return true;
  }

  void group(const char* open, int depth) {
    out_ += open;
    alternatives(depth + 1);
    if (!take(U")")) no("a group that nothing closes");
    out_ += ')';
  }

  void quantifier() {
    if (take(U"{")) {
      out_ += '{' + number();
      if (take(U",")) out_ += ',' + (ahead('}') ? "" : number());
      if (!take(U"}")) no("a { that is no repetition");
      out_ += '}';
    } else if (ahead('?') || ahead('*') || ahead('+')) {
      out_ += static_cast<char>(next());
      if (ahead('?') || ahead('+')) out_ += static_cast<char>(next());
    }
    if (ahead('?') || ahead('*') || ahead('+') || ahead('{')) no("a repetition of a repetition");
  }

  std::string number() {
    std::string digits;
    while (!done() && is_digit(in_[at_]) && digits.size() < 5) digits += static_cast<char>(next());
    if (digits.empty() || std::stoi(digits) > kMaxRepeat) no("a { that is no repetition of at most 1000");
    return digits;
  }

  static constexpr char32_t kClass = 0xFFFFFFFF;

  // A character, or kClass if it is a class, which then is written to ``out``.
  char32_t escape(std::string& out) {
    ++at_;
    const char32_t c = next();
    switch (c) {
      case 's': case 'S': case 'd': case 'D':
        out += '\\';
        out += static_cast<char>(c);
        return kClass;
      case 'p': case 'P':
        out += '\\';
        out += static_cast<char>(c);
        out += category();
        return kClass;
      case 'n': return '\n';
      case 'r': return '\r';
      case 't': return '\t';
      case 'f': return '\f';
      case 'v': return '\v';
      case 'u': return code_unit();
      default:
        if (c >= 0x80 || is_digit(c) || ((c | 0x20) >= 'a' && (c | 0x20) <= 'z')) {
          no("an escape that is not one of \\d \\D \\f \\n \\p \\P \\r \\s \\S \\t \\u \\v");
        }
        return c;
    }
  }

  std::string category() {
    std::string name;
    if (!take(U"{")) no("a \\p without its {");
    while (!ahead('}')) append_utf8(name, next());
    ++at_;
    if (!is_category(name)) no("the class " + quoted(name));
    return '{' + name + '}';
  }

  char32_t code_unit() {
    char32_t value = 0;
    for (int i = 0; i < 4; ++i) {
      const char32_t c = next();
      const char32_t lower = c | 0x20;
      if (!is_digit(c) && !(lower >= 'a' && lower <= 'f')) no("a \\u without four digits");
      value = value * 16 + (is_digit(c) ? c - '0' : lower - 'a' + 10);
    }
    if (value >= 0xD800 && value < 0xE000) no("a surrogate");
    return value;
  }

  void set() {
    out_ += take(U"^") ? "[^" : "[";
    for (bool first = true; first || !ahead(']'); first = false) {
      if (ahead(']')) no("an empty set");
      const char32_t low = member(first);
      if (low == kClass) continue;
      out_ += character(low);
      if (!ahead('-') || ahead(']', 1)) continue;
      ++at_;
      const char32_t high = member(false);
      if (high == kClass || high < low) no("a range without order");
      out_ += '-' + character(high);
    }
    ++at_;
    out_ += ']';
  }

  char32_t member(bool hyphen) {
    if (ahead('\\')) return escape(out_);
    if (ahead('[')) no("a set within a set");
    if (ahead('&') && ahead('&', 1)) no("an intersection of sets");
    if (ahead('-') && !hyphen && !ahead(']', 1)) no("a - in the middle of a set");
    return next();
  }

  std::string source_;
  std::u32string in_;
  size_t at_ = 0;
  std::string out_;
};

}  // namespace

std::string icu_regex(std::string_view pattern) { return Translator(pattern).run(); }

}  // namespace dsv2
