// The parts that check an engine: patterns, schemas, hashes, files, safetensors headers. Whole engines, and everything
// that Python refuses too, are in tests/null/test_cpp_verdicts.py.
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <string>

#include "base/error.h"
#include "base/files.h"
#include "base/json.h"
#include "base/pattern.h"
#include "base/schema.h"
#include "base/sha256.h"
#include "check.h"
#include "engine/safetensors.h"

using namespace dsv2;

namespace {

template <typename F>
dsv2_code code_of(F f) {
  try {
    f();
  } catch (const Error& e) {
    return e.code;
  }
  return DSV2_OK;
}

void patterns() {
  Pattern path("^[a-z_][a-z0-9._-]*(/[a-z_][a-z0-9._-]*)*$");
  for (const char* text : {"a", "a/b", "a-1/_.x/c", "a.."}) CHECK(path.matches(text));
  for (const char* text : {"", "/", "/a", "a/", "a//b", "a/.b", "A", "a\n", "a/\xc3\xa9", "1"}) {
    CHECK(!path.matches(text));
  }
  Pattern hash("^[0-9a-f]{3}$");
  CHECK(hash.matches("09f") && !hash.matches("09") && !hash.matches("09f0") && !hash.matches("09g"));
  Pattern some("^[!-~]+$");
  CHECK(some.matches("!~") && !some.matches("") && !some.matches("a b"));
  Pattern twice("^x(ab*){2}y*$");
  CHECK(twice.matches("xaa") && twice.matches("xabbaby") && !twice.matches("xab") && !twice.matches("xaaa"));
  Pattern nothing("^(a*)*$");
  CHECK(nothing.matches("") && nothing.matches("aaa") && nothing.matches(std::string(1'000'000, 'a')));
  CHECK(!nothing.matches(std::string(1'000'000, 'a') + "b"));
  for (const char* text : {"", "a", "^a", "a$", "^a|b$", "^a?$", "^.$", "^[^a]$", "^\\d$", "^[\\d]$", "^(a$", "^a)$",
                           "^[a$", "^a{0}$", "^a{1,2}$", "^a{$", "^*$", "^a**$", "^[b-a]$", "^\xc3\xa9$"}) {
    CHECK(code_of([&] { Pattern made(text); }) == DSV2_INTERNAL);
  }
}

size_t refused(const char* schema, const char* value) {
  return Schema(schema).problems(parse_json(value, {1 << 20})).size();
}

void schemas() {
  CHECK(refused(R"({"type":"integer"})", "1") == 0 && refused(R"({"type":"integer"})", "1.0") == 1);
  CHECK(refused(R"({"type":["integer","null"]})", "null") == 0 && refused(R"({"type":"number"})", "true") == 1);
  CHECK(refused(R"({"minimum":2,"maximum":3})", "1") == 1 && refused(R"({"minimum":2,"maximum":3})", "3.5") == 1);
  CHECK(refused(R"({"exclusiveMinimum":0})", "0.0") == 1 && refused(R"({"exclusiveMinimum":0})", "1e-300") == 0);
  CHECK(refused(R"({"enum":["a",1]})", "\"a\"") == 0 && refused(R"({"enum":["a",1]})", "true") == 1);
  CHECK(refused(R"({"maxLength":1})", "\"\xc3\xa9\"") == 0 && refused(R"({"minLength":2})", "\"\xc3\xa9\"") == 1);
  CHECK(refused(R"({"items":{"type":"null"},"maxItems":2})", "[null,1,2]") == 3);
  CHECK(refused(R"({"required":["a","b"]})", R"({"a":1})") == 1);
  CHECK(refused(R"({"properties":{"a":{"const":"x"}},"additionalProperties":false})", R"({"a":"y","b":1})") == 2);
  CHECK(refused(R"({"additionalProperties":{"type":"null"},"propertyNames":{"pattern":"^[a]$"}})", R"({"b":1})") == 2);
  CHECK(refused(R"({"$ref":"#/$defs/n","$defs":{"n":{"type":"null"}}})", "1") == 1);
  CHECK(code_of([] { Schema s(R"({"properties":{"a":{"oneOf":[]}}})"); }) == DSV2_INTERNAL);
}

void hashes() {
  CHECK(sha256_hex("") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  CHECK(sha256_hex("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  Sha256 stream;
  stream.update("a");
  stream.update("bc");
  CHECK(stream.hex() == sha256_hex("abc"));
}

template <typename F>
std::string file_error(F f) {
  try {
    f();
  } catch (const FileError& e) {
    return e.what();
  }
  return "";
}

void files(const std::string& root) {
  std::ofstream(root + "/b") << "12345";
  CHECK(read_file(root + "/b", 100) == "12345" && read_file(root + "/b", 3) == "123");
  CHECK(file_error([&] { File f(root + "/none"); }) == "No such file or directory");
  CHECK(mkfifo((root + "/fifo").c_str(), 0600) == 0 && mkdir((root + "/a").c_str(), 0700) == 0);
  CHECK(symlink("b", (root + "/link").c_str()) == 0 && symlink("a", (root + "/up").c_str()) == 0);
  CHECK(link((root + "/b").c_str(), (root + "/hard").c_str()) == 0);
  CHECK(file_error([&] { File f(root + "/fifo"); }) == "not a regular file");
  CHECK(file_error([&] { File f(root + "/a"); }) == "not a regular file");
  CHECK(!file_error([&] { File f(root + "/link"); }).empty());
  CHECK(file_error([&] { listing(root + "/b"); }) == "Not a directory");
  std::string all;
  for (const Found& file : listing(root)) all += file.path + ":" + file.problem.substr(0, 9) + " ";
  CHECK(all == "b:hard link fifo:not a reg hard:hard link link:symbolic  up:symbolic  a:empty dir ");
}

std::string with_length(const std::string& header, const std::string& data) {
  std::string out;
  for (int i = 0; i < 8; ++i) out += static_cast<char>(header.size() >> 8 * i & 255);
  return out + header + data;
}

void safetensors(const std::string& root) {
  std::string whole = with_length(
      R"({"__metadata__":{"a":"b"},"y":{"dtype":"F4","shape":[2,1],"data_offsets":[4,5]},)"
      R"("x":{"dtype":"BF16","shape":[1,2],"data_offsets":[0,4]},)"
      R"("z":{"dtype":"F32","shape":[0],"data_offsets":[5,5]}})",
      "12345");
  std::ofstream(root + "/w") << whole;
  auto entries = read_safetensors(root + "/w");
  auto base = static_cast<int64_t>(whole.size()) - 5;
  CHECK(entries.size() == 3 && entries.at("x").start == base && entries.at("x").nbytes == 4);
  CHECK(entries.at("y").start == base + 4 && entries.at("x").shape == std::vector<int64_t>({1, 2}));
  for (size_t length = 0; length < whole.size(); ++length) {
    std::string cut = whole.substr(0, length);
    CHECK(code_of([&] { parse_safetensors(cut, static_cast<int64_t>(length)); }) == DSV2_INTEGRITY);
  }
  CHECK(code_of([&] { parse_safetensors(whole + "6", static_cast<int64_t>(whole.size()) + 1); }) == DSV2_INTEGRITY);
  CHECK(code_of([&] { read_safetensors(root + "/fifo"); }) == DSV2_INTEGRITY);
}

}  // namespace

int main() {
  char folder[] = "/tmp/dsv2-unit-XXXXXX";
  std::string root = mkdtemp(folder) ? folder : "";
  CHECK(!root.empty());
  patterns();
  schemas();
  hashes();
  files(root);
  safetensors(root);
  for (const char* name : {"/b", "/hard", "/link", "/up", "/fifo", "/w"}) unlink((root + name).c_str());
  rmdir((root + "/a").c_str());
  rmdir(root.c_str());
  return checks_result();
}
