// Checks an engine directory before anything of it is loaded: an engine is a program.
#pragma once

#include <string>

#include "engine/manifest.h"

namespace dsv2 {

// Error usage if ``root`` is no directory, integrity if it has no manifest or a damaged one.
Manifest read_manifest(const std::string& root);

// Every file of ``root`` is what ``manifest`` says and nothing else is there, else Error integrity. Follows no link.
void verify_files(const std::string& root, const Manifest& manifest);

// The bytes of one listed file, whose hash is checked on the way; Error integrity, also if it is larger than ``limit``.
std::string read_verified(const std::string& root, const Manifest& manifest, const std::string& path,
                          int64_t limit = 64 << 20);

}  // namespace dsv2
