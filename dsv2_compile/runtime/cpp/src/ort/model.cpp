// Backend onnxruntime: engines whose programs are ONNX models.
#include <sched.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <string>
#include <vector>

#include "base/error.h"
#include "ort/contiguous.h"
#include "runtime/backend.h"

namespace dsv2 {
namespace {

constexpr const char* kToolchain = "onnxruntime";  // its entry of the manifest

const OrtLibrary& library(const LoadOptions& options) {
  if (!options.onnxruntime.empty()) return OrtLibrary::open(options.onnxruntime);
  const char* path = std::getenv("DSV2_ONNXRUNTIME");
  return OrtLibrary::open(path && *path ? path : "libonnxruntime.so.1");
}

// {major, minor} of "1.32.0"; empty if ``text`` is no version.
std::vector<int64_t> version(const std::string& text) {
  std::vector<int64_t> parts;
  size_t at = 0;
  while (parts.size() < 2) {
    size_t end = std::min(text.find('.', at), text.size());
    std::string part = text.substr(at, end - at);
    if (part.empty() || part.size() > 9 || part.find_first_not_of("0123456789") != std::string::npos) return {};
    parts.push_back(std::stoll(part));
    if (end == text.size()) break;
    at = end + 1;
  }
  return parts.size() == 2 ? parts : std::vector<int64_t>{};
}

// ['a', 'b']
std::string quoted(const std::vector<std::string>& names) {
  std::string out;
  for (const std::string& name : names) out += (out.empty() ? "'" : ", '") + name + "'";
  return "[" + out + "]";
}

// All that this process may use.
int processors() {
  // a machine may have more of them than cpu_set_t has room for: then the kernel says EINVAL
  for (int room = CPU_SETSIZE;; room *= 2) {
    cpu_set_t* set = CPU_ALLOC(static_cast<size_t>(room));
    size_t bytes = CPU_ALLOC_SIZE(static_cast<size_t>(room));
    int failed = !set || sched_getaffinity(0, bytes, set);
    int count = failed ? 0 : CPU_COUNT_S(bytes, set);
    CPU_FREE(set);
    if (!failed) return count;
    if (errno != EINVAL || room > (1 << 20)) return 1;
  }
}

class OrtModel : public Loaded {
 public:
  explicit OrtModel(std::shared_ptr<const OrtPrograms> programs) : programs_(std::move(programs)) {}
  std::unique_ptr<Store> store(int64_t slots, int64_t max_tokens) override {
    return std::make_unique<ContiguousStore>(programs_, slots, max_tokens);
  }

 private:
  std::shared_ptr<const OrtPrograms> programs_;
};

void require_compatible(const std::string&, const Manifest& manifest, const LoadOptions& options) {
  const std::string& found = library(options).version();
  auto entry = manifest.toolchain.find(kToolchain);
  std::vector<int64_t> built = entry == manifest.toolchain.end() ? std::vector<int64_t>{} : version(entry->second);
  if (built.empty() || version(found) < built) {
    std::string needed = entry == manifest.toolchain.end() ? "(not stated)" : entry->second;
    throw Error(DSV2_INCOMPATIBLE, "The engine needs onnxruntime " + needed + " or later, found " + found + ".",
                "Install a newer onnxruntime, or rebuild the engine on this machine.");
  }
  std::vector<std::string> missing;
  for (const char* phase : {"decode", "prefill"}) {
    if (!manifest.programs.count(phase)) missing.push_back(phase);
  }
  if (!missing.empty()) {
    throw Error(DSV2_INCOMPATIBLE, "The engine has no program " + quoted(missing) + ".",
                "Rebuild it with dsv2-compile build.");
  }
  for (const auto& [phase, program] : manifest.programs) {
    if (std::vector<std::string> unknown = disallowed_options(program); !unknown.empty()) {
      throw Error(DSV2_INCOMPATIBLE,
                  "Program " + phase + " sets ONNX Runtime options this runtime does not allow: " + quoted(unknown) + ".",
                  "Rebuild the engine with this version of dsv2-compile.");
    }
  }
}

std::shared_ptr<Loaded> load(const std::string& root, const Manifest& manifest, const LoadOptions& options) {
  if (options.cache_tokens) {
    throw Error(DSV2_USAGE, "cache_tokens has no effect for this engine.",
                "Leave it out: its sessions own their cache.");
  }
  const OrtLibrary& runtime = library(options);
  int threads = options.threads ? options.threads : processors();
  auto programs = std::make_shared<OrtPrograms>();
  programs->config = manifest.model;
  programs->max_seq_len = manifest.max_seq_len;
  for (const auto& [phase, entry] : manifest.programs) {
    programs->phases.try_emplace(phase, runtime, root + "/" + entry.file, entry, manifest.model, threads);
  }
  return std::make_shared<OrtModel>(std::move(programs));
}

}  // namespace

const Backend kOnnxRuntimeBackend = {require_compatible, load};

}  // namespace dsv2
