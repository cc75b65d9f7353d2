// Parts of the GPU runtime that need no GPU: pages, number formats, cubins, the upload of weights in pieces.
#include <algorithm>
#include <cmath>
#include <fstream>
#include <limits>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "base/error.h"
#include "check.h"
#include "cubin_file.h"
#include "native/cubin.h"
#include "native/launches.h"
#include "native/opening.h"
#include "native/pages.h"
#include "native/rows.h"
#include "stub_driver.h"

using namespace dsv2;

namespace {

template <typename Work>
dsv2_code code(Work&& work) {
  try {
    work();
  } catch (const Error& e) {
    return e.code;
  }
  return DSV2_OK;
}

void pages_are_all_or_nothing_and_come_back() {
  auto pool = std::make_shared<PagePool>(5, 4);
  {
    PageTables tables(pool, 2, 4);
    tables.reserve({0, 1}, {5, 4});
    CHECK(tables.row(0)[0] == 0 && tables.row(0)[1] == 1 && tables.row(1)[0] == 2 && pool->free() == 2);
    CHECK(code([&] { tables.reserve({0, 1}, {16, 8}); }) == DSV2_RESOURCE);
    CHECK(pool->free() == 2);
    tables.reserve({0}, {8});  // within its pages
    CHECK(pool->free() == 2);
    tables.release(0, 4);
    CHECK(pool->free() == 3);
    tables.reserve({1}, {8});
    CHECK(tables.row(1)[1] == 1);  // what was given back last
    tables.release(1, 40);
    CHECK(pool->free() == 2);
  }
  CHECK(pool->free() == 5);
  CHECK(pool->take(5).size() == 5 && code([&] { pool->take(1); }) == DSV2_RESOURCE);
}

template <typename T>
uint32_t converted(Dtype dtype, float value) {
  T out;
  to_device(dtype, &value, 1, reinterpret_cast<char*>(&out));
  return out;
}

// The value of fp16 or bf16 bits.
double value_of(uint32_t bits, int fraction, int bias) {
  int exponent = static_cast<int>((bits & 0x7fff) >> fraction);
  double mantissa = bits & ((1u << fraction) - 1);
  double size = exponent ? std::ldexp(mantissa + (1 << fraction), exponent - bias - fraction)
                         : std::ldexp(mantissa, 1 - bias - fraction);
  return bits & 0x8000 ? -size : size;
}

// Every finite number of the format, and what lies between it and the next.
template <typename T>
void rounds_to_the_nearest(Dtype dtype, int fraction, int bias) {
  const uint32_t infinity = 0x7fffU >> fraction << fraction;
  for (uint32_t bits = 0; bits + 1 < infinity; ++bits) {
    double here = value_of(bits, fraction, bias), next = value_of(bits + 1, fraction, bias);
    auto middle = static_cast<float>((here + next) / 2);
    bool representable = middle == (here + next) / 2;
    CHECK(converted<T>(dtype, static_cast<float>(here)) == bits);
    CHECK(converted<T>(dtype, static_cast<float>(-here)) == (bits | 0x8000));
    if (!representable) continue;  // of bf16, beneath the smallest normal number
    CHECK(converted<T>(dtype, middle) == bits + (bits & 1));
    CHECK(converted<T>(dtype, std::nextafter(middle, 0.0f)) == bits);
    CHECK(converted<T>(dtype, std::nextafter(middle, std::numeric_limits<float>::max())) == bits + 1);
  }
  CHECK(converted<T>(dtype, std::numeric_limits<float>::max()) == infinity);
}

void a_step_is_padded_to_a_power_of_two() {
  const int64_t expected[] = {1, 2, 4, 4, 6, 6};
  for (int64_t rows = 1; rows <= 6; ++rows) CHECK(bucket(rows, 6) == expected[rows - 1]);
  CHECK(bucket(65, 128) == 128 && bucket(64, 128) == 64);
}

void a_cubin_is_read_whatever_its_bytes() {
  const std::string whole = cubin_file("k", {8, 4});
  CHECK((cubin_parameters(whole, "k", "c") == std::vector<int64_t>{8, 4}));
  CHECK(code([&] { cubin_parameters(whole, "kk", "c"); }) == DSV2_INTEGRITY);
  for (size_t cut = 0; cut < whole.size(); ++cut) {
    CHECK(code([&] { cubin_parameters(whole.substr(0, cut), "k", "c"); }) == DSV2_INTEGRITY);
  }
  int refused = 0;
  for (size_t at = 0; at < whole.size(); ++at) {
    for (int bit = 0; bit < 8; ++bit) {
      std::string harmed = whole;
      harmed[at] = static_cast<char>(harmed[at] ^ (1 << bit));
      dsv2_code found = code([&] { cubin_parameters(harmed, "k", "c"); });
      CHECK(found == DSV2_OK || found == DSV2_INTEGRITY);
      refused += found == DSV2_INTEGRITY;
    }
  }
  CHECK(refused > 500);
}

// Addresses and bytes of the copies that the stand-in wrote down since the last call.
std::vector<std::pair<CuAddress, int64_t>> copies(std::ifstream* log) {
  std::vector<std::pair<CuAddress, int64_t>> out;
  for (std::string line; std::getline(*log, line);) {
    std::istringstream words(line);
    std::string operation;
    std::pair<CuAddress, int64_t> copy;
    words >> operation >> copy.first >> copy.second;
    CHECK(operation != "fault");
    if (operation == "copy_in") out.push_back(copy);
  }
  log->clear();
  return out;
}

void any_staging_will_do() {
  StubDriver stub;
  const std::string root = stub.folder();
  std::string bytes;
  for (int i = 0; i < 3000; ++i) bytes += static_cast<char>(i % 251);
  std::ofstream(root + "/w", std::ios::binary) << bytes;
  Driver driver(find_gpu());
  Driver::Current current(driver);
  std::ifstream log(stub.log());
  CuAddress base = driver.alloc(4096);
  const std::vector<WeightRead> reads = {{{"w", 10, 1500, "", {}}, 0}, {{"w", 1510, 1490, "", {}}, 1536}};
  for (int64_t staging : {int64_t{7}, int64_t{64}, int64_t{1500}, int64_t{4096}}) {
    upload(driver, root, reads, base, driver.pinned(static_cast<size_t>(staging)), staging);
    CuAddress at = base;
    int64_t most = 0;
    for (const auto& [address, nbytes] : copies(&log)) {
      if (at == base + 1500) at = base + 1536;
      CHECK(address == at);
      at += static_cast<CuAddress>(nbytes);
      most = std::max(most, nbytes);
    }
    CHECK(at == base + 1536 + 1490 && most == std::min<int64_t>(staging, 1500));
  }
  auto refused = [&](const char* file, int64_t nbytes) {
    char* host = driver.pinned(64);
    return code([&] { upload(driver, root, {{{file, 10, nbytes, "", {}}, 0}}, base, host, 64); });
  };
  CHECK(refused("w", 2991) == DSV2_INTEGRITY && refused("none", 1) == DSV2_INTEGRITY);
  driver.wait();
  driver.free(base);
}

}  // namespace

int main() {
  pages_are_all_or_nothing_and_come_back();
  rounds_to_the_nearest<uint16_t>(Dtype::fp16, 10, 15);
  rounds_to_the_nearest<uint16_t>(Dtype::bf16, 7, 127);
  a_step_is_padded_to_a_power_of_two();
  a_cubin_is_read_whatever_its_bytes();
  any_staging_will_do();
  return checks_result();
}
