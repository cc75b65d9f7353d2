// The part of JSON Schema that the published schemas use, so that they, and no second description, are what is checked.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "base/pattern.h"

namespace dsv2 {

class Schema {
 public:
  // Error internal for a keyword that is not implemented.
  explicit Schema(std::string_view text);
  // What it refuses in ``value``, one line each.
  std::vector<std::string> problems(const Json& value) const;

 private:
  using Lines = std::vector<std::string>;
  void prepare(const Json& schema);
  void check(const Json& value, const Json& schema, const std::string& path, Lines& found) const;
  void check_object(const Json& value, const Json& schema, const std::string& path, Lines& found) const;

  Json root_;
  std::map<std::string, Pattern> patterns_;
};

}  // namespace dsv2
