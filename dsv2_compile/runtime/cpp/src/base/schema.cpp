#include "base/schema.h"

#include <algorithm>
#include <iterator>
#include <unordered_map>
#include <unordered_set>

#include "base/error.h"

namespace dsv2 {
namespace {

// For messages: a value in one short line.
std::string brief(const Json& json) {
  if (json.is_null()) return "null";
  if (json.is_boolean()) return json.boolean() ? "true" : "false";
  if (json.is_integer()) return std::to_string(json.integer());
  if (json.is_number()) return std::to_string(json.number());
  if (json.is_string()) return quoted(json.string());
  if (json.is_array()) return "an array of " + std::to_string(json.array().size());
  return "an object of " + std::to_string(json.object().size());
}

bool is_of(const Json& value, const std::string& type) {
  if (type == "object") return value.is_object();
  if (type == "array") return value.is_array();
  if (type == "string") return value.is_string();
  if (type == "integer") return value.is_integer();
  if (type == "number") return value.is_number();
  if (type == "boolean") return value.is_boolean();
  return type == "null" && value.is_null();
}

bool is_of_any(const Json& value, const Json& types) {
  if (types.is_string()) return is_of(value, types.string());
  const Array& all = types.array();
  return std::any_of(all.begin(), all.end(), [&](const Json& type) { return is_of(value, type.string()); });
}

std::string names(const Json& types) {
  if (types.is_string()) return types.string();
  std::string out;
  for (const Json& type : types.array()) out += (out.empty() ? "" : " or ") + type.string();
  return out;
}

// Of two strings, numbers, or other scalars: kind and value.
bool same(const Json& a, const Json& b) {
  if (a.is_string() && b.is_string()) return a.string() == b.string();
  if (a.is_integer() && b.is_integer()) return a.integer() == b.integer();
  if (a.is_boolean() && b.is_boolean()) return a.boolean() == b.boolean();
  return a.is_null() && b.is_null();
}

bool below(const Json& a, const Json& b) {
  return a.is_integer() && b.is_integer() ? a.integer() < b.integer() : a.number() < b.number();
}

int64_t code_points(const std::string& text) {
  return std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xc0) != 0x80; });
}

int64_t count(const Array& array) { return static_cast<int64_t>(array.size()); }
int64_t count(const Object& object) { return static_cast<int64_t>(object.size()); }

struct Limit {
  bool (*holds)(const Json& value, const Json& argument);
  const char* otherwise;
};

// Each holds for a value of a kind that it does not speak of.
const std::unordered_map<std::string, Limit> kLimits = {
    {"enum",
     {[](const Json& v, const Json& a) {
        return std::any_of(a.array().begin(), a.array().end(), [&](const Json& x) { return same(v, x); });
      },
      "is not one of"}},
    {"const", {[](const Json& v, const Json& a) { return same(v, a); }, "is not"}},
    {"minimum", {[](const Json& v, const Json& a) { return !v.is_number() || !below(v, a); }, "is below"}},
    {"maximum", {[](const Json& v, const Json& a) { return !v.is_number() || !below(a, v); }, "is above"}},
    {"exclusiveMinimum", {[](const Json& v, const Json& a) { return !v.is_number() || below(a, v); }, "is not above"}},
    {"minLength",
     {[](const Json& v, const Json& a) { return !v.is_string() || code_points(v.string()) >= a.integer(); },
      "is shorter than"}},
    {"maxLength",
     {[](const Json& v, const Json& a) { return !v.is_string() || code_points(v.string()) <= a.integer(); },
      "is longer than"}},
    {"minItems",
     {[](const Json& v, const Json& a) { return !v.is_array() || count(v.array()) >= a.integer(); },
      "has fewer entries than"}},
    {"maxItems",
     {[](const Json& v, const Json& a) { return !v.is_array() || count(v.array()) <= a.integer(); },
      "has more entries than"}},
    {"minProperties",
     {[](const Json& v, const Json& a) { return !v.is_object() || count(v.object()) >= a.integer(); },
      "has fewer keys than"}},
    {"maxProperties",
     {[](const Json& v, const Json& a) { return !v.is_object() || count(v.object()) <= a.integer(); },
      "has more keys than"}},
};

// Implemented by Schema::check, or without effect.
const std::unordered_set<std::string> kOthers = {
    "$ref",  "type",    "properties", "required", "additionalProperties", "propertyNames",
    "items", "pattern", "$schema",    "$id",      "$defs",                "title",         "description"};

constexpr JsonLimits kSchemaLimits{1 << 20};

}  // namespace

Schema::Schema(std::string_view text) : root_(parse_json(text, kSchemaLimits)) { prepare(root_); }

void Schema::prepare(const Json& schema) {
  for (const auto& [keyword, argument] : schema.object()) {
    if (!kLimits.count(keyword) && !kOthers.count(keyword)) {
      throw Error(DSV2_INTERNAL, "Schema keyword " + keyword + " is not implemented.",
                  "Report this: the schema is part of the library.");
    }
    if (keyword == "pattern") patterns_.try_emplace(argument.string(), argument.string());
    if (keyword == "properties" || keyword == "$defs") {
      for (const Member& member : argument.object()) prepare(member.second);
    }
    if (keyword == "items" || keyword == "propertyNames" ||
        (keyword == "additionalProperties" && argument.is_object())) {
      prepare(argument);
    }
  }
}

std::vector<std::string> Schema::problems(const Json& value) const {
  Lines found;
  check(value, root_, "", found);
  return found;
}

void Schema::check(const Json& value, const Json& schema, const std::string& path, Lines& found) const {
  auto refuse = [&](const std::string& why) {
    found.push_back((path.empty() ? "top level" : path) + ": " + brief(value) + " " + why);
  };
  if (const Json* reference = schema.find("$ref")) {
    std::string_view name = reference->string();
    check(value, root_.at("$defs").at(name.substr(std::string_view("#/$defs/").size())), path, found);
  }
  const Json* type = schema.find("type");
  if (type && !is_of_any(value, *type)) {
    refuse("is not " + names(*type));
    return;
  }
  for (const auto& [keyword, argument] : schema.object()) {
    auto limit = kLimits.find(keyword);
    if (limit != kLimits.end() && !limit->second.holds(value, argument)) {
      refuse(std::string(limit->second.otherwise) + " " + brief(argument));
    }
    if (keyword == "pattern" && value.is_string() && !patterns_.at(argument.string()).matches(value.string())) {
      refuse("does not match " + brief(argument));
    }
  }
  if (value.is_object()) check_object(value, schema, path, found);
  const Json* items = value.is_array() ? schema.find("items") : nullptr;
  for (size_t i = 0; items && i < value.array().size(); ++i) {
    check(value.array()[i], *items, path + "[" + std::to_string(i) + "]", found);
  }
}

void Schema::check_object(const Json& value, const Json& schema, const std::string& path, Lines& found) const {
  const Json* known = schema.find("properties");
  const Json* rest = schema.find("additionalProperties");
  const Json* keys = schema.find("propertyNames");
  if (const Json* required = schema.find("required")) {
    for (const Json& key : required->array()) {
      if (!value.find(key.string())) {
        found.push_back((path.empty() ? "top level" : path) + ": key " + quoted(key.string()) + " is missing");
      }
    }
  }
  for (const auto& [key, item] : value.object()) {
    std::string at = (path.empty() ? "" : path + ".") + printable(key);
    if (keys) check(Json{key}, *keys, at + " (key)", found);
    if (const Json* property = known ? known->find(key) : nullptr) {
      check(item, *property, at, found);
    } else if (rest && rest->is_object()) {
      check(item, *rest, at, found);
    } else if (rest && !rest->boolean()) {
      found.push_back(at + ": unknown key");
    }
  }
}

}  // namespace dsv2
