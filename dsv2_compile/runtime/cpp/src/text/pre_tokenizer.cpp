#include "text/pre_tokenizer.h"

#include <unicode/uregex.h>
#include <unicode/ustring.h>

#include <utility>

#include "base/json.h"
#include "text/refuse.h"
#include "text/regex.h"

namespace dsv2 {
namespace {

// Of one search: some 10 s, in ICU's units of 10,000 steps, and the bytes for what it may come back to: a run of a
// million spaces needs 40 MB of them.
constexpr int32_t kTimeLimit = 100'000, kStackLimit = 1 << 28;

void check(UErrorCode status, const std::string& pattern) {
  if (status == U_REGEX_TIME_OUT || status == U_REGEX_STACK_OVERFLOW) {
    throw Error(DSV2_MODEL, "The pattern " + quoted(pattern) + " of tokenizer.json takes too long over this text.",
                "Pass token ids instead of text.");
  }
  if (U_FAILURE(status)) throw Error(DSV2_INTERNAL, std::string("ICU failed: ") + u_errorName(status) + ".", "");
}

std::u16string utf16(std::string_view text) {
  std::u16string out(text.size(), u'\0');
  int32_t length = 0;
  UErrorCode status = U_ZERO_ERROR;
  u_strFromUTF8(out.data(), static_cast<int32_t>(out.size()), &length, text.data(), static_cast<int32_t>(text.size()),
                &status);
  check(status, "");
  out.resize(static_cast<size_t>(length));
  return out;
}

}  // namespace

// Begin and end in UTF-16 units.
struct PreTokenizer::Span {
  int32_t begin, end;
};

void PreTokenizer::Close::operator()(URegularExpression* regex) const { uregex_close(regex); }

PreTokenizer::PreTokenizer(Cuts cuts) : cuts_(std::move(cuts)) {
  for (const Split& split : cuts_.splits) splits_.push_back(compile(split));
  if (cuts_.last) last_ = compile(*cuts_.last);
}

PreTokenizer::~PreTokenizer() = default;
PreTokenizer::PreTokenizer(PreTokenizer&&) noexcept = default;

PreTokenizer::Regex PreTokenizer::compile(const Split& split) {
  const std::u16string pattern = utf16(icu_regex(split.pattern));
  UErrorCode status = U_ZERO_ERROR;
  UParseError where;
  Regex out(uregex_open(pattern.data(), static_cast<int32_t>(pattern.size()), kRegexFlags, &where, &status));
  if (U_FAILURE(status)) refuse("the pattern " + quoted(split.pattern) + " (" + u_errorName(status) + ")");
  return out;
}

// Replaces ``spans`` by what the split makes of them.
void PreTokenizer::apply(const Split& split, const Regex& compiled, const std::u16string& text,
                         std::vector<Span>& spans) const {
  UErrorCode status = U_ZERO_ERROR;
  const Regex regex(uregex_clone(compiled.get(), &status));  // the compiled one is shared between threads
  uregex_setTimeLimit(regex.get(), kTimeLimit, &status);
  uregex_setStackLimit(regex.get(), kStackLimit, &status);
  uregex_setText(regex.get(), text.data(), static_cast<int32_t>(text.size()), &status);
  check(status, split.pattern);

  std::vector<Span> out;
  out.reserve(spans.size());
  size_t first = 0;          // of ``out``, made of the present span
  bool after_match = false;  // the part before was a match
  auto part = [&](int32_t begin, int32_t end, bool matched) {
    if (begin == end) return;
    matched = matched != split.invert;
    const bool joins = out.size() > first &&
                       ((split.behavior == Behavior::contiguous && matched == after_match) ||
                        (split.behavior == Behavior::merged_with_previous && matched && !after_match) ||
                        (split.behavior == Behavior::merged_with_next && !matched && after_match));
    after_match = matched;
    if (joins) {
      out.back().end = end;
    } else if (!matched || split.behavior != Behavior::removed) {
      out.push_back({begin, end});
    }
  };
  for (const Span span : spans) {
    first = out.size();
    after_match = false;
    int32_t done = span.begin;
    uregex_setRegion(regex.get(), span.begin, span.end, &status);
    while (uregex_findNext(regex.get(), &status)) {
      const int32_t begin = uregex_start(regex.get(), 0, &status), end = uregex_end(regex.get(), 0, &status);
      if (begin == end) refuse("the pattern " + quoted(split.pattern) + " that matches no characters");
      part(done, begin, false);
      part(begin, end, true);
      done = end;
    }
    check(status, split.pattern);
    part(done, span.end, false);
  }
  spans = std::move(out);
}

void PreTokenizer::words(std::string_view text, const std::function<void(std::string_view)>& word) const {
  std::u16string units = utf16(text);
  std::vector<Span> spans{{0, static_cast<int32_t>(units.size())}};
  for (size_t i = 0; i < splits_.size(); ++i) apply(cuts_.splits[i], splits_[i], units, spans);
  if (cuts_.prefix_space) {
    std::u16string spaced;
    for (Span& span : spans) {
      const auto begin = static_cast<size_t>(span.begin), count = static_cast<size_t>(span.end - span.begin);
      span.begin = static_cast<int32_t>(spaced.size());
      if (units[begin] != u' ') spaced += u' ';
      spaced.append(units, begin, count);
      span.end = static_cast<int32_t>(spaced.size());
    }
    units = std::move(spaced);
  }
  if (last_) apply(*cuts_.last, last_, units, spans);
  std::string bytes;
  for (const Span span : spans) {
    bytes.resize(3 * static_cast<size_t>(span.end - span.begin));
    int32_t length = 0;
    UErrorCode status = U_ZERO_ERROR;
    u_strToUTF8(bytes.data(), static_cast<int32_t>(bytes.size()), &length, units.data() + span.begin,
                span.end - span.begin, &status);
    check(status, "");
    word(std::string_view(bytes).substr(0, static_cast<size_t>(length)));
  }
}

}  // namespace dsv2
