// unpack_device_batch: a batch in the caller's device memory -> BatchInputs, without a copy to the host.
//
// int32 or int64 become int32; positions, and the rows of each sequence's first token, are derived from cu_seqlens;
// indices are clamped so that no kernel reads outside a table. Errors set bits of `faults`, and the tokens concerned
// get the id -1, from which `embed` makes a row of NaN: a single token where its id, type or position is wrong
// (attention spreads the NaN over its sequence), all tokens where cu_seqlens or rows are. One block suffices for a few
// thousand integers.
#pragma once

#include "cuda/device.cuh"
#include "cuda/kernels.h"

namespace distilfast::cuda {
namespace {

constexpr int unpack_threads = 256, unpack_warps = unpack_threads / warp_size;

__device__ inline Index integer_at(const Integers& integers, Index i) {
  return integers.is_int64 ? load(static_cast<const std::int64_t*>(integers.data) + i)
                           : load(static_cast<const std::int32_t*>(integers.data) + i);
}

__device__ inline std::int32_t clamped(Index value, Index low, Index high) {
  return static_cast<std::int32_t>(value < low ? low : value > high ? high : value);
}

// The bitwise or over the block's threads.
__device__ inline std::uint32_t block_or(std::uint32_t bits) {
  auto* warp_bits = reinterpret_cast<std::uint32_t*>(shared_memory());
  for (int distance = warp_size / 2; distance > 0; distance /= 2) bits |= shuffle_xor(bits, distance);
  sync_threads();  // the previous call's words have been read
  if (threadIdx.x % warp_size == 0) store(warp_bits + threadIdx.x / warp_size, bits);
  sync_threads();
  for (int warp = 0; warp < unpack_warps; ++warp) bits |= load(warp_bits + warp);
  return bits;
}

// Copies cu_seqlens, clamped to 0 to T.
__device__ inline std::uint32_t unpack_cu_seqlens(const UnpackDeviceBatch& op) {
  std::uint32_t faults = 0;
  for (int i = static_cast<int>(threadIdx.x); i <= op.sequences; i += unpack_threads) {
    const Index end = integer_at(op.cu_seqlens, i);
    const bool is_increasing = i == op.sequences ? end == op.tokens : end < integer_at(op.cu_seqlens, i + 1);
    if (!is_increasing || end < 0 || (i == 0 && end != 0)) faults = fault_cu_seqlens;
    store(op.to.cu_seqlens + i, clamped(end, 0, op.tokens));
  }
  return faults;
}

__device__ inline std::uint32_t unpack_rows(const UnpackDeviceBatch& op) {
  std::uint32_t faults = 0;
  for (int i = static_cast<int>(threadIdx.x); i < op.num_rows; i += unpack_threads) {
    Index row = i;
    if (op.row_selection == RowSelection::given) {
      row = integer_at(op.rows, i);
      if (row < 0 || row >= op.tokens || (i > 0 && row <= integer_at(op.rows, i - 1))) faults = fault_rows;
    } else if (op.row_selection == RowSelection::first) {
      row = integer_at(op.cu_seqlens, i);
    }
    store(op.to.gather + i, clamped(row, 0, op.tokens - 1));
  }
  return faults;
}

// The first token of the sequence that a token belongs to, by binary search.
__device__ inline std::int32_t sequence_begin(const std::int32_t* cu_seqlens, int sequences, int token) {
  int low = 0, high = sequences;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (load(cu_seqlens + middle) <= token ? low : high) = middle;
  }
  return load(cu_seqlens + low);
}

__device__ inline std::uint32_t unpack_token(const UnpackDeviceBatch& op, int sequences, int token, bool is_refused) {
  const Index id = integer_at(op.ids, token), type = op.token_types.data ? integer_at(op.token_types, token) : 0;
  const std::int32_t position = token - sequence_begin(op.to.cu_seqlens, sequences, token);
  std::uint32_t faults = 0;
  if (id < 0 || id >= op.vocabulary) faults |= fault_ids;
  if (position >= op.num_positions) faults |= fault_positions;
  if (op.types > 0 && (type < 0 || type >= op.types)) faults |= fault_token_types;
  store(op.to.ids + token, faults || is_refused ? -1 : static_cast<std::int32_t>(id));
  store(op.to.positions + token, clamped(position, 0, op.num_positions - 1));
  store(op.to.token_types + token, op.types > 0 ? clamped(type, 0, op.types - 1) : 0);
  return faults;
}

// The grid is one block.
__device__ inline void unpack_device_batch_block(const UnpackDeviceBatch& op) {
  std::uint32_t faults = block_or(unpack_cu_seqlens(op) | unpack_rows(op));
  const bool is_refused = faults != 0;
  // With invalid cu_seqlens the batch is treated as one sequence.
  const int sequences = faults & fault_cu_seqlens ? 1 : op.sequences;
  if (threadIdx.x == 0 && faults & fault_cu_seqlens) {
    store(op.to.cu_seqlens, 0);
    store(op.to.cu_seqlens + 1, op.tokens);
  }
  sync_threads();
  for (int token = static_cast<int>(threadIdx.x); token < op.tokens; token += unpack_threads)
    faults |= unpack_token(op, sequences, token, is_refused);
  faults = block_or(faults);
  if (threadIdx.x > 0) return;
  store(op.to.tokens, op.tokens);
  store(op.to.sequences, sequences);
  store(op.to.rows, op.num_rows);
  store(op.to.faults, static_cast<std::int32_t>(faults));
}

}  // namespace
}  // namespace distilfast::cuda
