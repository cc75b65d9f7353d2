// The functions of dsv2_text.h.
#include <algorithm>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "dsv2/dsv2_text.h"
#include "engine/integrity.h"
#include "handles.h"
#include "text/tokenizer.h"

namespace dsv2 {
namespace {

constexpr const char* kTokenizer = "tokenizer.json";
constexpr const char* kSettings = "tokenizer_config.json";

// A stream, and what it gave out last.
struct OpenStream {
  explicit OpenStream(std::shared_ptr<Tokenizer> shared) : tokenizer(std::move(shared)), stream(*tokenizer) {}

  std::mutex mutex;
  std::shared_ptr<Tokenizer> tokenizer;
  TextStream stream;
  std::string given;
};

std::optional<std::string> read(const std::string& root, const Manifest& manifest, const std::string& file) {
  if (!manifest.files.count(file)) return std::nullopt;
  return read_verified(root, manifest, file, kTokenizerBytes);
}

std::shared_ptr<Tokenizer> open_tokenizer(const std::string& root) {
  const Manifest manifest = read_manifest(root);
  const std::optional<std::string> tokenizer = read(root, manifest, kTokenizer);
  if (!tokenizer) throw Error(DSV2_USAGE, "The engine has no tokenizer.json.", "Pass token ids instead of text.");
  return std::make_shared<Tokenizer>(*tokenizer, read(root, manifest, kSettings), manifest.model.vocab_size,
                                     manifest.model.bos_token_id);
}

void require_size(int64_t size, const char* name) {
  if (size < 0) throw Error(DSV2_USAGE, std::string(name) + " is negative.", "Pass how many there are.");
}

// Writes what fits of ``from``; ``count`` becomes how many there are.
template <class From, class To>
void give(const From& from, To* to, int64_t capacity, int64_t* count) {
  require_size(capacity, "capacity");
  if (capacity > 0) require_given(to, "the room for the result");
  require_given(count, "the place for its size");
  *count = static_cast<int64_t>(from.size());
  std::copy_n(from.begin(), std::min(capacity, *count), to);
}

template <class Step>
void advance(dsv2_text_stream handle, const char** utf8, int64_t* nbytes, Step step) {
  require_given(utf8, "utf8");
  require_given(nbytes, "nbytes");
  const auto open_stream = Handles::all().find<OpenStream>(handle.id);
  const std::lock_guard lock(open_stream->mutex);
  open_stream->given = step(open_stream->stream);
  *utf8 = open_stream->given.c_str();
  *nbytes = static_cast<int64_t>(open_stream->given.size());
}

}  // namespace

template <>
const char* const kHandleName<Tokenizer> = "text";
template <>
const char* const kHandleName<OpenStream> = "text stream";

}  // namespace dsv2

using dsv2::guarded;
using dsv2::Handles;

extern "C" {

dsv2_code dsv2_text_open(const char* engine_path, dsv2_text* out, dsv2_error* error) {
  return guarded(error, [&] {
    dsv2::require_given(engine_path, "engine_path");
    dsv2::require_given(out, "out");
    out->id = Handles::all().add(dsv2::open_tokenizer(engine_path));
  });
}

dsv2_code dsv2_text_encode(dsv2_text text, const char* utf8, int64_t nbytes, int32_t* ids, int64_t capacity,
                           int64_t* count, dsv2_error* error) {
  return guarded(error, [&] {
    dsv2::require_size(nbytes, "nbytes");
    if (nbytes > 0) dsv2::require_given(utf8, "utf8");
    const auto tokenizer = Handles::all().find<dsv2::Tokenizer>(text.id);
    dsv2::give(tokenizer->encode({utf8, static_cast<size_t>(nbytes)}), ids, capacity, count);
  });
}

dsv2_code dsv2_text_decode(dsv2_text text, const int32_t* ids, int64_t count, char* utf8, int64_t capacity,
                           int64_t* nbytes, dsv2_error* error) {
  return guarded(error, [&] {
    dsv2::require_size(count, "count");
    if (count > 0) dsv2::require_given(ids, "ids");
    const auto tokenizer = Handles::all().find<dsv2::Tokenizer>(text.id);
    dsv2::give(tokenizer->decode(ids, static_cast<size_t>(count)), utf8, capacity, nbytes);
  });
}

dsv2_code dsv2_text_close(dsv2_text text, dsv2_error* error) {
  return guarded(error, [&] { Handles::all().take<dsv2::Tokenizer>(text.id); });
}

dsv2_code dsv2_text_stream_open(dsv2_text text, dsv2_text_stream* out, dsv2_error* error) {
  return guarded(error, [&] {
    dsv2::require_given(out, "out");
    auto stream = std::make_shared<dsv2::OpenStream>(Handles::all().find<dsv2::Tokenizer>(text.id));
    out->id = Handles::all().add(std::move(stream), text.id);
  });
}

dsv2_code dsv2_text_stream_push(dsv2_text_stream stream, int32_t token, const char** utf8, int64_t* nbytes,
                                dsv2_error* error) {
  return guarded(error, [&] {
    dsv2::advance(stream, utf8, nbytes, [&](dsv2::TextStream& s) { return s.push(token); });
  });
}

dsv2_code dsv2_text_stream_end(dsv2_text_stream stream, const char** utf8, int64_t* nbytes, dsv2_error* error) {
  return guarded(error, [&] {
    dsv2::advance(stream, utf8, nbytes, [](dsv2::TextStream& s) { return s.end(); });
  });
}

dsv2_code dsv2_text_stream_close(dsv2_text_stream stream, dsv2_error* error) {
  return guarded(error, [&] { Handles::all().take<dsv2::OpenStream>(stream.id); });
}

}  // extern "C"
