// The device's primitives: loads, asynchronous copies, matrix instructions, shuffles, barriers.
//
// The only file with inline PTX or warp primitives. Kernels touch memory through `load`, `store` and the copies below
// and nothing else, because tests/cuda_host has a second implementation of this header that runs the same kernels on a
// CPU and checks each of those accesses.
//
// A matrix instruction consumes 32 bytes of K: 32 int8, 16 of a 16-bit type or 8 tf32. The fragments of lane `l`, for
// every type: of A [16, K] the word at byte 4 * (l % 4) of rows l / 4 and l / 4 + 8, then both 16 bytes further; of
// B [K, 8] the same of column l / 4; of C [16, 8] columns 2 * (l % 4) and the next, of row l / 4, then of l / 4 + 8.
// Source: the PTX ISA, "Matrix fragments for mma.m16n8k16" and its neighbours.
#pragma once

#include <cooperative_groups.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <cstring>

namespace distilfast::cuda {

using Half = __half;
using BFloat16 = __nv_bfloat16;

constexpr int warp_size = 32;

// 16 bytes, the widest access.
struct alignas(16) Word4 {
  std::uint32_t word[4];
};
struct alignas(8) Word2 {
  std::uint32_t word[2];
};
struct alignas(8) Float2 {
  float x, y;
};

// ---- numbers

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(Half x) { return __half2float(x); }
__device__ inline float to_float(BFloat16 x) { return __bfloat162float(x); }

template <class T>
__device__ inline T from_float(float x);
template <>
__device__ inline float from_float<float>(float x) {
  return x;
}
template <>
__device__ inline Half from_float<Half>(float x) {
  return __float2half_rn(x);
}
template <>
__device__ inline BFloat16 from_float<BFloat16>(float x) {
  return __float2bfloat16_rn(x);
}

__device__ inline std::uint32_t bits_of(float x) { return __float_as_uint(x); }
__device__ inline float float_of(std::uint32_t bits) { return __uint_as_float(bits); }

// The nearest number with the 10 mantissa bits that a tf32 operand keeps, ties away from zero.
__device__ inline std::uint32_t round_to_tf32(float x) {
  std::uint32_t rounded;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(x));
  return rounded;
}

// x - y, for the two bf16 in each word.
__device__ inline std::uint32_t subtract_pairs(std::uint32_t x, std::uint32_t y) {
  __nv_bfloat162 minuend, subtrahend;
  memcpy(&minuend, &x, sizeof(minuend));
  memcpy(&subtrahend, &y, sizeof(subtrahend));
  const __nv_bfloat162 difference = __hsub2(minuend, subtrahend);
  std::uint32_t pair;
  memcpy(&pair, &difference, sizeof(pair));
  return pair;
}

// ---- memory

template <class T>
__device__ inline T load(const T* from) {
  return *from;
}
template <class T>
__device__ inline void store(T* to, T value) {
  *to = value;
}

// Prefetches `bytes` into L2 and does not wait; address and size are multiples of 16.
__device__ inline void prefetch(const void* global, int bytes) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
  constexpr int line_bytes = 128;
  for (int at = 0; at < bytes; at += line_bytes)
    asm volatile("prefetch.global.L2 [%0];" ::"l"(static_cast<const char*>(global) + at));
#else
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(global), "r"(bytes));
#endif
}

// The block's dynamic shared memory, whose size is a launch argument.
__device__ inline char* shared_memory() {
  extern __shared__ __align__(128) char memory[];
  return memory;
}

__device__ inline std::uint32_t shared_address(const void* shared) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(shared));
}

// Copies `bytes` (0 to 16) and zero-fills the rest of 16. This thread may read the destination once the copy's group
// has been waited for, other threads after a further barrier.
__device__ inline void copy_async(void* shared, const void* global, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global), "r"(bytes)
               : "memory");
}
// Makes a group of this thread's copies since the last commit.
__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most `Pending` of this thread's groups are still pending.
template <int Pending>
__device__ inline void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
}

// ---- collectives of one warp

// Four 8 x 8 matrices of 16-bit elements: lane l passes the address of row l % 8 of matrix l / 8, and receives the word
// at byte 4 * (l % 4) of row l / 4 of each. All 32 lanes.
__device__ inline void load_matrices(std::uint32_t (&words)[4], const void* shared_row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(shared_address(shared_row))
               : "memory");
}
// The same, each matrix transposed.
__device__ inline void load_matrices_transposed(std::uint32_t (&words)[4], const void* shared_row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(shared_address(shared_row))
               : "memory");
}

// c += A B, [16, K] [K, 8]; T is the type in the words of a and b, `float` meaning tf32. All 32 lanes.
template <class T>
__device__ inline void multiply_matrices(float (&c)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]);
template <>
__device__ inline void multiply_matrices<Half>(float (&c)[4], const std::uint32_t (&a)[4],
                                               const std::uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
template <>
__device__ inline void multiply_matrices<BFloat16>(float (&c)[4], const std::uint32_t (&a)[4],
                                                   const std::uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
template <>
__device__ inline void multiply_matrices<float>(float (&c)[4], const std::uint32_t (&a)[4],
                                                const std::uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// d = c + A B of int8, exact in int32. c may be d.
__device__ inline void multiply_bytes(std::int32_t (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2],
                                      const std::int32_t (&c)[4]) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%10, %11, %12, %13};"
      : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(c[0]), "r"(c[1]), "r"(c[2]), "r"(c[3]));
}

// The value that lane (this ^ mask) passes. All 32 lanes, as in the functions below.
template <class T>
__device__ inline T shuffle_xor(T value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}
// The value that `lane` passes.
template <class T>
__device__ inline T shuffle(T value, int lane) {
  return __shfl_sync(0xffffffffu, value, lane);
}
// The value that lane (this - distance) passes; its own where that lane does not exist.
template <class T>
__device__ inline T shuffle_up(T value, int distance) {
  return __shfl_up_sync(0xffffffffu, value, distance);
}
// A mask whose bit l is what lane l passes.
__device__ inline std::uint32_t vote(bool value) { return __ballot_sync(0xffffffffu, value); }
__device__ inline int lowest_bit(std::uint32_t bits) { return __ffs(static_cast<int>(bits)) - 1; }

// ---- barriers

__device__ inline void sync_warp() { __syncwarp(); }
__device__ inline void sync_threads() { __syncthreads(); }
// A barrier of all blocks of a cooperative launch; writes before it are visible to all after it.
__device__ inline void sync_grid() { cooperative_groups::this_grid().sync(); }

// ---- programmatic dependent launch

// In a graph a kernel starts as soon as every block of the kernel before has released its dependents or has ended. All
// threads of a forward's kernels call these two, in this order, before they read what another kernel writes and before
// they write to device memory at all. Until then they may only read weights, which are packed before any forward. So
//   * a read finds what was written: the wait ends when the kernel before has ended and its writes are visible, and
//     that kernel has ended after its own wait, so the one before it has ended too, and all earlier ones;
//   * a write destroys nothing that is still read, since then all earlier kernels have ended;
//   * at most two kernels run at once, since none releases its dependents before its own wait.
// Below compute capability 9.0 a kernel starts when the one before has ended.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
__device__ inline void wait_for_predecessor() {}
__device__ inline void release_dependents() {}
#else
__device__ inline void wait_for_predecessor() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
__device__ inline void release_dependents() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }
#endif

// ---- clusters and distributed shared memory

// Below compute capability 9.0 every block is a cluster of its own. The other blocks are known to have started only
// after a first barrier, and a block must not exit while another may still write to its shared memory.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
__device__ inline int cluster_rank() { return 0; }
__device__ inline int cluster_size() { return 1; }
__device__ inline void arrive_cluster() {}
__device__ inline void wait_cluster() { __syncthreads(); }
__device__ inline void store_to_block(int, float* shared, float value) { *shared = value; }
#else
__device__ inline int cluster_rank() {
  std::uint32_t rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return static_cast<int>(rank);
}
__device__ inline int cluster_size() {
  std::uint32_t size;
  asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
  return static_cast<int>(size);
}
// A split barrier: what the cluster's threads wrote before they arrived is visible to each of them after its wait.
__device__ inline void arrive_cluster() { asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"); }
__device__ inline void wait_cluster() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }
// Stores to the same address in the shared memory of block `rank` of the cluster.
__device__ inline void store_to_block(int rank, float* shared, float value) {
  std::uint32_t remote;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(shared_address(shared)), "r"(rank));
  asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(remote), "f"(value) : "memory");
}
#endif

}  // namespace distilfast::cuda
