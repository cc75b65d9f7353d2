#include "plan/text.h"

#include <algorithm>
#include <initializer_list>
#include <string>
#include <unordered_set>

#include "base/error.h"
#include "plan/check.h"

namespace dsv2 {
namespace {

constexpr JsonLimits kLimits{64 << 20, 4'000'000};
constexpr size_t kProblemsShown = 20;

[[noreturn]] void malformed(const std::string& why, std::vector<std::string> problems = {}) {
  throw Error(DSV2_INTEGRITY, std::string(kPlanName) + " is malformed: " + why + ".", kCopyAgain, std::move(problems));
}

void require_keys(const Json& json, std::initializer_list<const char*> keys) {
  if (json.object().size() != keys.size()) throw JsonError("unknown or missing keys");
  for (const char* key : keys) json.at(key);
}

// Place of ``text`` among ``names``.
template <size_t N>
size_t index_of(const std::array<const char*, N>& names, const std::string& text, const char* what) {
  auto found = std::find(names.begin(), names.end(), text);
  if (found == names.end()) throw JsonError(std::string("unknown ") + what + " " + quoted(text));
  return static_cast<size_t>(found - names.begin());
}

Dtype dtype(const std::string& text) { return static_cast<Dtype>(index_of(kDtypes, text, "dtype")); }

Phase phase(const std::string& text) {
  constexpr std::array<const char*, 3> names = {"prefill", "extend", "decode"};
  return static_cast<Phase>(index_of(names, text, "phase"));
}

const Array& row(const Json& json, size_t size) {
  if (json.array().size() != size) throw JsonError("a row has " + std::to_string(json.array().size()) + " entries");
  return json.array();
}

ArgumentType argument_type(const Json& json) {
  const std::string& text = json.string();
  bool pointer = !text.empty() && text[0] == '*';
  ArgumentType out{pointer, dtype(text.substr(pointer))};
  if (!pointer && out.dtype != Dtype::i32) throw JsonError("unknown argument type " + quoted(text));
  return out;
}

Kernel kernel(const Json& json) {
  require_keys(json, {"kernel", "cubin", "symbol", "warps", "shared", "scratch", "scratch_align", "args", "aligned",
                      "constants"});
  Kernel out{json.at("kernel").string(), json.at("cubin").string(),    json.at("symbol").string(),
             {},                         {},                           json.at("warps").integer(),
             json.at("shared").integer(), json.at("scratch").integer(), json.at("scratch_align").integer()};
  for (const Json& arg : json.at("args").array()) out.args.push_back(argument_type(arg));
  for (const Json& claim : json.at("aligned").array()) out.aligned.push_back(claim.boolean());
  for (const Member& constant : json.at("constants").object()) {
    if (!constant.second.is_number() && !constant.second.is_boolean()) throw JsonError("a constant is no number");
  }
  return out;
}

std::vector<Buffer> buffers(const Json& json) {
  std::vector<Buffer> out;
  std::unordered_set<std::string> names;
  for (const Json& item : json.array()) {
    const Array& parts = row(item, 5);
    Buffer made{parts[0].string(), dtype(parts[1].string()),
                static_cast<Place>(index_of(kPlaces, parts[2].string(), "place")), parts[3].integer(), {}};
    for (const Json& dim : parts[4].array()) made.shape.push_back(Expr::from_json(dim));
    if (!names.insert(made.name).second) throw JsonError("buffer " + quoted(made.name) + " twice");
    out.push_back(std::move(made));
  }
  return out;
}

Argument argument(const Json& json, size_t buffer_count) {
  if (json.is_null()) return {Argument::Kind::null, 0, Expr()};
  if (!json.is_object()) return {Argument::Kind::scalar, 0, Expr::from_json(json)};
  require_keys(json, {"b", "o"});
  int64_t buffer = json.at("b").integer();
  if (buffer < 0 || buffer >= static_cast<int64_t>(buffer_count)) throw JsonError("a pointer to no buffer");
  return {Argument::Kind::pointer, static_cast<size_t>(buffer), Expr::from_json(json.at("o"))};
}

Launch launch(const Json& json, size_t buffer_count) {
  const Array& parts = row(json, 4);
  const Array& grid = row(parts[1], 3);
  Launch out{parts[0].integer(),
             {Expr::from_json(grid[0]), Expr::from_json(grid[1]), Expr::from_json(grid[2])},
             {},
             parts[3].string()};
  for (const Json& arg : parts[2].array()) out.args.push_back(argument(arg, buffer_count));
  return out;
}

PlanProgram program(const std::string& name, const Json& json) {
  require_keys(json, {"phase", "limits", "arena_bytes", "buffers", "launches"});
  const Json& limits = json.at("limits");
  require_keys(limits, {"rows", "batch", "context"});
  PlanProgram out{name,
                  phase(json.at("phase").string()),
                  limits.at("rows").integer(),
                  limits.at("batch").integer(),
                  limits.at("context").integer(),
                  buffers(json.at("buffers")),
                  {},
                  json.at("arena_bytes").integer()};
  for (const Json& item : json.at("launches").array()) out.launches.push_back(launch(item, out.buffers.size()));
  return out;
}

Plan plan(const Json& json) {
  require_keys(json, {"schema", "target", "capability", "dtype", "page", "pages", "kernels", "programs"});
  const std::string& schema = json.at("schema").string();
  if (schema != kPlanSchema) throw JsonError("unknown schema " + quoted(schema));
  Plan out{json.at("target").string(), json.at("capability").string(), json.at("dtype").string(),
           json.at("page").integer(), json.at("pages").integer(), {}, {}};
  for (const Json& item : json.at("kernels").array()) out.kernels.push_back(kernel(item));
  for (const Member& item : json.at("programs").object()) out.programs.push_back(program(item.first, item.second));
  return out;
}

// Another version is told apart from a damaged file.
void require_version(const Json& json) {
  const Json* schema = json.find("schema");
  if (!schema || !schema->is_string() || schema->string() == kPlanSchema) return;
  if (schema->string().rfind("dsv2/plan/", 0) != 0) return;
  throw Error(DSV2_INCOMPATIBLE,
              std::string(kPlanName) + " has schema " + schema->string().substr(0, 40) + ", this program reads " +
                  kPlanSchema + ".",
              "Rebuild the engine with this version of dsv2-compile, or use the version that built it.");
}

}  // namespace

Plan parse_plan(std::string_view data) {
  try {
    Json json = parse_json(data, kLimits);
    require_version(json);
    Plan out = plan(json);
    std::vector<std::string> problems = plan_problems(out);
    size_t count = problems.size();
    if (count > kProblemsShown) problems.resize(kProblemsShown);
    if (count) malformed(std::to_string(count) + " problems", std::move(problems));
    return out;
  } catch (const JsonError& e) {
    malformed(e.what());
  } catch (const Overflow& e) {
    malformed(e.what());
  }
}

}  // namespace dsv2
