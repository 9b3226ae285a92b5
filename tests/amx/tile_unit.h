// The tile unit of AMX in plain C++, for machines without one: the kernels' source is compiled with this header instead
// of csrc/cpu/vec/tile_unit.h. It behaves as Intel's manual (volume 2: LDTILECFG, TILELOADD, TDPBF16PS, TDPBSSD) says.
//
// Where the processor raises an exception this calls tile_fault. It also does so where a tile is read that was never
// written, which the processor allows.
#pragma once

#include <cfloat>
#include <cstdint>
#include <cstring>

#include "cpu/vec/tile_config.h"

namespace distilfast {

[[noreturn]] void tile_fault(const char* sentence);

namespace {

struct TileState {
  TileConfig config;
  bool written[8] = {};
  alignas(64) unsigned char data[8][16][64] = {};
};
thread_local TileState tile_state;

// Denormal operands and results are flushed to zero of the same sign; a NaN stays.
inline float flushed(float x) { return __builtin_fabsf(x) < FLT_MIN ? __builtin_copysignf(0.0f, x) : x; }

struct TileUnit {
  static void configure(const TileConfig& config) {
    require(config.palette <= 1, "#GP: there is no such palette.");
    for (const unsigned char byte : config.reserved) require(byte == 0, "#GP: a reserved byte is not zero.");
    for (int tile = 0; config.palette == 1 && tile < 16; ++tile) {
      const int rows = config.rows[tile], bytes = config.bytes[tile];
      require(rows <= 16 && bytes <= 64, "#GP: a tile is larger than the palette allows.");
      require((rows == 0) == (bytes == 0), "#GP: a tile has rows and no columns, or columns and no rows.");
      require(tile < 8 || rows == 0, "#GP: there are eight tiles.");
    }
    tile_state = {};
    if (config.palette == 1) tile_state.config = config;
  }
  static void release() { tile_state = {}; }

  template <int tile>
  static void zero() {
    require_tile<tile>();
    std::memset(tile_state.data[tile], 0, sizeof tile_state.data[tile]);
    tile_state.written[tile] = true;
  }
  template <int tile>
  static void load(const void* from, long stride) {
    zero<tile>();
    for (int row = 0; row < rows(tile); ++row)
      std::memcpy(tile_state.data[tile][row], static_cast<const char*>(from) + row * stride, bytes(tile));
  }
  template <int tile>
  static void store(void* to, long stride) {
    require_written<tile>();
    for (int row = 0; row < rows(tile); ++row)
      std::memcpy(static_cast<char*>(to) + row * stride, tile_state.data[tile][row], bytes(tile));
  }

  // Two chains of fused multiply-adds from zero, over even and odd k; their sum is added to
  // `accumulators`.
  template <int accumulators, int a, int b>
  static void add_bf16_products() {
    require_product<accumulators, a, b>();
    float even[16][16] = {}, odd[16][16] = {}, c[16][16];
    for (int k = 0; k < rows(b); ++k) widen(tile_state.data[b][k], even[k], odd[k]);
    std::memcpy(c, tile_state.data[accumulators], sizeof c);
    for (int row = 0; row < rows(accumulators); ++row) {
      float a_even[16], a_odd[16], even_sum[16] = {}, odd_sum[16] = {};
      widen(tile_state.data[a][row], a_even, a_odd);
      for (int k = 0; k < bytes(a) / 4; ++k)
        for (int column = 0; column < 16; ++column) {
          even_sum[column] = flushed(__builtin_fmaf(a_even[k], even[k][column], even_sum[column]));
          odd_sum[column] = flushed(__builtin_fmaf(a_odd[k], odd[k][column], odd_sum[column]));
        }
      for (int column = 0; column < bytes(accumulators) / 4; ++column)
        c[row][column] = flushed(flushed(c[row][column]) + flushed(even_sum[column] + odd_sum[column]));
    }
    std::memcpy(tile_state.data[accumulators], c, sizeof c);
  }

  // Products of signed bytes, summed modulo 2^32.
  template <int accumulators, int a, int b>
  static void add_int8_products() {
    require_product<accumulators, a, b>();
    std::int32_t b_byte[4][16][16];  // [byte of the k-pack][k / 4][column]
    for (int k = 0; k < 16; ++k)
      for (int column = 0; column < 16; ++column)
        for (int i = 0; i < 4; ++i)
          b_byte[i][k][column] = static_cast<signed char>(tile_state.data[b][k][4 * column + i]);
    for (int row = 0; row < rows(accumulators); ++row) {
      std::uint32_t sum[16];
      std::memcpy(sum, tile_state.data[accumulators][row], sizeof sum);
      for (int k = 0; k < bytes(a) / 4; ++k)
        for (int i = 0; i < 4; ++i) {
          const std::int32_t from_a = static_cast<signed char>(tile_state.data[a][row][4 * k + i]);
          for (int column = 0; column < 16; ++column)
            sum[column] += static_cast<std::uint32_t>(from_a * b_byte[i][k][column]);
        }
      std::memcpy(tile_state.data[accumulators][row], sum, static_cast<std::size_t>(bytes(accumulators)));
    }
  }

 private:
  static int rows(int tile) { return tile_state.config.rows[tile]; }
  static int bytes(int tile) { return tile_state.config.bytes[tile]; }

  static void require(bool condition, const char* sentence) {
    if (!condition) tile_fault(sentence);
  }
  template <int tile>
  static void require_tile() {
    static_assert(0 <= tile && tile < 8);
    require(tile_state.config.palette == 1, "#UD: the tiles are not configured.");
    require(rows(tile) > 0, "#UD: this tile is not configured.");
  }
  template <int tile>
  static void require_written() {
    require_tile<tile>();
    require(tile_state.written[tile], "This tile was never written.");
  }
  template <int accumulators, int a, int b>
  static void require_product() {
    static_assert(accumulators != a && a != b && b != accumulators);  // #UD
    require_written<accumulators>(), require_written<a>(), require_written<b>();
    require(bytes(a) % 4 == 0 && bytes(b) % 4 == 0, "#UD: a row does not end at a whole k-pack.");
    require(rows(accumulators) == rows(a), "#UD: the accumulators do not have the rows of A.");
    require(bytes(accumulators) == bytes(b), "#UD: the accumulators do not have the columns of B.");
    require(bytes(a) / 4 == rows(b), "#UD: A and B do not have the same K.");
  }

  // The lower and the upper bf16 of each k-pack of a row.
  static void widen(const unsigned char* row, float* lower, float* upper) {
    std::uint32_t k_packs[16];
    std::memcpy(k_packs, row, sizeof k_packs);
    for (int i = 0; i < 16; ++i) {
      lower[i] = flushed(__builtin_bit_cast(float, k_packs[i] << 16));
      upper[i] = flushed(__builtin_bit_cast(float, k_packs[i] & 0xffff0000u));
    }
  }
};

}  // namespace
}  // namespace distilfast
