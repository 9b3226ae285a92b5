// A minimal test framework: TEST registers a test, CHECK fails it with file and line.
#pragma once

#include <functional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "cpu/dispatch.h"

using Tests = std::vector<std::pair<std::string, std::function<void()>>>;

inline Tests& tests() {
  static Tests all;
  return all;
}

struct Register {
  Register(const char* name, std::function<void()> test) { tests().emplace_back(name, std::move(test)); }
};

#define TEST(name)                                           \
  static void test_##name();                                 \
  static const Register register_##name(#name, test_##name); \
  static void test_##name()

#define CHECK(condition)                                                                                  \
  do {                                                                                                    \
    if (!(condition))                                                                                     \
      throw std::runtime_error(std::string(__FILE__) + ":" + std::to_string(__LINE__) + ": " #condition); \
  } while (false)

// Seeded numbers in [-1, 1), so that a failure is reproducible.
inline std::vector<float> numbers(std::size_t count, unsigned seed) {
  std::vector<float> values(count);
  for (float& value : values) {
    seed = seed * 1664525u + 1013904223u;
    value = static_cast<float>(seed >> 8) / 8388608.0f - 1.0f;
  }
  return values;
}

// The ISA that the command line asks for; empty: none.
inline std::string& forced_isa() {
  static std::string name;
  return name;
}

// Every ISA that this machine has, or the forced one and `ref`.
inline std::vector<const distilfast::Kernels*> supported_kernels() {
  std::vector<const distilfast::Kernels*> all;
  for (const distilfast::Isa& isa : distilfast::isas())
    if (isa.supported() && (forced_isa().empty() || forced_isa() == isa.name || isa.name == std::string("ref")))
      all.push_back(isa.kernels);
  return all;
}
