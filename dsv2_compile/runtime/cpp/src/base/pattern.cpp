#include "base/pattern.h"

#include <string>

#include "base/error.h"

namespace dsv2 {

class PatternParser {
 public:
  PatternParser(Pattern& out, std::string_view text) : out_(out), text_(text) {}

  Pattern::Piece whole() {
    if (text_.size() < 2 || text_.front() != '^' || text_.back() != '$') fail();
    text_ = text_.substr(1, text_.size() - 2);
    Piece out = sequence();
    if (at_ != text_.size()) fail();
    return out;
  }

 private:
  using Piece = Pattern::Piece;

  Piece sequence() {
    Piece out{{}, {}, true};
    while (at_ < text_.size() && text_[at_] != ')') out = joined(out, repeated());
    return out;
  }

  Piece repeated() {
    size_t start = at_;
    Piece out = item();
    char sign = at_ < text_.size() ? text_[at_] : '\0';
    if (sign == '*' || sign == '+') {
      ++at_;
      link(out.last, out.first);
      out.empty |= sign == '*';
    } else if (sign == '{') {
      ++at_;
      size_t count = number(), end = at_;
      for (size_t i = 1; i < count; ++i) {  // each time has states of its own
        at_ = start;
        out = joined(out, item());
      }
      at_ = end;
    }
    return out;
  }

  Piece item() {
    char c = next();
    if (c == '(') {
      Piece out = sequence();
      if (next() != ')') fail();
      return out;
    }
    std::bitset<256> accepted;
    if (c == '[') {
      bool first = true;
      for (c = next(); c != ']'; c = next(), first = false) {
        if (c == '\\' || c == '[' || (first && c == '^')) fail();
        char last = c;
        if (at_ + 1 < text_.size() && text_[at_] == '-' && text_[at_ + 1] != ']') {
          ++at_;
          last = next();
        }
        if (code(last) < code(c)) fail();
        for (size_t byte = code(c); byte <= code(last); ++byte) accepted.set(byte);
      }
    } else {
      if (std::string_view(".^$*+?{}|\\").find(c) != std::string_view::npos) fail();
      accepted.set(code(c));
    }
    size_t state = out_.accepts_.size();
    out_.accepts_.push_back(accepted);
    out_.next_.emplace_back();
    return {{state}, {state}, false};
  }

  size_t number() {
    size_t out = 0;
    char c = next();
    for (; c >= '0' && c <= '9' && out < 1000; c = next()) out = out * 10 + static_cast<size_t>(c - '0');
    if (c != '}' || out == 0) fail();
    return out;
  }

  Piece joined(const Piece& a, const Piece& b) {
    link(a.last, b.first);
    Piece out{a.first, b.last, a.empty && b.empty};
    if (a.empty) out.first.insert(out.first.end(), b.first.begin(), b.first.end());
    if (b.empty) out.last.insert(out.last.end(), a.last.begin(), a.last.end());
    return out;
  }

  void link(const Pattern::States& from, const Pattern::States& to) {
    for (size_t state : from) out_.next_[state].insert(out_.next_[state].end(), to.begin(), to.end());
  }

  static size_t code(char c) { return static_cast<unsigned char>(c); }

  // Bytes are characters here: ASCII only.
  char next() {
    if (at_ == text_.size() || code(text_[at_]) > 127) fail();
    return text_[at_++];
  }

  [[noreturn]] void fail() const {
    throw Error(DSV2_INTERNAL, "Pattern " + std::string(text_) + " has syntax that is not implemented.",
                "Report this: the schema is part of the library.");
  }

  Pattern& out_;
  std::string_view text_;
  size_t at_ = 0;
};

Pattern::Pattern(std::string_view expression) : whole_(PatternParser(*this, expression).whole()) {
  last_.resize(accepts_.size());
  for (size_t state : whole_.last) last_[state] = true;
}

bool Pattern::matches(std::string_view text) const {
  if (text.empty()) return whole_.empty;
  States here = whole_.first, after;
  std::vector<size_t> entered(accepts_.size());  // by state: the number of the byte before it
  bool ended = false;
  for (size_t i = 0; i < text.size(); ++i) {
    ended = false;
    after.clear();
    for (size_t state : here) {
      if (!accepts_[state][static_cast<unsigned char>(text[i])]) continue;
      ended = ended || last_[state];
      for (size_t to : next_[state]) {
        if (entered[to] == i + 1) continue;
        entered[to] = i + 1;
        after.push_back(to);
      }
    }
    here.swap(after);
  }
  return ended;
}

}  // namespace dsv2
