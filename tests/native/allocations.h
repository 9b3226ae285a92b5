// Counts every `new` of the test program.
#pragma once

#include <atomic>

extern std::atomic<long> allocations;
