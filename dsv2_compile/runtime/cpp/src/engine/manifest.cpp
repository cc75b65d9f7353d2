#include "engine/manifest.h"

#include <algorithm>

#include "base/error.h"
#include "base/json.h"
#include "base/schema.h"
#include "base/sha256.h"

namespace dsv2 {

extern const char kManifestSchema[];  // engine/manifest.schema.json, compiled in

namespace {

constexpr std::string_view kVersions = "dsv2/engine/", kVersion = "dsv2/engine/1";
constexpr std::string_view kSealHead = ",\n \"sha256\": \"", kSealTail = "\"\n}\n";
constexpr size_t kDigits = 64;
constexpr JsonLimits kLimits{kManifestBytes};

using Lines = std::vector<std::string>;

// The file's last key is the SHA-256 of all bytes before it.
void require_sealed(std::string_view data) {
  size_t tail = kSealHead.size() + kDigits + kSealTail.size();
  if (data.size() >= tail) {
    std::string_view body = data.substr(0, data.size() - tail), seal = data.substr(body.size());
    std::string expected = std::string(kSealHead) + sha256_hex(body) + std::string(kSealTail);
    if (seal == expected) return;
  }
  throw Error(DSV2_INTEGRITY, std::string(kManifestName) + " is damaged: its own SHA-256 does not match.", kCopyAgain);
}

Json json(std::string_view data) {
  try {
    return parse_json(data, kLimits);
  } catch (const JsonError& e) {
    throw Error(DSV2_INTEGRITY, std::string(kManifestName) + ": " + e.what() + ".", kCopyAgain);
  }
}

void require_version(const Json& raw) {
  const Json* version = raw.find("schema");
  if (!version || !version->is_string()) return;
  std::string_view text = version->string();
  if (text == kVersion || text.substr(0, kVersions.size()) != kVersions) return;
  throw Error(DSV2_INCOMPATIBLE,
              "The engine has manifest schema " + printable(text, 40) + ", this program reads " +
                  std::string(kVersion) + ".",
              "Rebuild the engine with this version of dsv2-compile, or use the version that built it.");
}

void require_none(const Lines& problems) {
  if (problems.empty()) return;
  Lines first(problems.begin(), problems.begin() + static_cast<std::ptrdiff_t>(std::min<size_t>(problems.size(), 20)));
  throw Error(DSV2_INTEGRITY,
              std::string(kManifestName) + " is malformed: " + std::to_string(problems.size()) + " problems.",
              kCopyAgain, first);
}

std::vector<int64_t> integers(const Json& raw) {
  std::vector<int64_t> out;
  for (const Json& item : raw.array()) out.push_back(item.integer());
  return out;
}

std::map<std::string, std::string> strings(const Json& raw) {
  std::map<std::string, std::string> out;
  for (const auto& [key, item] : raw.object()) out.emplace(key, item.string());
  return out;
}

ModelConfig model(const Json& raw) {
  auto size = [&raw](const char* key) { return raw.at(key).integer(); };
  const Json& bos = raw.at("bos_token_id");
  return {size("vocab_size"),
          size("num_hidden_layers"),
          size("num_attention_heads"),
          size("kv_lora_rank"),
          size("qk_rope_head_dim"),
          size("max_position_embeddings"),
          bos.is_null() ? -1 : bos.integer(),
          integers(raw.at("eos_token_ids"))};
}

// Of a value that the schema accepts.
Manifest manifest(const Json& raw) {
  Manifest out;
  out.verified = raw.at("status").string() == "verified";
  out.backend = raw.at("backend").string();
  out.target = raw.at("target").string();
  out.dtype = raw.at("dtype").string();
  out.model = model(raw.at("model"));
  out.toolchain = strings(raw.at("toolchain"));
  out.max_batch_size = raw.at("max_batch_size").integer();
  out.max_seq_len = raw.at("max_seq_len").integer();
  for (const auto& [name, program] : raw.at("programs").object()) {
    out.programs[name] = {program.at("file").string(), strings(program.at("session_options"))};
  }
  for (const auto& [name, w] : raw.at("weights").object()) {
    out.weights[name] = {w.at("file").string(), w.at("offset").integer(), w.at("nbytes").integer(),
                         w.at("dtype").string(), integers(w.at("shape"))};
  }
  for (const auto& [path, file] : raw.at("files").object()) {
    out.files[path] = {file.at("sha256").string(), file.at("bytes").integer()};
  }
  return out;
}

int64_t item_bytes(const std::string& dtype) {
  if (dtype == "float64" || dtype == "int64") return 8;
  if (dtype == "float32" || dtype == "int32") return 4;
  return dtype == "float16" || dtype == "bfloat16" ? 2 : 1;
}

bool consistent(const Placement& weight) {
  const std::vector<int64_t>& shape = weight.shape;
  if (std::find(shape.begin(), shape.end(), 0) != shape.end()) return weight.nbytes == 0;
  int64_t bytes = item_bytes(weight.dtype);
  for (int64_t dim : shape) {
    if (__builtin_mul_overflow(bytes, dim, &bytes)) return false;
  }
  return bytes == weight.nbytes;
}

std::string folded(std::string path) {
  for (char& c : path) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  return path;
}

// Paths that are one file where case does not count, that are also a directory, or the manifest's own.
void path_clashes(const std::map<std::string, FileEntry>& files, Lines& found) {
  std::map<std::string, std::string> seen = {{kManifestName, kManifestName}};
  for (const auto& [path, entry] : files) {
    auto [other, is_new] = seen.emplace(folded(path), path);
    if (!is_new) found.push_back("files." + path + ": clashes with " + other->second);
  }
  for (const auto& [path, entry] : files) {
    std::string lower = folded(path);
    for (size_t end = lower.find('/'); end != lower.npos; end = lower.find('/', end + 1)) {
      std::string up = lower.substr(0, end);
      if (seen.count(up)) found.push_back("files." + path + ": " + up + " is a file");
    }
  }
}

// What a schema cannot say.
Lines inconsistencies(const Json& raw, const Manifest& m) {
  Lines found;
  for (const auto& [name, range] : raw.at("symbols").object()) {
    if (range.array()[0].integer() > range.array()[1].integer()) {
      found.push_back("symbols." + name + ": its smallest value is above its largest");
    }
  }
  for (const auto& [name, program] : m.programs) {
    if (!m.files.count(program.file)) found.push_back("programs." + name + ": " + program.file + " is not in files");
  }
  if (m.max_seq_len > m.model.max_position_embeddings) {
    found.push_back("max_seq_len: " + std::to_string(m.max_seq_len) + " is above the model's " +
                    std::to_string(m.model.max_position_embeddings));
  }
  for (const auto& [name, w] : m.weights) {
    std::string where = "weights." + name + ": ";
    auto file = m.files.find(w.file);
    if (file == m.files.end()) {
      found.push_back(where + w.file + " is not in files");
    } else if (w.offset + w.nbytes > file->second.bytes) {
      found.push_back(where + "ends at byte " + std::to_string(w.offset + w.nbytes) + " of " +
                      std::to_string(file->second.bytes));
    }
    if (!consistent(w)) {
      found.push_back(where + std::to_string(w.nbytes) + " bytes are not its shape of " + w.dtype);
    }
  }
  path_clashes(m.files, found);
  return found;
}

}  // namespace

Manifest parse_manifest(std::string_view data) {
  static const Schema schema(kManifestSchema);
  auto size = static_cast<int64_t>(data.size());
  if (size > kManifestBytes) {
    throw Error(DSV2_INTEGRITY,
                std::string(kManifestName) + " has " + std::to_string(size) + " bytes, the limit is " +
                    std::to_string(kManifestBytes) + ".",
                kCopyAgain);
  }
  require_sealed(data);
  Json raw = json(data);
  require_version(raw);
  require_none(schema.problems(raw));
  Manifest out = manifest(raw);
  require_none(inconsistencies(raw, out));
  return out;
}

}  // namespace dsv2
