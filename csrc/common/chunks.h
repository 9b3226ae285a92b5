// A batch is run in chunks of whole sequences, so that scratch memory is bounded by the chunk and not by the batch.
//
// A chunk is closed before it would exceed its limit; only a single longer sequence exceeds it. So the limit bounds
// scratch on both backends, and on the GPU, where it is a bucket (a power of two), a chunk never needs the next one,
// twice as large. Closing a chunk once it has reached the limit would save the CPU little: fewer passes over the
// weights, each of which costs as much as some 16 tokens. On the CPU the chunking never changes a bit of a result.
#pragma once

#include <algorithm>

#include "common/types.h"

namespace distilfast {

// Consecutive sequences of a batch, their tokens, and those rows for the head that lie in them.
struct Chunk {
  Index first_sequence = 0, sequences = 0;
  Index first_token = 0, tokens = 0;
  Index first_row = 0, rows = 0;
};

// The chunk after `last`, or the first one after a default-constructed chunk; empty at the batch's end.
inline Chunk next_chunk(const ForwardInput& input, const Chunk& last, Index limit) {
  Chunk chunk{last.first_sequence + last.sequences, 0, last.first_token + last.tokens, 0,
              last.first_row + last.rows,           0};
  while (chunk.first_sequence + chunk.sequences < input.sequences) {
    const Index end = input.cu_seqlens[chunk.first_sequence + chunk.sequences + 1];
    if (chunk.sequences > 0 && end - chunk.first_token > limit) break;
    chunk.tokens = end - chunk.first_token;
    ++chunk.sequences;
  }
  const std::int32_t* rows = input.rows + chunk.first_row;
  chunk.rows = std::lower_bound(rows, input.rows + input.num_rows, chunk.first_token + chunk.tokens) - rows;
  return chunk;
}

// to[i] = from[i] - first: offsets into the batch become offsets into a chunk.
inline void copy_relative(const std::int32_t* from, Index count, Index first, std::int32_t* to) {
  std::transform(from, from + count, to, [first](std::int32_t x) { return static_cast<std::int32_t>(x - first); });
}

// Into `to`: chunk.sequences + 1 and chunk.rows values.
inline void copy_cu_seqlens(const ForwardInput& input, const Chunk& chunk, std::int32_t* to) {
  copy_relative(input.cu_seqlens + chunk.first_sequence, chunk.sequences + 1, chunk.first_token, to);
}
inline void copy_rows(const ForwardInput& input, const Chunk& chunk, std::int32_t* to) {
  copy_relative(input.rows + chunk.first_row, chunk.rows, chunk.first_token, to);
}

}  // namespace distilfast
