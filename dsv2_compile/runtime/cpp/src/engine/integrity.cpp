#include "engine/integrity.h"

#include <sys/stat.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <future>
#include <memory>

#include "base/error.h"
#include "base/files.h"
#include "base/json.h"
#include "base/sha256.h"

namespace dsv2 {
namespace {

constexpr size_t kThreads = 2, kBlock = 4 << 20, kShown = 20;
constexpr const char* kRemedy =
    "Do not use this engine: copy it again from where it was built, or rebuild it with dsv2-compile build.";

using Files = std::map<std::string, FileEntry>;
using Lines = std::vector<std::string>;

[[noreturn]] void refuse(const std::string& root, Lines found) {
  std::string count = std::to_string(found.size());
  found.resize(std::min(found.size(), kShown));
  throw Error(DSV2_INTEGRITY, root + " is not the engine that was built: " + count + " problems.", kRemedy, found);
}

Lines listing_problems(const std::string& root, const Files& expected) {
  Lines found;
  std::map<std::string, int64_t> present;
  for (const Found& file : listing(root)) {
    std::string shown = printable(file.path, 255);
    present[file.path] = file.bytes;
    if (!file.problem.empty()) found.push_back(shown + ": " + file.problem);
    if (!expected.count(file.path) && file.path != kManifestName) {
      found.push_back(shown + ": not listed in the manifest");
    }
  }
  for (const auto& [path, entry] : expected) {
    auto there = present.find(path);
    if (there == present.end()) {
      found.push_back(path + ": missing");
    } else if (there->second != entry.bytes) {
      found.push_back(path + ": " + std::to_string(there->second) + " bytes, expected " + std::to_string(entry.bytes));
    }
  }
  return found;
}

// Empty if the file is ``entry``. Ends as soon as it is longer than that.
std::string hash_problem(const std::string& root, const std::string& path, const FileEntry& entry, char* block) {
  try {
    File file(root + "/" + path);
    Sha256 hash;
    int64_t size = 0;
    while (size_t count = file.read(block, kBlock)) {
      hash.update({block, count});
      size += static_cast<int64_t>(count);
      if (size > entry.bytes) break;
    }
    return size == entry.bytes && hash.hex() == entry.sha256 ? "" : path + ": SHA-256 differs";
  } catch (const FileError& e) {
    return path + ": " + e.what();
  }
}

Lines hash_problems(const std::string& root, const Files& expected) {
  std::vector<const Files::value_type*> order;
  for (const auto& item : expected) order.push_back(&item);
  std::stable_sort(order.begin(), order.end(), [](auto* a, auto* b) { return a->second.bytes > b->second.bytes; });
  Lines results(order.size());
  std::atomic<size_t> next{0};
  auto work = [&] {
    std::unique_ptr<char[]> block(new char[kBlock]);
    for (size_t i = next++; i < order.size(); i = next++) {
      results[i] = hash_problem(root, order[i]->first, order[i]->second, block.get());
    }
  };
  std::vector<std::future<void>> threads;
  for (size_t i = 0; i < kThreads; ++i) threads.push_back(std::async(std::launch::async, work));
  for (std::future<void>& thread : threads) thread.get();
  results.erase(std::remove(results.begin(), results.end(), ""), results.end());
  return results;
}

}  // namespace

Manifest read_manifest(const std::string& root) {
  struct stat info = {};
  if (stat(root.c_str(), &info) != 0 || !S_ISDIR(info.st_mode)) {
    throw Error(DSV2_USAGE, root + " is not a directory.", "Give the engine directory that dsv2-compile build wrote.");
  }
  std::string path = root + "/" + kManifestName, data;
  try {
    data = read_file(path, kManifestBytes + 1);
  } catch (const FileError& e) {
    throw Error(DSV2_INTEGRITY, path + ": " + e.what() + ".", kRemedy);
  }
  return parse_manifest(data);
}

void verify_files(const std::string& root, const Manifest& manifest) {
  Lines found;
  try {
    found = listing_problems(root, manifest.files);
  } catch (const FileError& e) {
    found = {std::string("a directory cannot be read: ") + e.what()};
  }
  if (found.empty()) found = hash_problems(root, manifest.files);
  if (!found.empty()) refuse(root, found);
}

std::string read_verified(const std::string& root, const Manifest& manifest, const std::string& path, int64_t limit) {
  auto entry = manifest.files.find(path);
  if (entry == manifest.files.end()) refuse(root, {path + ": not listed in the manifest"});
  if (entry->second.bytes > limit) {
    refuse(root, {path + ": " + std::to_string(entry->second.bytes) + " bytes, the limit is " + std::to_string(limit)});
  }
  std::string data;
  try {
    data = read_file(root + "/" + path, entry->second.bytes);
  } catch (const FileError& e) {
    refuse(root, {path + ": " + e.what()});
  }
  if (static_cast<int64_t>(data.size()) != entry->second.bytes || sha256_hex(data) != entry->second.sha256) {
    refuse(root, {path + ": SHA-256 differs"});
  }
  return data;
}

}  // namespace dsv2
