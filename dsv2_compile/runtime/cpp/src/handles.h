// What the functions of the C ABI are made of: handles that are numbers, and exceptions that become codes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <typeindex>
#include <unordered_map>
#include <utility>

#include "base/error.h"

namespace dsv2 {

// What messages call a handle of T, as "engine"; given by each kind of handle.
template <class T>
extern const char* const kHandleName;

// All open handles. A number is never given out twice, so one that is closed stays unknown. Whoever has found an object
// shares it: to close its handle does not pull it from under another thread.
class Handles {
 public:
  static Handles& all();

  // ``parent``: the handle with which it goes, 0 for none; Error usage if that has gone already.
  template <class T>
  uint64_t add(std::shared_ptr<T> object, uint64_t parent = 0) {
    return add({typeid(T), std::move(object), parent});
  }
  // Error usage for a number that is zero, closed or of another kind.
  template <class T>
  std::shared_ptr<T> find(uint64_t id) {
    return std::static_pointer_cast<T>(find(typeid(T), id, kHandleName<T>));
  }
  // As find; afterwards nobody finds it, nor what went with it.
  template <class T>
  std::shared_ptr<T> take(uint64_t id) {
    return std::static_pointer_cast<T>(take(typeid(T), id, kHandleName<T>));
  }

 private:
  struct Entry {
    std::type_index type;
    std::shared_ptr<void> object;
    uint64_t parent;
  };
  uint64_t add(Entry entry);
  std::shared_ptr<void> find(std::type_index type, uint64_t id, const char* name);
  std::shared_ptr<void> take(std::type_index type, uint64_t id, const char* name);
  std::shared_ptr<void> at(std::type_index type, uint64_t id, const char* name) const;

  std::mutex mutex_;
  uint64_t last_ = 0;
  std::unordered_map<uint64_t, Entry> entries_;
};

// Error usage if ``pointer`` is null; ``name`` is the parameter's.
void require_given(const void* pointer, const char* name);

// ``text`` and a NUL into ``out``; what has no room is cut at the end of a character.
void copy(const std::string& text, char* out, std::size_t room);
template <std::size_t N>
void copy(const std::string& text, char (&out)[N]) {
  copy(text, out, N);
}

// Fills ``out``, if that is not null, and returns the code.
dsv2_code report(const Error& error, dsv2_error* out);

// Runs ``body``; what it throws becomes a code and a text.
template <class Body>
dsv2_code guarded(dsv2_error* error, Body body) noexcept {
  try {
    try {
      body();
      return DSV2_OK;
    } catch (const Error& e) {
      return report(e, error);
    } catch (const std::bad_alloc&) {
      return report(Error(DSV2_RESOURCE, "Memory is exhausted.", "Use fewer or smaller sessions."), error);
    } catch (const std::exception& e) {
      return report(Error(DSV2_INTERNAL, e.what(), "Please report this."), error);
    }
  } catch (...) {  // no memory even for the text
    if (error) *error = {DSV2_INTERNAL, "Something unknown went wrong.", "Please report this.", ""};
    return DSV2_INTERNAL;
  }
}

}  // namespace dsv2
