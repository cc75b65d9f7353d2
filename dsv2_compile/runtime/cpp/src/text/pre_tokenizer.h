// Cuts a text into the words that tokens are made of.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

struct URegularExpression;

namespace dsv2 {

// What becomes of the parts that a pattern matches, as the tokenizers library names it.
enum class Behavior { isolated, removed, contiguous, merged_with_previous, merged_with_next };

// One cut: ``pattern`` as in tokenizer.json (regex.h); ``invert``: what does not match is taken for what does.
struct Split {
  std::string pattern;
  Behavior behavior;
  bool invert;
};

// ``splits`` one after the other, each over the pieces of the one before; then a space is put before each piece that
// begins with none, if so asked; then ``last``.
struct Cuts {
  std::vector<Split> splits;
  bool prefix_space = false;
  std::optional<Split> last;
};

class PreTokenizer {
 public:
  // Error model for a pattern that means something else to ICU, or nothing.
  explicit PreTokenizer(Cuts cuts);
  ~PreTokenizer();
  PreTokenizer(PreTokenizer&&) noexcept;

  // Calls ``word`` with the UTF-8 of each. ``text``: UTF-8 of at most kMaxText bytes. Any thread. Error model where a
  // pattern matches no characters or takes too long.
  void words(std::string_view text, const std::function<void(std::string_view)>& word) const;

  static constexpr size_t kMaxText = size_t{1} << 29;

 private:
  struct Close {
    void operator()(URegularExpression* regex) const;
  };
  using Regex = std::unique_ptr<URegularExpression, Close>;
  struct Span;

  static Regex compile(const Split& split);
  void apply(const Split& split, const Regex& compiled, const std::u16string& text, std::vector<Span>& spans) const;

  Cuts cuts_;
  std::vector<Regex> splits_;
  Regex last_;
};

}  // namespace dsv2
