#include "base/sha256.h"

#include <openssl/evp.h>

#include "base/error.h"

namespace dsv2 {
namespace {

void require(int done) {
  if (done != 1) throw Error(DSV2_INTERNAL, "OpenSSL cannot compute SHA-256.", "Check the OpenSSL installation.");
}

}  // namespace

Sha256::Sha256() : context_(EVP_MD_CTX_new(), EVP_MD_CTX_free) {
  require(context_ && EVP_DigestInit_ex(context_.get(), EVP_sha256(), nullptr));
}

Sha256::~Sha256() = default;

void Sha256::update(std::string_view data) { require(EVP_DigestUpdate(context_.get(), data.data(), data.size())); }

std::string Sha256::hex() {
  unsigned char digest[32];
  require(EVP_DigestFinal_ex(context_.get(), digest, nullptr));
  std::string out;
  for (unsigned char byte : digest) {
    out += "0123456789abcdef"[byte >> 4];
    out += "0123456789abcdef"[byte & 15];
  }
  return out;
}

std::string sha256_hex(std::string_view data) {
  Sha256 hash;
  hash.update(data);
  return hash.hex();
}

}  // namespace dsv2
