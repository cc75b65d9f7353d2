// Text to tokens and back: what the comparison with the tokenizers library (test_cpp_text.py) runs through, under the
// sanitizers.
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/error.h"
#include "check.h"
#include "text/byte_alphabet.h"
#include "text/regex.h"
#include "text/tokenizer.h"
#include "base/utf8.h"

using namespace dsv2;

namespace {

using Ids = std::vector<int32_t>;

constexpr int64_t kVocab = 260;
constexpr const char* kByteLevel =
    R"({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false})";

std::string json_string(const std::string& c) { return (c == "\"" || c == "\\" ? "\"\\" : "\"") + c + '"'; }

// Bytes, then "ab", "abc" and <s>, a special token.
std::string file(const std::string& pre_tokenizer, const std::string& merges = R"(["a b", "ab c"])") {
  std::string vocab;
  for (int byte = 0; byte < 256; ++byte) {
    vocab += json_string(byte_character(static_cast<unsigned char>(byte))) + ": " + std::to_string(byte) + ", ";
  }
  return R"({"version": "1.0", "added_tokens": [{"id": 258, "content": "<s>", "single_word": false, "lstrip": false,
             "rstrip": false, "normalized": false, "special": true}], "pre_tokenizer": )" + pre_tokenizer +
         R"(, "decoder": {"type": "ByteLevel"}, "model": {"type": "BPE", "vocab": {)" + vocab +
         R"("ab": 256, "abc": 257}, "merges": )" + merges + "}}";
}

std::string split(const std::string& pattern, const std::string& behavior) {
  return R"({"type": "Sequence", "pretokenizers": [{"type": "Split", "pattern": )" + pattern + R"(, "behavior": ")" +
         behavior + R"(", "invert": false}, )" + kByteLevel + "]}";
}

Tokenizer tokenizer(const std::string& contents) { return Tokenizer(contents, std::nullopt, kVocab, -1); }

template <class Body>
dsv2_code code_of(Body body) {
  try {
    body();
    return DSV2_OK;
  } catch (const Error& e) {
    return e.code;
  }
}

std::string decode(const Tokenizer& t, const Ids& ids) { return t.decode(ids.data(), ids.size()); }

void merges_go_by_rank_then_from_the_left() {
  const Tokenizer plain = tokenizer(file(kByteLevel));
  CHECK(plain.encode("abcab") == (Ids{257, 256}));
  CHECK(plain.encode("") == Ids{});
  CHECK(plain.encode("x<s>ab<s") == (Ids{'x', 258, 256, '<', 's'}));
  const Tokenizer turned = tokenizer(file(kByteLevel, R"([["ab", "c"], ["a", "b"]])"));
  CHECK(turned.encode("abc") == (Ids{257}));
  const Tokenizer out_of_reach = tokenizer(file(kByteLevel, R"(["ab c"])"));  // of merges, which make no "ab"
  CHECK(out_of_reach.encode("abc") == (Ids{'a', 'b', 'c'}));
  CHECK(plain.encode(std::string(100'000, 'a')).size() == 100'000);
}

void a_split_keeps_pairs_apart() {
  CHECK(tokenizer(file(split(R"({"Regex": "b"})", "Isolated"))).encode("abc") == (Ids{'a', 'b', 'c'}));
  CHECK(tokenizer(file(split(R"({"String": "b"})", "Removed"))).encode("abc.b") == (Ids{'a', 'c', '.'}));
  CHECK(tokenizer(file(split(R"({"Regex": "b"})", "MergedWithPrevious"))).encode("abc") == (Ids{256, 'c'}));
  CHECK(tokenizer(file(split(R"({"Regex": "a"})", "MergedWithNext"))).encode("abc") == (Ids{257}));
  CHECK(tokenizer(file(split(R"({"Regex": "\\p{L}"})", "Contiguous"))).encode("abc1ab") == (Ids{257, '1', 256}));
}

void bytes_that_are_no_text_become_replacements() {
  const Tokenizer t = tokenizer(file(kByteLevel));
  CHECK(decode(t, {0xE4, 0xB8, 0xAD}) == "\xE4\xB8\xAD");
  CHECK(decode(t, {0xE4, 0xB8, 'a', 0x80, 258, 259, 9999}) == "\uFFFDa\uFFFD");
  CHECK(replace_invalid_utf8("\xF0\x9F\x98") == "\uFFFD");
  CHECK(replace_invalid_utf8("\xED\xA0\x80") == "\uFFFD\uFFFD\uFFFD");
  CHECK(code_of([&] { decode(t, {-1}); }) == DSV2_USAGE);
  for (const char* text : {"\x80", "\xC0\x80", "\xED\xA0\x80", "\xF4\x90\x80\x80", "a\xE4\xB8"}) {
    CHECK(code_of([&] { t.encode(text); }) == DSV2_USAGE);
  }
}

void a_stream_holds_back_parts_of_a_character() {
  const Tokenizer t = tokenizer(file(kByteLevel));
  TextStream stream(t);
  CHECK(stream.push(0xE4).empty() && stream.push(0xB8).empty() && stream.push(0xAD) == "\xE4\xB8\xAD");
  for (int i = 0; i < 40; ++i) CHECK(stream.push('x') == "x");
  CHECK(stream.push(0xF0).empty() && stream.end() == "\uFFFD" && stream.end().empty());
}

void patterns_are_translated_or_refused() {
  CHECK(icu_regex("[^a-c\\s-]+?|\\p{Lu}$") == "[^\\x{61}-\\x{63}\\s\\x{2D}]+?|\\p{Lu}$");
  CHECK(icu_regex("(a|\\u4e00){2,3}(?!\\.)") == "(?:\\x{61}|\\x{4E00}){2,3}(?!\\x{2E})");
  for (const char* pattern : {"\\w", "\\p{Han}", "\\p{^L}", "[[:alpha:]]", "[a&&b]", "[b-a]", "[]", "[", "(a", "a)",
                              "^a", "(?i:a)", "(?<=a)", "a**", "a{2}+", "{", "\\", "\\u12", "\\p{L", "[a-c-e]", "*"}) {
    CHECK(code_of([&] { icu_regex(pattern); }) == DSV2_MODEL);
  }
  CHECK(code_of([] { icu_regex(std::string(100'000, '(')); }) == DSV2_MODEL);
  const Tokenizer empty = tokenizer(file(split(R"({"Regex": "x*"})", "Isolated")));
  CHECK(code_of([&] { empty.encode("a"); }) == DSV2_MODEL);
}

}  // namespace

int main() {
  merges_go_by_rank_then_from_the_left();
  a_split_keeps_pairs_apart();
  bytes_that_are_no_text_become_replacements();
  a_stream_holds_back_parts_of_a_character();
  patterns_are_translated_or_refused();
  return checks_result();
}
