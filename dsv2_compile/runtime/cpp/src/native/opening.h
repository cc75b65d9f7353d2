// What stands between an engine and a GPU: kernels, memory, weights.
#pragma once

#include <string>
#include <vector>

#include "engine/manifest.h"
#include "native/driver.h"
#include "native/memory.h"
#include "plan/plan.h"

namespace dsv2 {

// A kernel of the engine in ``root``. Error integrity if its cubin is not one of the engine's files or not what was
// built, incompatible if the driver refuses it or it takes other parameters than the plan has.
CuFunction load_kernel(Driver& driver, const std::string& root, const Manifest& manifest, const Kernel& kernel);

// Addresses of one block for each purpose of `Needs`.
struct Blocks {
  CuAddress weights, cache, arena, inputs, outputs, scratch;
};

// Error resource, and nothing is held, if they do not all fit.
Blocks reserve(Driver& driver, const Needs& needs);
void give_back(Driver& driver, const Blocks& blocks);

// Copies every placement to its offset from address ``base``, in pieces that fit the pinned ``staging``. Error
// integrity for a file that cannot be read or ends too early: read and not mapped, since a mapped file that someone
// cuts short ends the process.
void upload(Driver& driver, const std::string& root, const std::vector<WeightRead>& reads, CuAddress base,
            char* staging, int64_t staging_bytes);

}  // namespace dsv2
