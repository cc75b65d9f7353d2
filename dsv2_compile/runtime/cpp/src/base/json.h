// JSON of unknown origin: bounded size, depth and count; no duplicate keys, NaN, Infinity or huge numbers. Accepts and
// refuses exactly what engine/strictjson.py does.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace dsv2 {

struct Json;
using Array = std::vector<Json>;
using Member = std::pair<std::string, Json>;
using Object = std::vector<Member>;  // in the order of the file; keys are unique

// One line: what is wrong and where.
struct JsonError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Json {
  std::variant<std::nullptr_t, bool, int64_t, double, std::string, Array, Object> value;

  bool is_null() const { return std::holds_alternative<std::nullptr_t>(value); }
  bool is_boolean() const { return std::holds_alternative<bool>(value); }
  bool is_integer() const { return std::holds_alternative<int64_t>(value); }
  bool is_number() const { return is_integer() || std::holds_alternative<double>(value); }
  bool is_string() const { return std::holds_alternative<std::string>(value); }
  bool is_array() const { return std::holds_alternative<Array>(value); }
  bool is_object() const { return std::holds_alternative<Object>(value); }

  // nullptr if this is no object or has no such key. Time grows with the number of keys.
  const Json* find(std::string_view key) const;

  // JsonError if this is of another kind, or the key is missing; an integer is a number too.
  const Json& at(std::string_view key) const;
  bool boolean() const;
  int64_t integer() const;
  double number() const;
  const std::string& string() const;
  const Array& array() const;
  const Object& object() const;
};

struct JsonLimits {
  int64_t bytes;
  int64_t elements = 200'000;  // commas, wherever they are
  int depth = 24;
  int64_t string = 65'536;  // code points, of a key too
};

// The value, or JsonError. Time and memory stay proportional to ``limits.bytes``.
Json parse_json(std::string_view data, const JsonLimits& limits);

// For messages: one line of printable ASCII, of at most ``limit`` characters; ``quoted`` between quotes.
std::string printable(std::string_view text, size_t limit = 60);
std::string quoted(std::string_view text, size_t limit = 60);

}  // namespace dsv2
