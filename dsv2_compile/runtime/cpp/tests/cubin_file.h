// A cubin with everything that is read of one before a driver is given it, and no code: tests/cubin_files.py in C++.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace dsv2 {

// Of kernel ``symbol``, which takes parameters of so many bytes.
inline std::string cubin_file(const std::string& symbol, const std::vector<uint32_t>& parameters) {
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
  uint32_t at = 0;
  for (size_t i = 0; i < parameters.size(); ++i) {
    put(&info, uint32_t{0x000c1704}), put(&info, uint32_t{0}), put(&info, static_cast<uint16_t>(i));
    put(&info, static_cast<uint16_t>(at)), put(&info, parameters[i] << 18);
    at += parameters[i];
  }
  const std::string nul(1, '\0');
  section(1, 2, symbols, 2);
  section(9, 3, nul + symbol + nul, 0);
  section(17, 3, nul + ".symtab" + nul + ".strtab" + nul + ".shstrtab" + nul + ".nv.info." + symbol + nul, 0);
  section(27, 0x70000000, info, 0);
  std::string head("\x7f" "ELF\x02\x01\x01", 7);
  head.resize(16);
  put(&head, uint16_t{2}), put(&head, uint16_t{190}), put(&head, uint32_t{1}), put(&head, uint64_t{0});
  put(&head, uint64_t{0}), put(&head, uint64_t{data.size()}), put(&head, uint32_t{0});
  for (int n : {64, 0, 0, 64, 5, 3}) put(&head, static_cast<uint16_t>(n));
  return data.replace(0, head.size(), head) + table;
}

}  // namespace dsv2
