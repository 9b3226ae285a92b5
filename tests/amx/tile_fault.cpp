#include <stdexcept>

namespace distilfast {

// What tests/amx/tile_unit.h calls; compiled for the baseline, away from wide registers.
[[noreturn]] void tile_fault(const char* sentence) { throw std::runtime_error(sentence); }

}  // namespace distilfast
