// A checksum of a large block, as fast as memory is read, against damage and not against an adversary.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "cpu/threads.h"

namespace distilfast {

// A change of any one 64-bit word always changes it; other changes go unseen once in 2^64. The number of threads does
// not matter. The same on every machine of one byte order.
std::uint64_t checksum(std::span<const std::byte> block, Team& team);

}  // namespace distilfast
