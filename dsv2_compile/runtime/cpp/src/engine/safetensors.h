// The header of a safetensors file of unknown origin, checked whole.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace dsv2 {

// ``dtype`` is the format's own name; ``start`` counts from the file's first byte.
struct SafetensorsEntry {
  std::string dtype;
  std::vector<int64_t> shape;
  int64_t start, nbytes;
};

inline constexpr int64_t kSafetensorsHeaderBytes = 32 << 20;

// ``data``: the first bytes of a file of ``size`` bytes, at least those of its header. Error integrity, with all
// problems, unless every tensor lies in the file and they follow each other without hole or overlap.
std::map<std::string, SafetensorsEntry> parse_safetensors(std::string_view data, int64_t size);

// Of the file at ``path``.
std::map<std::string, SafetensorsEntry> read_safetensors(const std::string& path);

}  // namespace dsv2
