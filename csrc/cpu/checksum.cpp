#include "cpu/checksum.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <vector>

namespace distilfast {

namespace {

using Word = std::uint64_t;

constexpr std::size_t piece_bytes = std::size_t{1} << 20;  // what a thread checks at a time
constexpr std::size_t lanes = 8;                           // multiplications in flight: one waits three to four cycles

// A bijection of `sum` and of `word`. The rotation brings the upper bits down, since a multiplication only carries
// upwards.
inline Word mixed(Word sum, Word word) { return std::rotl((sum ^ word) * Word{0x9E3779B97F4A7C15}, 29); }

Word checksum_piece(std::span<const std::byte> piece) {
  Word sums[lanes] = {1, 2, 3, 4, 5, 6, 7, 8};
  Word words[lanes];
  Word total = piece.size();
  for (; piece.size() >= sizeof words; piece = piece.subspan(sizeof words)) {
    std::memcpy(words, piece.data(), sizeof words);
    for (std::size_t i = 0; i < lanes; ++i) sums[i] = mixed(sums[i], words[i]);
  }
  std::memset(words, 0, sizeof words);
  if (!piece.empty()) std::memcpy(words, piece.data(), piece.size());
  for (std::size_t i = 0; i < lanes; ++i) total = mixed(total, mixed(sums[i], words[i]));
  return total;
}

}  // namespace

std::uint64_t checksum(std::span<const std::byte> block, Team& team) {
  std::vector<Word> pieces((block.size() + piece_bytes - 1) / piece_bytes);
  team.run(static_cast<Index>(pieces.size()), [&](Index i, int) {
    const std::size_t at = static_cast<std::size_t>(i) * piece_bytes;
    pieces[i] = checksum_piece(block.subspan(at, std::min(piece_bytes, block.size() - at)));
  });
  Word total = block.size();
  for (const Word piece : pieces) total = mixed(total, piece);
  return total;
}

}  // namespace distilfast
