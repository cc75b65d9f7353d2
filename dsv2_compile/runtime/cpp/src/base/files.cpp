#include "base/files.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <memory>
#include <system_error>
#include <utility>

namespace dsv2 {
namespace {

constexpr int kSafe = O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC;

[[noreturn]] void fail() { throw FileError(std::generic_category().message(errno)); }

const char* kind_problem(const struct stat& info) {
  if (!S_ISREG(info.st_mode)) return S_ISLNK(info.st_mode) ? "symbolic link" : "not a regular file";
  return info.st_nlink > 1 ? "hard link: the file has a second name" : "";
}

struct CloseFolder {
  void operator()(DIR* folder) const { closedir(folder); }
};
using Folder = std::unique_ptr<DIR, CloseFolder>;

Folder open_folder(const std::string& path, bool follow) {
  int descriptor = open(path.c_str(), (follow ? kSafe & ~O_NOFOLLOW : kSafe) | O_DIRECTORY);
  if (descriptor < 0) fail();
  Folder folder(fdopendir(descriptor));
  if (!folder) {
    close(descriptor);
    fail();
  }
  return folder;
}

std::vector<std::string> names(DIR* folder) {
  std::vector<std::string> out;
  while (true) {
    errno = 0;
    const dirent* entry = readdir(folder);
    if (!entry && errno) fail();
    if (!entry) break;
    std::string name = entry->d_name;
    if (name != "." && name != "..") out.push_back(std::move(name));
  }
  std::sort(out.begin(), out.end());
  return out;
}

}  // namespace

File::File(const std::string& path) : descriptor_(open(path.c_str(), kSafe)), size_(0) {
  struct stat info = {};
  if (descriptor_ < 0) fail();
  bool known = fstat(descriptor_, &info) == 0, regular = S_ISREG(info.st_mode);
  if (!known || !regular) {
    int reason = errno;
    close(descriptor_);
    errno = reason;
    if (!known) fail();
    throw FileError("not a regular file");
  }
  size_ = info.st_size;
}

File::~File() { close(descriptor_); }

size_t File::read(char* to, size_t room) {
  while (true) {
    ssize_t count = ::read(descriptor_, to, room);
    if (count >= 0) return static_cast<size_t>(count);
    if (errno != EINTR) fail();
  }
}

std::string File::read(int64_t limit) {
  std::string out(static_cast<size_t>(std::min(size_, limit)), '\0');
  size_t at = 0;
  while (at < out.size()) {
    size_t count = read(out.data() + at, out.size() - at);
    if (count == 0) break;
    at += count;
  }
  out.resize(at);
  return out;
}

std::string read_file(const std::string& path, int64_t limit) { return File(path).read(limit); }

std::vector<Found> listing(const std::string& root) {
  std::vector<Found> out;
  std::vector<std::string> pending = {""};
  while (!pending.empty()) {
    std::string path = std::move(pending.back());
    pending.pop_back();
    Folder folder = open_folder(root + "/" + path, path.empty());
    std::vector<std::string> children = names(folder.get());
    if (!path.empty() && children.empty()) out.push_back({path, 0, "empty directory"});
    for (const std::string& name : children) {
      std::string child = path.empty() ? name : path + "/" + name;
      struct stat info = {};
      if (fstatat(dirfd(folder.get()), name.c_str(), &info, AT_SYMLINK_NOFOLLOW) != 0) fail();
      if (S_ISDIR(info.st_mode)) {
        pending.push_back(std::move(child));
      } else {
        out.push_back({std::move(child), info.st_size, kind_problem(info)});
      }
    }
  }
  return out;
}

}  // namespace dsv2
