#include "cpu/checksum.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <vector>

namespace distilfast {

namespace {

using Word = std::uint64_t;

constexpr std::size_t part_bytes = std::size_t{1} << 20;  // what a thread takes at a time
constexpr std::size_t lanes = 8;                          // multiplications in flight: one waits three to four cycles

// One to one in `sum` and in `word`; the rotation lets the upper bits, which a product only passes upwards, count
// below.
inline Word mixed(Word sum, Word word) { return std::rotl((sum ^ word) * Word{0x9E3779B97F4A7C15}, 29); }

Word checksum_part(std::span<const std::byte> part) {
  Word sums[lanes] = {1, 2, 3, 4, 5, 6, 7, 8};
  Word words[lanes];
  Word total = part.size();
  for (; part.size() >= sizeof words; part = part.subspan(sizeof words)) {
    std::memcpy(words, part.data(), sizeof words);
    for (std::size_t i = 0; i < lanes; ++i) sums[i] = mixed(sums[i], words[i]);
  }
  std::memset(words, 0, sizeof words);
  if (!part.empty()) std::memcpy(words, part.data(), part.size());
  for (std::size_t i = 0; i < lanes; ++i) total = mixed(total, mixed(sums[i], words[i]));
  return total;
}

}  // namespace

std::uint64_t checksum(std::span<const std::byte> block, Team& team) {
  std::vector<Word> parts((block.size() + part_bytes - 1) / part_bytes);
  team.run(static_cast<Index>(parts.size()), [&](Index i, int) {
    const std::size_t at = static_cast<std::size_t>(i) * part_bytes;
    parts[i] = checksum_part(block.subspan(at, std::min(part_bytes, block.size() - at)));
  });
  Word total = block.size();
  for (const Word part : parts) total = mixed(total, part);
  return total;
}

}  // namespace distilfast
