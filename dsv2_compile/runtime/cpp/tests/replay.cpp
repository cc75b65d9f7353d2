// FOLDER SECONDS SEED: a main for fuzz targets where the compiler has no libFuzzer. Runs each file of FOLDER, then
// mutations of them until the time is up, and prints how many it ran. A finding ends the process, as under libFuzzer;
// the same seed comes to it again.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "base/files.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

using Random = std::mt19937_64;

size_t below(Random& random, size_t limit) { return limit ? random() % limit : 0; }

void mutate(std::string& text, const std::vector<std::string>& seeds, Random& random) {
  static const std::vector<std::string> words = {"\"", "[", "]", "{", "}", ":", ",", "-1", "0", "1e99", "null", "true",
                                                 "9223372036854775807", "\\ud800", "\xff", "../", "\"\":0,"};
  size_t at = below(random, text.size()), length = 1 + below(random, 16);
  switch (below(random, 6)) {
    case 0:
      if (!text.empty()) text[at] = static_cast<char>(text[at] ^ 1 << below(random, 8));
      break;
    case 1: text.erase(at, length); break;
    case 2: text.insert(at, text.substr(below(random, text.size()), length)); break;
    case 3: text.insert(at, words[below(random, words.size())]); break;
    case 4: text.replace(at, length, words[below(random, words.size())]); break;
    default: {
      const std::string& other = seeds[below(random, seeds.size())];
      text.replace(at, length, other.substr(below(random, other.size()), length));
    }
  }
}

void run(const std::string& bytes) {
  std::vector<char> exact(bytes.begin(), bytes.end());  // so that a read past the end is one past an allocation
  LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(exact.data()), exact.size());
}

}  // namespace

int main(int argc, char** argv) {
  using Clock = std::chrono::steady_clock;
  if (argc != 4) {
    std::fprintf(stderr, "usage: %s FOLDER SECONDS SEED\n", argv[0]);
    return 2;
  }
  std::string folder = argv[1];
  double seconds = std::atof(argv[2]);
  Random random(std::strtoull(argv[3], nullptr, 10));
  std::vector<std::string> seeds;
  for (const dsv2::Found& file : dsv2::listing(folder)) {
    seeds.push_back(dsv2::read_file(folder + "/" + file.path, 1 << 20));
  }
  if (seeds.empty()) return 2;
  for (const std::string& seed : seeds) run(seed);
  size_t count = seeds.size();
  auto elapsed = [start = Clock::now()] { return std::chrono::duration<double>(Clock::now() - start).count(); };
  while (elapsed() < seconds) {
    std::string text = seeds[below(random, seeds.size())];
    for (size_t edits = 1 + below(random, 8); edits > 0; --edits) mutate(text, seeds, random);
    run(text);
    ++count;
  }
  std::printf("Done %zu runs, %.0f a second\n", count, static_cast<double>(count) / elapsed());
}
