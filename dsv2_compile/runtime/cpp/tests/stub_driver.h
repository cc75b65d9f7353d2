// The stand-in for libcuda as the driver of a program of checks, and a folder of its own for its log.
#pragma once

#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <string>

#include "native/driver.h"

namespace dsv2 {

class StubDriver {
 public:
  StubDriver() {
    std::string made = (std::filesystem::temp_directory_path() / "dsv2_unit_XXXXXX").string();
    folder_ = mkdtemp(made.data());
    std::filesystem::path here = std::filesystem::read_symlink("/proc/self/exe").parent_path();
    setenv("DSV2_LIBCUDA", (here / "libdsv2_cuda_stub.so").c_str(), 1);
    setenv("DSV2_STUB_LOG", log().c_str(), 1);
  }
  ~StubDriver() { std::filesystem::remove_all(folder_); }
  StubDriver(const StubDriver&) = delete;
  StubDriver& operator=(const StubDriver&) = delete;

  std::string folder() const { return folder_; }
  std::string log() const { return folder_ + "/log"; }

 private:
  std::string folder_;
};

}  // namespace dsv2
