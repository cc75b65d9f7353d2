// verdict KIND: for each path on standard input, one line: the dsv2_code that the library gives it, a tab, the cause.
// KIND is what the paths are: engine (a directory), json, safetensors. test_cpp_verdicts.py holds it to Python.
#include <cstring>
#include <iostream>
#include <string>

#include "base/error.h"
#include "base/files.h"
#include "base/json.h"
#include "engine/integrity.h"
#include "engine/safetensors.h"
#include "plan/text.h"

using namespace dsv2;

namespace {

void engine(const std::string& path) {
  Manifest manifest = read_manifest(path);
  verify_files(path, manifest);
  if (manifest.backend == "cuda" && manifest.files.count(kPlanName)) {
    parse_plan(read_verified(path, manifest, kPlanName));
  }
}

void json(const std::string& path) {
  try {
    parse_json(read_file(path, kManifestBytes + 1), {kManifestBytes});
  } catch (const JsonError& e) {
    throw Error(DSV2_INTEGRITY, e.what(), kCopyAgain);
  }
}

void safetensors(const std::string& path) { read_safetensors(path); }

void print_verdict(void (*check)(const std::string&), const std::string& path) {
  dsv2_code code = DSV2_OK;
  std::string cause;
  try {
    check(path);
  } catch (const Error& e) {
    code = e.code;
    cause = e.cause;
    for (const std::string& problem : e.problems) cause += " | " + problem;
  } catch (const std::exception& e) {
    code = DSV2_INTERNAL;
    cause = e.what();
  }
  std::cout << code << '\t' << printable(cause, 2000) << '\n';
}

}  // namespace

int main(int argc, char** argv) {
  const char* kind = argc == 2 ? argv[1] : "";
  void (*check)(const std::string&) = std::strcmp(kind, "engine") == 0        ? engine
                                      : std::strcmp(kind, "json") == 0        ? json
                                      : std::strcmp(kind, "safetensors") == 0 ? safetensors
                                                                              : nullptr;
  if (!check) {
    std::cerr << "usage: verdict engine|json|safetensors < PATHS\n";
    return DSV2_USAGE;
  }
  for (std::string path; std::getline(std::cin, path);) print_verdict(check, path);
}
