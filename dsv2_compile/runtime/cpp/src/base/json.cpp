#include "base/json.h"

#include <algorithm>
#include <cstdio>

namespace dsv2 {
namespace {

template <typename T>
const T& as(const Json& json, const char* kind) {
  if (const T* found = std::get_if<T>(&json.value)) return *found;
  throw JsonError(std::string("a value is not ") + kind);
}

}  // namespace

const Json* Json::find(std::string_view key) const {
  const Object* members = std::get_if<Object>(&value);
  if (!members) return nullptr;
  auto found = std::find_if(members->begin(), members->end(), [key](const Member& m) { return m.first == key; });
  return found == members->end() ? nullptr : &found->second;
}

const Json& Json::at(std::string_view key) const {
  object();
  if (const Json* found = find(key)) return *found;
  throw JsonError("key " + quoted(key) + " is missing");
}

bool Json::boolean() const { return as<bool>(*this, "true or false"); }
int64_t Json::integer() const { return as<int64_t>(*this, "an integer"); }
double Json::number() const { return is_integer() ? static_cast<double>(integer()) : as<double>(*this, "a number"); }
const std::string& Json::string() const { return as<std::string>(*this, "a string"); }
const Array& Json::array() const { return as<Array>(*this, "an array"); }
const Object& Json::object() const { return as<Object>(*this, "an object"); }

std::string printable(std::string_view text, size_t limit) {
  std::string out;
  for (char c : text.substr(0, limit + 1)) {
    auto code = static_cast<unsigned char>(c);
    char shown[5] = {c};
    if (code < 0x20 || code >= 0x7f || c == '\'' || c == '\\') std::snprintf(shown, sizeof shown, "\\x%02x", code);
    out += shown;
  }
  if (out.size() > limit) out.replace(limit - 3, out.npos, "...");
  return out;
}

std::string quoted(std::string_view text, size_t limit) { return "'" + printable(text, limit - 2) + "'"; }

}  // namespace dsv2
