// csrc/cuda/device.cuh on the host: the same functions, for the simulated device. See there for what each one means.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <source_location>
#include <string>
#include <type_traits>

#include "simulator.h"
#include "tensor_core.h"

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define threadIdx (cuda_host::device().thread().index)
#define blockIdx (cuda_host::device().thread().block->index)

namespace cuda_host {

// gridDim and blockDim, which are names of fields too and so cannot be macros.
template <Index3 Launch::* of, unsigned Index3::* along>
struct Size {
  operator unsigned() const { return device().launch().*of.*along; }
};
template <Index3 Launch::* of>
struct Sizes {
  Size<of, &Index3::x> x;
  Size<of, &Index3::y> y;
  Size<of, &Index3::z> z;
};

}  // namespace cuda_host

constexpr cuda_host::Sizes<&cuda_host::Launch::grid> gridDim{};
constexpr cuda_host::Sizes<&cuda_host::Launch::size> blockDim{};

namespace distilfast::cuda {

using Where = std::source_location;

constexpr int warp_size = 32;

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

struct Half {
  _Float16 value;
};
struct BFloat16 {
  std::uint16_t bits;
};

inline std::uint32_t bits_of(float x) { return std::bit_cast<std::uint32_t>(x); }
inline float float_of(std::uint32_t bits) { return std::bit_cast<float>(bits); }

inline float to_float(float x) { return x; }
inline float to_float(Half x) { return static_cast<float>(x.value); }
inline float to_float(BFloat16 x) { return float_of(std::uint32_t{x.bits} << 16); }

template <class T>
inline T from_float(float x);
template <>
inline float from_float<float>(float x) {
  return x;
}
template <>
inline Half from_float<Half>(float x) {
  return {static_cast<_Float16>(x)};
}
template <>
inline BFloat16 from_float<BFloat16>(float x) {
  if (std::isnan(x)) return {0x7fff};
  const std::uint32_t bits = bits_of(x), odd = bits >> 16 & 1;
  return {static_cast<std::uint16_t>((bits + 0x7fff + odd) >> 16)};  // to nearest, ties to even
}

inline std::uint32_t round_to_tf32(float x) {
  if (!std::isfinite(x)) return bits_of(x);
  return (bits_of(x) + 0x1000) & ~std::uint32_t{0x1fff};
}

inline std::uint32_t subtract_pairs(std::uint32_t x, std::uint32_t y) {
  const auto difference = [&](int shift) {
    const BFloat16 from{static_cast<std::uint16_t>(x >> shift)}, off{static_cast<std::uint16_t>(y >> shift)};
    return std::uint32_t{from_float<BFloat16>(to_float(from) - to_float(off)).bits};
  };
  return difference(0) | difference(16) << 16;
}

// ---- memory

template <class T>
inline T load(const T* from, const Where& where = Where::current()) {
  cuda_host::device().access(from, sizeof(T), false, where);
  return *from;
}
template <class T>
inline void store(T* to, T value, const Where& where = Where::current()) {
  cuda_host::device().access(to, sizeof(T), true, where);
  *to = value;
}

// A real device may ignore a prefetch outside every allocation; here it is an error, since no kernel intends one.
inline void prefetch(const void* global, int bytes) {
  if (bytes <= 0 || bytes % 16) cuda_host::device().fail("prefetches " + std::to_string(bytes) + " bytes");
  for (int at = 0; at < bytes; at += 16) cuda_host::device().access(static_cast<const char*>(global) + at, 16, false);
}

inline char* shared_memory() { return cuda_host::device().thread().block->shared->begin; }

inline void copy_async(void* shared, const void* global, int bytes, const Where& where = Where::current()) {
  cuda_host::device().issue_copy(shared, global, bytes, where);
}
inline void commit_copies() { cuda_host::device().commit_copies(); }
template <int Pending>
inline void wait_copies() {
  cuda_host::device().wait_copies(Pending);
}

// ---- collectives of one warp

namespace host {

struct MatrixRow {
  const char* row;
  std::uint32_t* words;
};

// Eight rows are read at once if no two share a bank: each lies in another 16 bytes of the banks' 128. Every kernel
// here must do so.
inline void check_banks(void* const (&lanes)[32]) {
  for (int lane = 0; lane < 32; lane += 8) {
    unsigned banks = 0;
    for (int i = lane; i < lane + 8; ++i)
      banks |= 1u << reinterpret_cast<std::uintptr_t>(static_cast<MatrixRow*>(lanes[i])->row) / 16 % 8;
    if (banks != 0xff) cuda_host::device().fail("reads a matrix with rows in the same banks (a bank conflict)");
  }
}

inline void load_matrices(std::uint32_t (&words)[4], const void* shared_row, bool transposed, const Where& where) {
  cuda_host::device().access(shared_row, 16, false, where);
  MatrixRow own{static_cast<const char*>(shared_row), words};
  cuda_host::device().collective("load_matrices", where, &own, [&](void* const(&lanes)[32]) {
    check_banks(lanes);
    const auto row = [&](int matrix, int i) { return static_cast<MatrixRow*>(lanes[matrix * 8 + i])->row; };
    for (int lane = 0; lane < 32; ++lane)
      for (int matrix = 0; matrix < 4; ++matrix) {
        std::uint16_t pair[2];
        for (int i = 0; i < 2; ++i) {
          const int y = transposed ? lane % 4 * 2 + i : lane / 4, x = transposed ? lane / 4 : lane % 4 * 2 + i;
          std::memcpy(&pair[i], row(matrix, y) + 2 * x, 2);
        }
        std::memcpy(&static_cast<MatrixRow*>(lanes[lane])->words[matrix], pair, 4);
      }
  });
}

// Element i of the words that a lane holds, as a number.
template <class T>
inline float element(const std::uint32_t* words, int i) {
  T value;
  std::memcpy(&value, reinterpret_cast<const char*>(words) + i * sizeof(T), sizeof(T));
  return to_float(value);
}
template <>
inline float element<float>(const std::uint32_t* words, int i) {
  return float_of(words[i] & ~std::uint32_t{0x1fff});  // the 13 bits that tf32 lacks are ignored
}

template <>
inline float element<std::int8_t>(const std::uint32_t* words, int i) {
  return static_cast<std::int8_t>(*words >> 8 * i);
}

// C is the type of the accumulators, int32 or float.
template <class C>
struct Product {
  C* c;
  const std::uint32_t *a, *b;
};

// The smallest exponent of a normal number.
template <class T>
constexpr int least_exponent = std::is_same_v<T, Half> ? -14 : -126;

template <class T, class C>
inline void multiply_matrices(void* const (&lanes)[32]) {
  constexpr int per_word = 4 / sizeof(T), k = 32 / sizeof(T);
  const auto product = [&](int lane) { return static_cast<const Product<C>*>(lanes[lane]); };
  C a[16][k], b[k][8], sums[16][8];
  for (int lane = 0; lane < 32; ++lane)
    for (int word = 0; word < 4; ++word)
      for (int i = 0; i < per_word; ++i) {
        const int row = lane / 4, column = (lane % 4 + word / 2 * 4) * per_word + i;
        a[row + word % 2 * 8][column] = element<T>(product(lane)->a + word, i);
        if (word % 2 == 0) b[column][row] = element<T>(product(lane)->b + word / 2, i);
      }
  const auto each_result = [&](auto body) {
    for (int lane = 0; lane < 32; ++lane)
      for (int i = 0; i < 4; ++i) body(product(lane)->c[i], sums[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2]);
  };
  each_result([](const C& c, C& sum) { sum = c; });
  if constexpr (std::is_same_v<C, float>)
    cuda_host::tensor_core_multiply<k>(sums, a, b, least_exponent<T>);
  else
    for (int j = 0; j < k; ++j)
      for (int row = 0; row < 16; ++row)
        for (int column = 0; column < 8; ++column) sums[row][column] += a[row][j] * b[j][column];
  each_result([](C& c, C sum) { c = sum; });
}

// Each lane gets `pick(value_of, lane)`, where `value_of(i)` is lane i's value.
template <class T, class Pick>
inline T exchange(T value, const char* operation, const Where& where, Pick pick) {
  struct Slot {
    T in, out;
  } own{value, value};
  cuda_host::device().collective(operation, where, &own, [&](void* const(&lanes)[32]) {
    for (int lane = 0; lane < 32; ++lane)
      static_cast<Slot*>(lanes[lane])->out = pick([&](int from) { return static_cast<Slot*>(lanes[from])->in; }, lane);
  });
  return own.out;
}

}  // namespace host

inline void load_matrices(std::uint32_t (&words)[4], const void* shared_row, const Where& where = Where::current()) {
  host::load_matrices(words, shared_row, false, where);
}
inline void load_matrices_transposed(std::uint32_t (&words)[4], const void* shared_row,
                                     const Where& where = Where::current()) {
  host::load_matrices(words, shared_row, true, where);
}

template <class T>
inline void multiply_matrices(float (&c)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2],
                              const Where& where = Where::current()) {
  host::Product<float> own{c, a, b};
  cuda_host::device().collective("multiply_matrices", where, &own, host::multiply_matrices<T, float>);
}
inline void multiply_bytes(std::int32_t (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2],
                           const std::int32_t (&c)[4], const Where& where = Where::current()) {
  std::int32_t sums[4];
  std::copy(std::begin(c), std::end(c), sums);
  host::Product<std::int32_t> own{sums, a, b};
  cuda_host::device().collective("multiply_bytes", where, &own, host::multiply_matrices<std::int8_t, std::int32_t>);
  std::copy(std::begin(sums), std::end(sums), d);
}

template <class T>
inline T shuffle_xor(T value, int mask, const Where& where = Where::current()) {
  return host::exchange(value, "shuffle_xor", where, [&](auto of, int lane) { return of(lane ^ mask); });
}
template <class T>
inline T shuffle(T value, int lane, const Where& where = Where::current()) {
  struct Request {
    T value;
    int from;
  };
  return host::exchange(Request{value, lane}, "shuffle", where,
                        [](auto of, int self) { return Request{of(of(self).from % 32).value, 0}; })
      .value;
}
template <class T>
inline T shuffle_up(T value, int distance, const Where& where = Where::current()) {
  return host::exchange(value, "shuffle_up", where,
                        [&](auto of, int lane) { return of(lane < distance ? lane : lane - distance); });
}
inline std::uint32_t vote(bool value, const Where& where = Where::current()) {
  return host::exchange(std::uint32_t{value}, "vote", where, [](auto of, int) {
    std::uint32_t bits = 0;
    for (int lane = 0; lane < 32; ++lane) bits |= of(lane) << lane;
    return bits;
  });
}
inline int lowest_bit(std::uint32_t bits) { return std::countr_zero(bits); }

// ---- barriers

inline void sync_warp(const Where& where = Where::current()) { cuda_host::device().sync_warp(where); }
inline void sync_threads() { cuda_host::device().sync_threads(); }
inline void sync_grid() { cuda_host::device().sync_grid(); }

// ---- programmatic dependent launch

// Until a thread has waited, the launches before its own may still be running.
inline void wait_for_predecessor() { cuda_host::device().wait_for_predecessor(); }
inline void release_dependents() { cuda_host::device().release_dependents(); }

// ---- clusters

inline int cluster_rank() { return cuda_host::device().cluster_rank(); }
inline int cluster_size() { return static_cast<int>(cuda_host::device().launch().cluster); }
inline void arrive_cluster(const Where& where = Where::current()) { cuda_host::device().arrive_cluster(where); }
inline void wait_cluster(const Where& where = Where::current()) { cuda_host::device().wait_cluster(where); }
inline void store_to_block(int rank, float* shared, float value) {
  *static_cast<float*>(cuda_host::device().write_to_block(rank, shared, sizeof(float))) = value;
}

}  // namespace distilfast::cuda
