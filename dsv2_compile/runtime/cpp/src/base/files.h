// Files of unknown origin: no link is followed, nothing but regular files is opened, opening never blocks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace dsv2 {

// One line, without the path: why it is not read.
struct FileError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// A regular file, open for reading.
class File {
 public:
  // FileError for a link, a FIFO, a device, and whatever the system refuses.
  explicit File(const std::string& path);
  ~File();
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  int descriptor() const { return descriptor_; }
  // Bytes, when it was opened.
  int64_t size() const { return size_; }
  // The next bytes, up to ``room``; 0 at the end.
  size_t read(char* to, size_t room);
  // The next bytes, at most ``limit`` and as many as there were when it was opened.
  std::string read(int64_t limit);

 private:
  int descriptor_;
  int64_t size_;
};

// Its first bytes, at most ``limit``.
std::string read_file(const std::string& path, int64_t limit);

// ``path``: relative to what was listed; ``problem``: empty for a regular file with one name.
struct Found {
  std::string path;
  int64_t bytes;
  std::string problem;
};

// Everything below ``root`` that is not a plain directory, and each empty directory but ``root``: no file of an engine
// needs one. FileError if a directory cannot be read.
std::vector<Found> listing(const std::string& root);

}  // namespace dsv2
