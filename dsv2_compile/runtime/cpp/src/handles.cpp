#include "handles.h"

#include <algorithm>
#include <cstring>
#include <iterator>
#include <string>
#include <vector>

namespace dsv2 {
Handles& Handles::all() {
  static Handles* handles = new Handles;  // never destroyed: a thread may still call when the process ends
  return *handles;
}

uint64_t Handles::add(Entry entry) {
  std::lock_guard lock(mutex_);
  if (entry.parent && !entries_.count(entry.parent)) {
    throw Error(DSV2_USAGE, "The handle that it would belong to is closed.", "Open that again.");
  }
  entries_.emplace(++last_, std::move(entry));
  return last_;
}

std::shared_ptr<void> Handles::find(std::type_index type, uint64_t id, const char* name) {
  std::lock_guard lock(mutex_);
  return at(type, id, name);
}

std::shared_ptr<void> Handles::take(std::type_index type, uint64_t id, const char* name) {
  std::vector<Entry> gone;  // destroyed when the lock is free again: that may take long, and call back
  std::lock_guard lock(mutex_);
  std::shared_ptr<void> object = at(type, id, name);
  for (auto entry = entries_.begin(); entry != entries_.end();) {
    bool goes = entry->first == id || entry->second.parent == id;
    if (goes) gone.push_back(std::move(entry->second));
    entry = goes ? entries_.erase(entry) : std::next(entry);
  }
  return object;
}

std::shared_ptr<void> Handles::at(std::type_index type, uint64_t id, const char* name) const {
  auto found = entries_.find(id);
  if (found == entries_.end() || found->second.type != type) {
    throw Error(DSV2_USAGE, "There is no open " + std::string(name) + " with handle " + std::to_string(id) + ".",
                "Use the handle that opening one gave, until it is closed.");
  }
  return found->second.object;
}

void require_given(const void* pointer, const char* name) {
  if (!pointer) throw Error(DSV2_USAGE, std::string(name) + " is NULL.", "Pass a pointer.");
}

void copy(const std::string& text, char* out, std::size_t room) {
  std::size_t count = std::min(text.size(), room - 1);
  while (count && count < text.size() && (text[count] & 0xc0) == 0x80) --count;
  std::memcpy(out, text.data(), count);
  out[count] = 0;
}

dsv2_code report(const Error& error, dsv2_error* out) {
  if (!out) return error.code;
  std::string problems;
  for (const std::string& problem : error.problems) problems += (problems.empty() ? "" : "\n") + problem;
  out->code = error.code;
  copy(error.cause, out->cause);
  copy(error.remedy, out->remedy);
  copy(problems, out->problems);
  return error.code;
}

}  // namespace dsv2
