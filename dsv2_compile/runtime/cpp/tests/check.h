// CHECK(condition) of the unit programs: says which one failed, goes on, and makes the program fail.
#pragma once

#include <cstdio>

inline int failed_checks = 0;

#define CHECK(condition)                                                              \
  do {                                                                                \
    if (!(condition)) {                                                               \
      std::fprintf(stderr, "%s:%d: CHECK(%s)\n", __FILE__, __LINE__, #condition);     \
      ++failed_checks;                                                                \
    }                                                                                 \
  } while (false)

// The value of ``main``.
inline int checks_result() { return failed_checks ? 1 : 0; }
