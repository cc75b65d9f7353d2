// Expressions and plans: what they are worth, what is refused, which program serves a call.
#include <string>

#include "base/error.h"
#include "base/json.h"
#include "check.h"
#include "plan/text.h"

using namespace dsv2;

namespace {

constexpr Sizes kSizes{7, 3, 100, 640};

Expr expr(const std::string& text) { return Expr::from_json(parse_json(text, {1 << 20})); }

template <typename Failure, typename Work>
bool throws(Work&& work) {
  try {
    work();
  } catch (const Failure&) {
    return true;
  }
  return false;
}

void expressions_are_the_integers_they_say() {
  CHECK(expr("42").evaluate(kSizes) == 42);
  CHECK(expr("\"context\"").evaluate(kSizes) == 100);
  CHECK(expr(R"(["-", ["*", "rows", 10], "slots"])").evaluate(kSizes) == 70 - 640);
  CHECK(expr(R"(["min", "batch", ["+", "rows", -5]])").evaluate(kSizes) == 2);
  for (int64_t rows = -9; rows < 10; ++rows) {
    Sizes sizes{rows, 0, 0, 0};
    int64_t up = expr(R"(["cdiv", "rows", 4])").evaluate(sizes);
    CHECK(up * 4 >= rows && (up - 1) * 4 < rows);
  }
  CHECK(expr(R"(["cdiv", ["*", "rows", 2], 3])").text() == "cdiv((rows * 2), 3)");
  CHECK(expr("\"rows\"").is(Symbol::rows) && !expr(R"(["+", "rows", 0])").is(Symbol::rows));
  CHECK(expr(R"(["+", 1, ["*", "slots", 2]])").uses(Symbol::slots) && !expr("3").uses(Symbol::slots));
}

void a_value_beyond_62_bits_is_an_overflow() {
  Sizes large{INT64_MAX, 1, 1, 1};
  CHECK(expr("\"rows\"").evaluate(large) == INT64_MAX);  // as it was given
  for (const char* text : {R"(["*", "rows", "rows"])", R"(["+", "rows", 0])", R"(["-", 0, "rows"])"}) {
    CHECK(throws<Overflow>([&] { expr(text).evaluate(large); }));
  }
  constexpr int64_t limit = int64_t{1} << 61;
  CHECK(expr(R"(["-", ["+", "rows", "rows"], 1])").evaluate({limit - 1, 0, 0, 0}) == 2 * limit - 3);
  CHECK(throws<Overflow>([&] { expr(R"(["+", "rows", "rows"])").evaluate({limit, 0, 0, 0}); }));
  CHECK(throws<Overflow>([&] { expr(R"(["+", "rows", "rows"])").evaluate({-limit, 0, 0, 0}); }));
}

void what_is_no_expression_is_refused() {
  for (const char* text :
       {"null", "true", "1.0", "4611686018427387904", "\"width\"", "[]", R"(["+", 1])", R"(["/", 1, 2])",
        R"(["cdiv", 1, 0])", R"(["cdiv", 1, "rows"])", R"(["cdiv", 1, ["+", 1, 1]])", R"({"rows": 1})"}) {
    CHECK(throws<JsonError>([&] { expr(text); }));
  }
  std::string deep = "1";
  for (int i = 0; i < 16; ++i) deep = "[\"+\", " + deep + ", 1]";
  CHECK(expr(deep).evaluate(kSizes) == 17);
  CHECK(throws<JsonError>([&] { expr("[\"+\", " + deep + ", 1]"); }));
}

const std::string kOutputs =
    R"(["logits","fp32","output",0,["batch",10]],["next_tokens","i32","output",0,["batch"]])";
// A kernel of a pointer and a number, and one of two pointers.
const std::string kKernels =
    R"({"kernel":"k","cubin":"k.cubin","symbol":"k","args":["*bf16","i32"],"aligned":[true,false],)"
    R"("constants":{},"warps":4,"shared":0,"scratch":0,"scratch_align":1},)"
    R"({"kernel":"l","cubin":"l.cubin","symbol":"l","args":["*bf16","*bf16"],"aligned":[true,false],)"
    R"("constants":{"N":1.5},"warps":4,"shared":0,"scratch":0,"scratch_align":1})";

std::string program(const std::string& phase, int64_t limit, const std::string& more, const std::string& launches,
                    const std::string& arena = "1024") {
  std::string n = std::to_string(limit);
  return "{\"phase\":\"" + phase + "\",\"limits\":{\"rows\":" + n + ",\"batch\":" + n + ",\"context\":" + n +
         "},\"arena_bytes\":" + arena + ",\"buffers\":[" + kOutputs + more + "],\"launches\":[" + launches + "]}";
}

std::string plan(const std::string& programs, const std::string& schema = "dsv2/plan/2") {
  return "{\"schema\":\"" + schema +
         R"(","target":"h800","capability":"sm_90","dtype":"bf16","page":64,"pages":3,"kernels":[)" + kKernels +
         "],\"programs\":{" + programs + "}}";
}

dsv2_code code(const std::string& text) {
  try {
    parse_plan(text);
  } catch (const Error& e) {
    return e.code;
  }
  return DSV2_OK;
}

void a_plan_comes_from_its_file() {
  Plan found = parse_plan(plan("\"decode\":" + program("decode", 8, R"(,["x","bf16","arena",256,["rows",16]])",
                                                       R"([0,["rows",1,1],[{"b":2,"o":32},["*","rows",2]],"what"])")));
  const PlanProgram& p = found.programs.at(0);
  CHECK(found.page == 64 && p.name == "decode" && p.phase == Phase::decode && p.context == 8);
  CHECK(p.buffers.at(2).offset == 256 && p.buffers[2].nbytes(p.limits(1)) == 8 * 16 * 2);
  const Launch& launch = p.launches.at(0);
  CHECK(launch.what == "what" && launch.args.at(0).buffer == 2 && launch.args[0].value.evaluate(kSizes) == 32);
  CHECK(launch.args[1].kind == Argument::Kind::scalar && launch.args[1].value.evaluate(kSizes) == 14);
}

void what_breaks_a_rule_is_refused() {
  const std::string x = R"(,["x","bf16","arena",0,["rows",16]])", y = R"(,["y","bf16","arena",0,["rows",16]])";
  auto of = [&](const std::string& buffers, const std::string& launches, const std::string& arena = "1024") {
    return code(plan("\"decode\":" + program("decode", 8, buffers, launches, arena)));
  };
  auto launch = [](const std::string& grid, const std::string& args) { return "[0," + grid + "," + args + ",\"w\"]"; };
  const std::string grid = "[1,1,1]", args = R"([{"b":2,"o":0},1])";
  CHECK(of(x, launch(grid, args)) == DSV2_OK);
  CHECK(of(x, launch(grid, "[null,1]")) == DSV2_OK);
  CHECK(of(x, launch(grid, R"([{"b":2,"o":["*","rows",32]},1])")) == DSV2_OK);  // its end
  for (const char* wrong : {R"([{"b":2,"o":34},1])", R"([{"b":2,"o":1},1])", R"([{"b":2,"o":-2},1])",
                            R"([{"b":0,"o":0},1])", R"([{"b":9,"o":0},1])", "[1,1]", R"([{"b":2,"o":0},null])",
                            R"([{"b":2,"o":0},2147483648])", R"([{"b":2,"o":0}])"}) {
    CHECK(of(x, launch(grid, wrong)) == DSV2_INTEGRITY);
  }
  for (const char* wrong : {"[-1,1,1]", "[1,65536,1]", "[2147483648,1,1]", "[1,1]", "\"\"", "{}"}) {
    CHECK(of(x, launch(wrong, args)) == DSV2_INTEGRITY);
  }
  CHECK(of(x, launch(grid, args), "255") == DSV2_INTEGRITY);
  CHECK(of(R"(,["x","bf16","arena",64,[1]])", "") == DSV2_INTEGRITY);
  CHECK(of(R"(,["x","bf16","weight",0,[["-",1,"rows"]]])", "") == DSV2_INTEGRITY);
  CHECK(of(R"(,["x","fp8","weight",0,[1]])", "") == DSV2_INTEGRITY);
  CHECK(of(R"(,["logits","i32","input",0,[1]])", "") == DSV2_INTEGRITY);
  // bytes beyond 64 bits are compared and not wrapped, and nothing is beyond what is empty
  const std::string huge = "4611686018427387903,4611686018427387903,4611686018427387903";
  CHECK(of(",[\"x\",\"bf16\",\"arena\",0,[" + huge + "]]", "", "9223372036854775807") == DSV2_INTEGRITY);
  CHECK(of(",[\"x\",\"bf16\",\"weight\",0,[" + huge + "]]", "") == DSV2_OK);
  CHECK(of(",[\"x\",\"bf16\",\"arena\",0,[" + huge + ",0]]", "", "0") == DSV2_OK);
  // two buffers of one place, at one time and one after the other
  const std::string first = launch(grid, R"([{"b":2,"o":0},1])"), second = launch(grid, R"([{"b":3,"o":0},1])");
  CHECK(of(x + y, first + "," + second) == DSV2_OK);
  CHECK(of(x + y, first + "," + second + "," + first) == DSV2_INTEGRITY);
  CHECK(of(x + y, R"([1,[1,1,1],[{"b":2,"o":0},{"b":3,"o":0}],"w"])") == DSV2_INTEGRITY);
  CHECK(of(x + R"(,["y","bf16","arena",256,["rows",16]])", R"([1,[1,1,1],[{"b":2,"o":0},{"b":3,"o":0}],"w"])") ==
        DSV2_OK);
  CHECK(code(plan("\"decode\":" + program("decode", 0, "", ""))) == DSV2_INTEGRITY);
  CHECK(code(plan("\"decode\":" + program("verify", 1, "", ""))) == DSV2_INTEGRITY);
}

void versions_are_told_from_damage() {
  CHECK(code(plan("")) == DSV2_OK);
  CHECK(code(plan("", "dsv2/plan/9")) == DSV2_INCOMPATIBLE);
  for (const char* text : {"", "[]", "{}", "null", "{\"schema\":\"dsv2/plan/2\"}"}) CHECK(code(text) == DSV2_INTEGRITY);
  CHECK(code(plan("", "another")) == DSV2_INTEGRITY);
}

void the_smallest_program_that_holds_a_call_is_taken() {
  Plan found = parse_plan(plan("\"a\":" + program("decode", 1, "", "") + ",\"b\":" + program("decode", 8, "", "") +
                               ",\"c\":" + program("prefill", 16, "", "") + ",\"d\":" + program("extend", 32, "", "")));
  CHECK(found.program_for(Phase::decode, 1, 1, 1000) == 0u);
  CHECK(found.program_for(Phase::decode, 2, 2, 1000) == 1u);
  CHECK(!found.program_for(Phase::decode, 9, 9, 9));
  CHECK(found.program_for(Phase::prefill, 16, 1, 16) == 2u);
  CHECK(found.program_for(Phase::prefill, 16, 1, 17) == 3u);
  CHECK(found.program_for(Phase::extend, 2, 2, 16) == 2u);
  CHECK(!found.program_for(Phase::prefill, 33, 1, 33));
}

}  // namespace

int main() {
  expressions_are_the_integers_they_say();
  a_value_beyond_62_bits_is_an_overflow();
  what_is_no_expression_is_refused();
  a_plan_comes_from_its_file();
  what_breaks_a_rule_is_refused();
  versions_are_told_from_damage();
  the_smallest_program_that_holds_a_call_is_taken();
  return checks_result();
}
