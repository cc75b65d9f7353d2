// Errors as values. Part of dsv2.hpp.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <optional>
#include <sstream>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "dsv2/dsv2.h"

namespace dsv2 {
inline namespace api {  // apart from what the library calls by these names

// What went wrong and what to do about it; ``code`` is as the exit codes of the command line.
struct Error {
  dsv2_code code = DSV2_OK;
  std::string cause, remedy;
  std::vector<std::string> problems;

  std::string message() const {
    std::string text = cause + "\n";
    for (const std::string& problem : problems) text += "  - " + problem + "\n";
    return text + remedy;
  }
};

namespace detail {

[[noreturn]] inline void end(const std::string& message) {
  std::fprintf(stderr, "dsv2: %s\n", message.c_str());
  std::abort();
}

// Ends the program unless there is an error to ask for.
inline const Error& present(const Error* error) {
  if (!error) end("a Result without an error was asked for it");
  return *error;
}

}  // namespace detail

// A value, or the error in its place: ask before taking either. To take what is not there ends the program.
template <class T>
class [[nodiscard]] Result {
 public:
  Result(T value) : held_(std::move(value)) {}
  Result(Error error) : held_(std::move(error)) {}

  explicit operator bool() const { return held_.index() == 0; }
  T& value() & { return *checked(); }
  T&& value() && { return std::move(*checked()); }
  T& operator*() & { return value(); }
  T&& operator*() && { return std::move(*this).value(); }
  T* operator->() { return checked(); }
  const Error& error() const { return detail::present(std::get_if<1>(&held_)); }

 private:
  T* checked() {
    T* found = std::get_if<0>(&held_);
    if (!found) detail::end(error().message());
    return found;
  }

  std::variant<T, Error> held_;
};

template <>
class [[nodiscard]] Result<void> {
 public:
  Result() = default;
  Result(Error error) : error_(std::move(error)) {}

  explicit operator bool() const { return !error_; }
  // Ends the program if there is an error.
  void value() const {
    if (error_) detail::end(error_->message());
  }
  const Error& error() const { return detail::present(error_ ? &*error_ : nullptr); }

 private:
  std::optional<Error> error_;
};

namespace detail {

inline Error error_of(const dsv2_error& e) {
  Error error{e.code, e.cause, e.remedy, {}};
  std::istringstream problems(e.problems);
  for (std::string line; std::getline(problems, line);) error.problems.push_back(line);
  return error;
}

// ``call(error)`` -> a code.
template <class Call>
Result<void> checked(Call call) {
  dsv2_error error;
  if (call(&error) == DSV2_OK) return {};
  return error_of(error);
}

// As checked; ``value`` where it worked.
template <class T, class Call>
Result<T> checked(T value, Call call) {
  dsv2_error error;
  if (call(&value, &error) == DSV2_OK) return value;
  return error_of(error);
}

// A handle of the C ABI, closed when this goes. Moved from, it holds none.
template <class Handle, dsv2_code (*Close)(Handle, dsv2_error*)>
class Owner {
 public:
  explicit Owner(Handle handle) : handle_(handle) {}
  Owner(Owner&& other) noexcept : handle_(std::exchange(other.handle_, Handle{0})) {}
  Owner& operator=(Owner&& other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
  }
  ~Owner() {
    if (handle_.id) Close(handle_, nullptr);
  }

  Handle handle() const { return handle_; }
  // At once; later calls are DSV2_USAGE.
  Result<void> close() {
    Handle closing = std::exchange(handle_, Handle{0});
    return checked([&](dsv2_error* error) { return Close(closing, error); });
  }

 private:
  Handle handle_;
};

}  // namespace detail
}  // namespace api
}  // namespace dsv2
