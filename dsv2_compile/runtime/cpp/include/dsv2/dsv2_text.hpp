// dsv2_text.h for C++17, as dsv2.hpp: the tokenizer of an engine directory.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "dsv2/dsv2_text.h"
#include "dsv2/result.hpp"
#include "dsv2/session.hpp"

namespace dsv2 {
inline namespace api {

// Decodes a growing sequence of tokens, and never gives out part of a character. For one thread at a time.
class TextStream : public detail::Owner<dsv2_text_stream, dsv2_text_stream_close> {
 public:
  using Owner::Owner;

  // The text that ``token`` completes, possibly none.
  Result<std::string> push(int32_t token) {
    return given([&](const char** utf8, int64_t* nbytes, dsv2_error* error) {
      return dsv2_text_stream_push(handle(), token, utf8, nbytes, error);
    });
  }
  // What was held back.
  Result<std::string> end() {
    return given([&](const char** utf8, int64_t* nbytes, dsv2_error* error) {
      return dsv2_text_stream_end(handle(), utf8, nbytes, error);
    });
  }

 private:
  template <class Call>
  static Result<std::string> given(Call call) {
    return detail::checked(std::string(), [&](std::string* out, dsv2_error* error) {
      const char* utf8 = nullptr;
      int64_t nbytes = 0;
      const dsv2_code code = call(&utf8, &nbytes, error);
      if (code == DSV2_OK) out->assign(utf8, static_cast<size_t>(nbytes));
      return code;
    });
  }
};

class Text : public detail::Owner<dsv2_text, dsv2_text_close> {
 public:
  // DSV2_USAGE: the engine has no tokenizer.
  static Result<Text> open(const std::string& engine_path) {
    Result<dsv2_text> opened = detail::checked(dsv2_text{}, [&](dsv2_text* out, dsv2_error* error) {
      return dsv2_text_open(engine_path.c_str(), out, error);
    });
    if (!opened) return opened.error();
    return Text(*opened);
  }

  Result<Ids> encode(std::string_view utf8) const {
    const size_t room = utf8.size() + 2;  // a byte is a token at most, and there may be one before and one after
    return sized<Ids>(room, [&](int32_t* ids, int64_t capacity, int64_t* count, dsv2_error* error) {
      return dsv2_text_encode(handle(), utf8.data(), static_cast<int64_t>(utf8.size()), ids, capacity, count, error);
    });
  }
  Result<std::string> decode(const Ids& ids) const {
    const size_t room = ids.size() * kUsualBytes;
    return sized<std::string>(room, [&](char* utf8, int64_t capacity, int64_t* nbytes, dsv2_error* error) {
      return dsv2_text_decode(handle(), ids.data(), static_cast<int64_t>(ids.size()), utf8, capacity, nbytes, error);
    });
  }
  Result<TextStream> stream() const {
    auto opened = detail::checked(dsv2_text_stream{}, [&](dsv2_text_stream* out, dsv2_error* error) {
      return dsv2_text_stream_open(handle(), out, error);
    });
    if (!opened) return opened.error();
    return TextStream(*opened);
  }

 private:
  using Owner::Owner;

  // Of a token, more than most have.
  static constexpr size_t kUsualBytes = 8;

  // One call where ``room`` is enough, else a second with room for all.
  template <class Values, class Call>
  static Result<Values> sized(size_t room, Call call) {
    return detail::checked(Values(), [&](Values* out, dsv2_error* error) {
      auto capacity = static_cast<int64_t>(room);
      int64_t count = 0;
      out->resize(room);
      dsv2_code code = call(out->data(), capacity, &count, error);
      if (code == DSV2_OK && count > capacity) {
        out->resize(static_cast<size_t>(count));
        code = call(out->data(), count, &count, error);
      }
      out->resize(code == DSV2_OK ? static_cast<size_t>(count) : 0);
      return code;
    });
  }
};

}  // namespace api
}  // namespace dsv2
