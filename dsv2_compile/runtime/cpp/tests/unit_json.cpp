// What base/json.h accepts and refuses; test_cpp_verdicts.py holds it to engine/strictjson.py on generated texts.
#include "base/json.h"

#include <cmath>
#include <cstdint>
#include <string>

#include "check.h"

using namespace dsv2;

namespace {

const JsonLimits kLimits{1 << 20, 10, 3, 5};

Json parsed(std::string_view text) { return parse_json(text, kLimits); }

std::string refusal(std::string_view text) {
  try {
    parsed(text);
  } catch (const JsonError& e) {
    return e.what();
  }
  return "";
}

bool refused(std::string_view text, const char* part) { return refusal(text).find(part) != std::string::npos; }

void values() {
  CHECK(parsed(" null\n").is_null());
  CHECK(parsed("true").boolean() && !parsed("false").boolean());
  CHECK(parsed("-0").integer() == 0);
  CHECK(parsed("9223372036854775807").integer() == INT64_MAX);
  CHECK(parsed("-9223372036854775808").integer() == INT64_MIN);
  CHECK(parsed("1.5e2").number() == 150 && parsed("7").number() == 7);
  CHECK(parsed("5e-324").number() > 0 && parsed("1e-9999").number() == 0);
  CHECK(std::signbit(parsed("-0.0").number()));
  CHECK(parsed(R"("\u0041\n\/")").string() == "A\n/");
  CHECK(parsed(R"("\ud83d\ude00")").string() == "\xf0\x9f\x98\x80");
  CHECK(parsed("\"\x7f\xc3\xa9\"").string() == "\x7f\xc3\xa9");
  Json object = parsed(R"({"b":[1,2],"a":{}})");
  CHECK(object.object()[0].first == "b" && object.at("b").array()[1].integer() == 2);
  CHECK(object.find("c") == nullptr && object.at("b").find("a") == nullptr);
}

void syntax() {
  for (const char* text :
       {"", " ", "{", "[", "[1,]", "[,1]", "{\"a\":1,}", "{\"a\"}", "{a:1}", "{1:1}", "01", "1.", ".5", "+1", "1e",
        "1e+", "-", "--1", "tru", "nul", "1 2", "[1]]", "'a'", "\"a", "\"\\", "\"\\x\"", "\"\\u12\"", "\"\\u12g4\"",
        "\"\t\"", "NaN", "Infinity", "-Infinity", "\xef\xbb\xbf[]", "//\n1", "[1 2]"}) {
    CHECK(refused(text, "not valid JSON"));
  }
  CHECK(refused(std::string_view("1\0", 2), "not valid JSON"));
  CHECK(refused(std::string_view("\"\0\"", 3), "control character"));
  for (const char* text : {"\x80", "\xc1\xbf", "\xc3", "\xc3(", "\xe0\x9f\xbf", "\xed\xa0\x80", "\xf0\x8f\xbf\xbf",
                           "\xf4\x90\x80\x80", "\xf5\x80\x80\x80", "\xff"}) {
    CHECK(refused('"' + std::string(text) + '"', "not UTF-8"));
  }
  for (const char* text : {R"("\ud800")", R"("\udc00")", R"("\ud800a")", R"("\ud800\u0041")", R"("\ud800\ud800")"}) {
    CHECK(refused(text, "lone surrogate"));
  }
}

void limits() {
  CHECK(refused("9223372036854775808", "does not fit 64 bits") && refused("-9223372036854775809", "does not fit"));
  CHECK(refused("18446744073709551617", "does not fit") && refused("100000000000000000000", "does not fit"));
  CHECK(refused("1e309", "out of range") && refused("-1e309", "out of range"));
  CHECK(refusal("1." + std::string(62, '1')).empty() && refused("1." + std::string(63, '1'), "out of range"));
  CHECK(refusal("\"\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\"").empty() && refused("\"abcdef\"", "6 characters"));
  CHECK(refused("{\"abcdef\":1}", "6 characters"));
  CHECK(refusal("[[[[]]]]").empty() && refusal("[[[1]]]").empty() && refused("[[[[1]]]]", "nested deeper than 3"));
  CHECK(refusal("[1,1,1,1,1,1,1,1,1,1,1]").empty() && refused("[1,1,1,1,1,1,1,1,1,1,1,1]", "more than 10 elements"));
  CHECK(refused(std::string(1'000'000, '['), "nested deeper"));
  CHECK(refused(std::string((1 << 20) + 1, ' '), "1048577 bytes, the limit is 1048576"));
  CHECK(refused(R"({"a":1,"b":2,"\u0061":3})", "duplicate key 'a'"));
  CHECK(refused(R"({"b":{"a":1,"a":1}})", "duplicate key 'a'"));
}

template <typename F>
bool throws(F f) {
  try {
    f();
  } catch (const JsonError&) {
    return true;
  }
  return false;
}

void kinds() {
  Json number = parsed("1.0"), integer = parsed("1"), text = parsed("\"1\""), flag = parsed("true");
  CHECK(throws([&] { number.integer(); }) && throws([&] { flag.integer(); }) && throws([&] { flag.number(); }));
  CHECK(throws([&] { integer.boolean(); }) && throws([&] { text.number(); }) && throws([&] { integer.string(); }));
  CHECK(throws([&] { text.array(); }) && throws([&] { text.object(); }) && throws([&] { text.at("1"); }));
  CHECK(throws([&] { parsed("{}").at("a"); }));
}

void messages() {
  CHECK(quoted("a'\n\xff") == "'a\\x27\\x0a\\xff'");
  CHECK(quoted(std::string(100, 'a')).size() == 60);
}

}  // namespace

int main() {
  values();
  syntax();
  limits();
  kinds();
  messages();
  return checks_result();
}
