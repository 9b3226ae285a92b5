// The tile unit of AMX: eight tiles, and the instructions on them that the kernels use.
//
// Its second implementation, in plain C++, is tests/amx/tile_unit.h: a kernel includes neither, and each translation
// unit includes one of the two before the kernel. Written like the compiler's own intrinsics except that a tile's
// number is a template argument, where gcc's intrinsics need a literal digit, and that the loads declare the memory
// they read. (With gcc 12's, _tile_loadconfig declares eight bytes and _tile_loadd none, and -O2 deletes the stores
// before them.)
#pragma once

#include "cpu/vec/tile_config.h"

namespace distilfast {
namespace {

struct TileUnit {
  // The configuration belongs to the thread, and other code in it can have changed it: set it where work begins.
  static void configure(const TileConfig& config) { asm volatile("ldtilecfg %0" ::"m"(config) : "memory"); }
  // Released tiles cost nothing at a context switch.
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
  // accumulators [16, 16] += a [16, 32] b [32, 16] in fp32; b's rows are k-packs of two: [16][column][2].
  template <int accumulators, int a, int b>
  static void add_bf16_products() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(accumulators), "i"(a), "i"(b));
  }
  // accumulators [16, 16] += a [16, 64] b [64, 16] in int32, of signed bytes; b's rows are k-packs of four.
  template <int accumulators, int a, int b>
  static void add_int8_products() {
    asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(accumulators), "i"(a), "i"(b));
  }
};

}  // namespace
}  // namespace distilfast
