// Parts of the GPU runtime that need no GPU: pages, number formats, cubins, the upload of weights in pieces.
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <limits>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "base/error.h"
#include "check.h"
#include "native/cubin.h"
#include "native/launches.h"
#include "native/opening.h"
#include "native/pages.h"
#include "native/rows.h"

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
  const uint32_t infinity = 0x7fff >> fraction << fraction;
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

// A cubin of kernel "k" with parameters of 8 and 4 bytes, as tests/cubin_files.py writes it.
std::string cubin() {
  std::string data(64, '\0'), table(64, '\0');
  auto put = [](std::string* to, auto value) { to->append(reinterpret_cast<const char*>(&value), sizeof value); };
  auto section = [&](uint32_t name, uint32_t kind, const std::string& contents, uint32_t link) {
    put(&table, name), put(&table, kind), put(&table, uint64_t{0}), put(&table, uint64_t{0});
    put(&table, uint64_t{data.size()}), put(&table, uint64_t{contents.size()});
    put(&table, link), put(&table, uint32_t{0}), put(&table, uint64_t{1}), put(&table, uint64_t{0});
    data += contents;
  };
  std::string symbols(24, '\0'), info;
  put(&symbols, uint32_t{1}), put(&symbols, uint16_t{0x12}), put(&symbols, uint16_t{4});
  put(&symbols, uint64_t{0}), put(&symbols, uint64_t{0});
  put(&info, uint32_t{0x00001c01});  // an attribute of another kind
  for (uint16_t i = 0; i < 2; ++i) {
    put(&info, uint32_t{0x000c1704}), put(&info, uint32_t{0}), put(&info, i), put(&info, static_cast<uint16_t>(8 * i));
    put(&info, uint32_t{i ? 4u << 18 : 8u << 18});
  }
  section(1, 2, symbols, 2);
  section(9, 3, std::string("\0k\0", 3), 0);
  section(17, 3, std::string("\0.symtab\0.strtab\0.shstrtab\0.nv.info.k\0", 38), 0);
  section(27, 0x70000000, info, 0);
  std::string head("\x7f" "ELF\x02\x01\x01", 7);
  head.resize(16);
  put(&head, uint16_t{2}), put(&head, uint16_t{190}), put(&head, uint32_t{1}), put(&head, uint64_t{0});
  put(&head, uint64_t{0}), put(&head, uint64_t{data.size()}), put(&head, uint32_t{0});
  for (int n : {64, 0, 0, 64, 5, 3}) put(&head, static_cast<uint16_t>(n));
  return data.replace(0, head.size(), head) + table;
}

void a_cubin_is_read_whatever_its_bytes() {
  const std::string whole = cubin();
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

// The folder of this program, where the stand-in for the driver is too.
std::string folder() {
  char path[4096];
  ssize_t size = readlink("/proc/self/exe", path, sizeof path);
  std::string whole(path, size > 0 ? static_cast<size_t>(size) : 0);
  return whole.substr(0, whole.rfind('/'));
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
  char root[] = "/tmp/dsv2_unit_XXXXXX";
  CHECK(mkdtemp(root));
  const std::string name = std::string(root) + "/log";
  setenv("DSV2_LIBCUDA", (folder() + "/libdsv2_cuda_stub.so").c_str(), 1);
  setenv("DSV2_STUB_LOG", name.c_str(), 1);
  std::ofstream(std::string(root) + "/w") << std::string(3000, 'w');
  {
    Driver driver(find_gpu());
    Driver::Current current(driver);
    std::ifstream log(name);
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
  unlink((std::string(root) + "/w").c_str());
  unlink(name.c_str());
  rmdir(root);
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
