// The tile unit of AMX: eight tiles, and the instructions on them that the kernels use.
//
// Its second implementation, in plain C++, is tests/amx/tile_unit.h: a kernel includes neither and is compiled behind
// one or the other. Written as the compiler's own intrinsics are, but for two things: a tile's number is a template
// argument, where gcc's intrinsics want a digit; and the loads say that they read memory. (gcc 12's say that
// _tile_loadconfig reads eight bytes and _tile_loadd none, and it deletes the stores before them at -O2.)
#pragma once

#include "cpu/vec/tile_config.h"

namespace distilfast {
namespace {

struct TileUnit {
  // The shapes are a thread's own, and whatever else runs in it may have changed them: set them where work begins.
  static void configure(const TileConfig& config) { asm volatile("ldtilecfg %0" ::"m"(config) : "memory"); }
  // Empty tiles cost nothing when the thread is switched.
  static void release() { asm volatile("tilerelease" ::: "memory"); }

  template <int tile>
  static void zero() {
    asm volatile("tilezero %%tmm%c0" ::"i"(tile));
  }
  // Rows are `stride` bytes apart.
  template <int tile>
  static void load(const void* from, long stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(tile) : "memory");
  }
  template <int tile>
  static void store(void* to, long stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(tile) : "memory");
  }
  // sums [16, 16] += a [16, 32] b [32, 16] in fp32; b's rows are pairs of k: [16][column][2].
  template <int sums, int a, int b>
  static void add_bf16_products() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(sums), "i"(a), "i"(b));
  }
  // sums [16, 16] += a [16, 64] b [64, 16] in int32, of signed bytes; b's rows are four of k: [16][column][4].
  template <int sums, int a, int b>
  static void add_int8_products() {
    asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(sums), "i"(a), "i"(b));
  }
};

}  // namespace
}  // namespace distilfast
