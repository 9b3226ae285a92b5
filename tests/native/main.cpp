// Runs every registered test; the exit status says whether all passed.
#include <cstdio>
#include <exception>

#include "check.h"

int main() {
  int failed = 0;
  for (const auto& [name, test] : tests()) {
    try {
      test();
    } catch (const std::exception& error) {
      std::printf("FAILED %s: %s\n", name.c_str(), error.what());
      ++failed;
    }
  }
  std::printf("%zu passed, %d failed\n", tests().size() - failed, failed);
  return failed != 0;
}
