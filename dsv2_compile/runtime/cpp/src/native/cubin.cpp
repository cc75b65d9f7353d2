#include "native/cubin.h"

#include <elf.h>

#include <algorithm>
#include <cstring>

#include "base/error.h"

namespace dsv2 {
namespace {

constexpr uint16_t kCudaMachine = 190;
// Attributes of a kernel's .nv.info section: a format, a number, and with this format a size and so many bytes.
constexpr uint8_t kSized = 4, kParameterInfo = 0x17;
constexpr size_t kParameterInfoBytes = 12;

class Elf {
 public:
  Elf(std::string_view image, const std::string& name) : image_(image), name_(name) {
    require(image.size() >= sizeof(Elf64_Ehdr), "is no ELF file");
    header_ = at<Elf64_Ehdr>(0);
    const unsigned char* ident = header_.e_ident;
    require(!std::memcmp(ident, ELFMAG, SELFMAG) && ident[EI_CLASS] == ELFCLASS64 && ident[EI_DATA] == ELFDATA2LSB,
            "is no 64-bit ELF file");
    require(header_.e_machine == kCudaMachine, "is not for a GPU");
    require(header_.e_shentsize == sizeof(Elf64_Shdr) && header_.e_shstrndx < header_.e_shnum, "has no sections");
    bytes(header_.e_shoff, uint64_t{header_.e_shnum} * sizeof(Elf64_Shdr));
  }

  // Whether there is a symbol of this name for a function that the file defines.
  bool defines(const std::string& symbol) const {
    for (size_t i = 0; i < header_.e_shnum; ++i) {
      Elf64_Shdr table = section(i);
      if (table.sh_type != SHT_SYMTAB) continue;
      std::string_view entries = bytes(table.sh_offset, table.sh_size);
      Elf64_Shdr names = section(table.sh_link);
      for (size_t at = 0; at + sizeof(Elf64_Sym) <= entries.size(); at += sizeof(Elf64_Sym)) {
        auto entry = this->at<Elf64_Sym>(table.sh_offset + at);
        if (ELF64_ST_TYPE(entry.st_info) == STT_FUNC && entry.st_shndx != SHN_UNDEF &&
            text(names, entry.st_name) == symbol) {
          return true;
        }
      }
    }
    return false;
  }

  // Contents of the section of this name; empty if there is none.
  std::string_view contents(const std::string& name) const {
    Elf64_Shdr names = section(header_.e_shstrndx);
    for (size_t i = 0; i < header_.e_shnum; ++i) {
      Elf64_Shdr found = section(i);
      if (found.sh_type != SHT_NOBITS && text(names, found.sh_name) == name) {
        return bytes(found.sh_offset, found.sh_size);
      }
    }
    return {};
  }

  void require(bool holds, const std::string& what) const {
    if (!holds) throw Error(DSV2_INTEGRITY, name_ + " " + what + ".", kCopyAgain);
  }

 private:
  template <typename T>
  T at(uint64_t offset) const {
    T out;
    std::memcpy(&out, bytes(offset, sizeof out).data(), sizeof out);
    return out;
  }

  std::string_view bytes(uint64_t offset, uint64_t count) const {
    require(offset <= image_.size() && count <= image_.size() - offset, "is cut short");
    return image_.substr(offset, count);
  }

  Elf64_Shdr section(size_t number) const {
    require(number < header_.e_shnum, "names a section that is not there");
    return at<Elf64_Shdr>(header_.e_shoff + number * sizeof(Elf64_Shdr));
  }

  std::string_view text(const Elf64_Shdr& table, size_t offset) const {
    std::string_view all = bytes(table.sh_offset, table.sh_size);
    require(offset < all.size(), "has a name outside its names");
    return all.substr(offset, std::min(all.find('\0', offset), all.size()) - offset);
  }

  std::string_view image_;
  const std::string& name_;
  Elf64_Ehdr header_;
};

template <typename T>
T number(std::string_view bytes, size_t at) {
  T out;
  std::memcpy(&out, bytes.data() + at, sizeof out);
  return out;
}

}  // namespace

std::vector<int64_t> cubin_parameters(std::string_view image, const std::string& symbol, const std::string& name) {
  Elf elf(image, name);
  elf.require(elf.defines(symbol), "has no kernel " + symbol.substr(0, 80));
  std::vector<int64_t> found;
  std::string_view info = elf.contents(".nv.info." + symbol);
  for (size_t at = 0; at + 4 <= info.size();) {
    auto size = number<uint16_t>(info, at + 2);
    bool sized = number<uint8_t>(info, at) == kSized;
    if (sized && number<uint8_t>(info, at + 1) == kParameterInfo) {
      elf.require(size == kParameterInfoBytes && info.size() - at >= 4 + kParameterInfoBytes,
                  "has a parameter that cannot be read");
      // after an index: the parameter's number and its offset of 16 bits each, then its size above 18 other bits
      auto ordinal = number<uint16_t>(info, at + 8);
      elf.require(ordinal < 4096, "has a parameter that cannot be read");
      found.resize(std::max<size_t>(found.size(), ordinal + size_t{1}), 0);
      found[ordinal] = number<uint32_t>(info, at + 12) >> 18;
    }
    at += 4 + (sized ? size : size_t{0});
  }
  return found;
}

}  // namespace dsv2
