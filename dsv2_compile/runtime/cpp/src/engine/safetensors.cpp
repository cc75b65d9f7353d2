#include "engine/safetensors.h"

#include <algorithm>
#include <optional>

#include "base/error.h"
#include "base/files.h"
#include "base/json.h"

namespace dsv2 {
namespace {

using Entries = std::map<std::string, SafetensorsEntry>;
using Lines = std::vector<std::string>;

constexpr size_t kLength = 8;  // bytes of the number before the header
constexpr JsonLimits kLimits{kSafetensorsHeaderBytes};

[[noreturn]] void refuse(Lines problems) {
  throw Error(DSV2_INTEGRITY, "Not a whole safetensors file: " + problems[0] + ".", kCopyAgain, problems);
}

int64_t header_length(std::string_view data, int64_t size) {
  if (data.size() < kLength) refuse({"incomplete: " + std::to_string(size) + " bytes"});
  uint64_t length = 0;
  for (size_t i = 0; i < kLength; ++i) length |= uint64_t{static_cast<unsigned char>(data[i])} << 8 * i;
  if (length > uint64_t{kSafetensorsHeaderBytes}) {
    refuse({"header of " + std::to_string(length) + " bytes, the limit is " + std::to_string(kSafetensorsHeaderBytes)});
  }
  auto out = static_cast<int64_t>(length);
  if (out + static_cast<int64_t>(kLength) > size) {
    refuse({"incomplete: " + std::to_string(size) + " bytes, the header alone has " + std::to_string(out)});
  }
  return out;
}

// 0 for a name that the format does not have.
int64_t bits(const std::string& dtype) {
  static const std::map<std::string, int64_t> all = {
      {"F64", 64},     {"I64", 64},         {"U64", 64},        {"C64", 64},    {"F32", 32},    {"I32", 32},
      {"U32", 32},     {"F16", 16},         {"BF16", 16},       {"I16", 16},    {"U16", 16},    {"F8_E4M3", 8},
      {"F8_E5M2", 8},  {"F8_E4M3FNUZ", 8},  {"F8_E5M2FNUZ", 8}, {"F8_E8M0", 8}, {"I8", 8},      {"U8", 8},
      {"BOOL", 8},     {"F6_E2M3", 6},      {"F6_E3M2", 6},     {"F4", 4}};
  auto found = all.find(dtype);
  return found == all.end() ? 0 : found->second;
}

// None unless it is an array of integers, none of them negative.
std::optional<std::vector<int64_t>> counts(const Json& raw) {
  if (!raw.is_array()) return std::nullopt;
  std::vector<int64_t> out;
  for (const Json& item : raw.array()) {
    if (!item.is_integer() || item.integer() < 0) return std::nullopt;
    out.push_back(item.integer());
  }
  return out;
}

// Whether elements of ``shape`` with ``each`` bits fill ``nbytes``. A product beyond 63 bits fills no file.
bool fills(const std::vector<int64_t>& shape, int64_t each, int64_t nbytes) {
  if (std::find(shape.begin(), shape.end(), 0) != shape.end()) return nbytes == 0;
  int64_t total = each;
  for (int64_t dim : shape) {
    if (__builtin_mul_overflow(total, dim, &total)) return false;
  }
  return total % 8 == 0 && total / 8 == nbytes;
}

// What is wrong, or empty and ``out`` is filled. The data begin at byte ``base`` of a file of ``size``.
std::string read_entry(const Json& raw, int64_t base, int64_t size, SafetensorsEntry& out) {
  const Json *dtype = raw.find("dtype"), *shape = raw.find("shape"), *offsets = raw.find("data_offsets");
  if (!dtype || !shape || !offsets || raw.object().size() != 3) {
    return "its entry is not dtype, shape and data_offsets";
  }
  int64_t each = dtype->is_string() ? bits(dtype->string()) : 0;
  if (each == 0) return "unknown dtype";
  auto dims = counts(*shape);
  if (!dims || dims->size() > 8) return "its shape is not a list of up to 8 sizes";
  auto range = counts(*offsets);
  if (!range || range->size() != 2 || (*range)[0] > (*range)[1]) return "its data_offsets are not a begin and an end";
  int64_t begin = (*range)[0], end = (*range)[1];
  if (!fills(*dims, each, end - begin)) return "its shape is not the bytes that data_offsets give";
  if (end > size - base) return "its data are past the end of the file";
  out = {dtype->string(), *dims, base + begin, end - begin};
  return "";
}

Lines layout_problems(const Entries& entries, int64_t base, int64_t size) {
  std::vector<const Entries::value_type*> order;
  for (const auto& item : entries) order.push_back(&item);
  std::sort(order.begin(), order.end(), [](auto* a, auto* b) {
    return std::pair(a->second.start, a->second.nbytes) < std::pair(b->second.start, b->second.nbytes);
  });
  Lines found;
  int64_t at = base;
  for (const auto* item : order) {
    const SafetensorsEntry& entry = item->second;
    if (entry.start != at) {
      found.push_back("tensor " + quoted(item->first) + ": its data " +
                      (entry.start < at ? "overlap those before" : "leave a hole before them"));
    }
    at = std::max(at, entry.start + entry.nbytes);
  }
  if (at < size) found.push_back(std::to_string(size - at) + " bytes after the last tensor");
  return found;
}

}  // namespace

std::map<std::string, SafetensorsEntry> parse_safetensors(std::string_view data, int64_t size) {
  int64_t length = header_length(data, size), base = length + static_cast<int64_t>(kLength);
  Json header;
  try {
    header = parse_json(data.substr(kLength, static_cast<size_t>(length)), kLimits);
    header.object();
  } catch (const JsonError& e) {
    refuse({std::string("malformed header: ") + e.what()});
  }
  Lines found;
  Entries out;
  for (const auto& [name, value] : header.object()) {
    if (name == "__metadata__") {
      bool strings = value.is_object() && std::all_of(value.object().begin(), value.object().end(),
                                                      [](const Member& m) { return m.second.is_string(); });
      if (!strings) found.push_back("malformed header: __metadata__ is not an object of strings");
      continue;
    }
    SafetensorsEntry entry;
    std::string problem = read_entry(value, base, size, entry);
    if (problem.empty()) {
      out.emplace(name, std::move(entry));
    } else {
      found.push_back("tensor " + quoted(name) + ": " + problem);
    }
  }
  if (found.empty()) found = layout_problems(out, base, size);
  if (!found.empty()) refuse(found);
  return out;
}

std::map<std::string, SafetensorsEntry> read_safetensors(const std::string& path) {
  try {
    File file(path);
    std::string data = file.read(static_cast<int64_t>(kLength));
    data += file.read(header_length(data, file.size()));
    return parse_safetensors(data, file.size());
  } catch (const FileError& e) {
    refuse({e.what()});
  }
}

}  // namespace dsv2
