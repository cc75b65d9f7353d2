// What a cubin says of itself, read before a driver is given it: a cubin is code.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace dsv2 {

// Bytes of each parameter of kernel ``symbol`` as the file declares them; empty if it does not say. Error integrity if
// ``image`` is no CUDA ELF file or has no such kernel; ``name``: its path, for messages.
std::vector<int64_t> cubin_parameters(std::string_view image, const std::string& symbol, const std::string& name);

}  // namespace dsv2
