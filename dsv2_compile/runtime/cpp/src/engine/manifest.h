// manifest.json: what an engine is, and the hash of every file in it.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace dsv2 {

// The fields of the model that the runtime needs.
struct ModelConfig {
  int64_t vocab_size, num_hidden_layers, num_attention_heads, kv_lora_rank, qk_rope_head_dim, max_position_embeddings;
  int64_t bos_token_id;  // -1: none
  std::vector<int64_t> eos_token_ids;

  // Values cached per token and layer.
  int64_t cache_dim() const { return kv_lora_rank + qk_rope_head_dim; }
};

// ``nbytes`` little-endian, row-major bytes at ``offset`` of ``file``, which is relative to the engine. Two names may
// share one placement.
struct Placement {
  std::string file;
  int64_t offset, nbytes;
  std::string dtype;
  std::vector<int64_t> shape;
};

struct FileEntry {
  std::string sha256;
  int64_t bytes;
};

struct ProgramEntry {
  std::string file;
  std::map<std::string, std::string> session_options;
};

struct Manifest {
  bool verified;
  std::string backend, target, dtype;
  ModelConfig model;
  std::map<std::string, ProgramEntry> programs;
  std::map<std::string, std::string> toolchain;
  std::map<std::string, Placement> weights;
  std::map<std::string, FileEntry> files;
  int64_t max_batch_size, max_seq_len;
};

inline constexpr const char* kManifestName = "manifest.json";
inline constexpr int64_t kManifestBytes = 8 << 20;

// Error integrity if damaged or malformed, incompatible if of another version.
Manifest parse_manifest(std::string_view data);

}  // namespace dsv2
