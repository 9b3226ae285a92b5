#include <stdexcept>

namespace distilfast {

// Called by tests/amx/tile_unit.h; compiled for the baseline, so that its code contains no AVX-512.
[[noreturn]] void tile_fault(const char* sentence) { throw std::runtime_error(sentence); }

}  // namespace distilfast
