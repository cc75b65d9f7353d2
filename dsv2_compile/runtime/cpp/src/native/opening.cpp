#include "native/opening.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <limits>
#include <optional>

#include "base/files.h"
#include "base/json.h"
#include "engine/integrity.h"
#include "native/cubin.h"
#include "native/launches.h"

namespace dsv2 {
namespace {

std::string list(const std::vector<int64_t>& values) {
  std::string out;
  for (int64_t v : values) out += (out.empty() ? "" : ", ") + std::to_string(v);
  return "(" + out + ")";
}

void require_parameters(const Kernel& kernel, const std::vector<int64_t>& found) {
  if (found == parameter_bytes(kernel)) return;
  throw Error(DSV2_INCOMPATIBLE,
              kernel.cubin + " takes parameters of " + list(found) + " bytes, the plan has " +
                  list(parameter_bytes(kernel)) + ".",
              "Rebuild the engine with this version of dsv2-compile.");
}

constexpr CuAddress Blocks::* kBlocks[] = {&Blocks::weights, &Blocks::cache,   &Blocks::arena,
                                           &Blocks::inputs,  &Blocks::outputs, &Blocks::scratch};

[[noreturn]] void unreadable(const std::string& file, const std::string& why) {
  throw Error(DSV2_INTEGRITY, file + why + ".", kCopyAgain);
}

// The next bytes of ``file`` from ``offset``, at most ``room`` and at least one.
int64_t read_some(int descriptor, const std::string& file, int64_t offset, char* to, int64_t room) {
  ssize_t count;
  do {
    count = pread(descriptor, to, static_cast<size_t>(room), offset);
  } while (count < 0 && errno == EINTR);
  if (count < 0) unreadable(file, std::string(": ") + std::strerror(errno));
  if (!count) unreadable(file, " ends before its last weight");
  return count;
}

}  // namespace

CuFunction load_kernel(Driver& driver, const std::string& root, const Manifest& manifest, const Kernel& kernel) {
  if (!manifest.files.count(kernel.cubin)) {
    throw Error(DSV2_INTEGRITY, "The plan names a file that is not one of the engine: " + quoted(kernel.cubin) + ".",
                kCopyAgain);
  }
  std::string image = read_verified(root, manifest, kernel.cubin);
  std::vector<int64_t> declared = cubin_parameters(image, kernel.symbol, kernel.cubin);
  if (!declared.empty()) require_parameters(kernel, declared);
  if (kernel.shared > std::numeric_limits<int32_t>::max()) {
    throw Error(DSV2_INCOMPATIBLE, kernel.cubin + " needs more shared memory than any GPU has.", kCopyAgain);
  }
  return explaining("load " + kernel.cubin + " (it is for CUDA " + driver.gpu().version + ")", [&] {
    CuFunction function = driver.load(image, kernel.symbol, static_cast<int>(kernel.shared));
    std::optional<std::vector<int64_t>> found = driver.parameters(function);
    if (found) require_parameters(kernel, *found);
    return function;
  });
}

Blocks reserve(Driver& driver, const Needs& needs) {
  auto [free, total] = explaining("tell its memory", [&] { return driver.memory(); });
  auto most = static_cast<int64_t>(free);
  if (needs.total() > most) {
    throw Error(DSV2_RESOURCE,
                "The engine needs " + needs.text() + " of GPU memory; " + gigabytes(most) + " of " +
                    gigabytes(static_cast<int64_t>(total)) + " GB are free on " + driver.gpu().name + ".",
                "Open it for fewer or shorter sequences, free memory on the GPU, or use a larger one.");
  }
  const int64_t sizes[] = {needs.weights, needs.cache, needs.arena, needs.inputs, needs.outputs, needs.scratch};
  Blocks blocks{};
  try {
    return explaining("reserve " + needs.text(), [&] {
      for (size_t i = 0; i < std::size(kBlocks); ++i) {
        blocks.*kBlocks[i] = driver.alloc(static_cast<size_t>(std::max<int64_t>(sizes[i], 1)));
      }
      return blocks;
    });
  } catch (const Error&) {
    give_back(driver, blocks);
    throw;
  }
}

void give_back(Driver& driver, const Blocks& blocks) {
  for (auto block : kBlocks) {
    if (blocks.*block) driver.free(blocks.*block);
  }
}

void upload(Driver& driver, const std::string& root, const std::vector<WeightRead>& reads, CuAddress base,
            char* staging, int64_t staging_bytes) {
  int64_t at = 0;
  std::optional<File> file;
  std::string open;
  for (const WeightRead& read : reads) {
    const Placement& p = read.placement;
    if (!file || open != p.file) {
      try {
        file.emplace(root + "/" + p.file);
      } catch (const FileError& e) {
        unreadable(p.file, std::string(": ") + e.what());
      }
      open = p.file;
    }
    for (int64_t done = 0; done < p.nbytes;) {
      if (at == staging_bytes) {
        driver.wait();
        at = 0;
      }
      int64_t count = read_some(file->descriptor(), p.file, p.offset + done, staging + at,
                                std::min(staging_bytes - at, p.nbytes - done));
      driver.copy_in(base + static_cast<CuAddress>(read.offset + done), staging + at, static_cast<size_t>(count));
      at += count;
      done += count;
    }
  }
  driver.wait();
}

}  // namespace dsv2
