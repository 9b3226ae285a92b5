// linear: out = act(x Wt + b), [T, K] . [N, K] -> [T, N]; accumulators and results are fp32.
//
// Packed W: K is cut into k-blocks of `k_block`; each k-block consists of panels of `panel` columns, each panel is
// [k-pack][column]. A k-pack is 4 bytes: one fp32 value of K, two bf16 or four int8 values. One panel of a k-block,
// at most 49 KB, comes from L1 or L2 and is used for all rows of the range, whose block of x and whose out stay in L2.
// With few tokens the same loop reads W once from front to back, so the next panel is prefetched to L2 during the main
// loop.
//
// k-blocks are added in the order of k: a sum of short sums, which rounds less than one long chain and depends on K
// alone. fp32 kernels read x itself: 16 consecutive floats of a row share a cache line, and so few rows are read at a
// time that their lines do not collide in a set. The other operand types pack x once, [k-block][row], for all panels.
// Reference: linear/ref.h; int8 has its own panels in linear/int8.h.
#pragma once

#include "cpu/kernels.h"
#include "cpu/vec/math.h"
#include "cpu/vec/tile.h"

// As the system's own headers declare it.
#if defined(__APPLE__)
extern "C" float tanhf(float);
#else
extern "C" float tanhf(float) noexcept;
#endif

namespace distilfast {
namespace {

constexpr int panel_vectors = 3;
constexpr int panel = panel_vectors * Vec::width;
// Accumulators, a row of B and a broadcast fill the registers: 8 x 3 + 3 + 1 of 32, 4 x 3 + 3 + 1 of 16; by lane it is
// accumulators, a row of B and a vector of each row of A: 7 x 3 + 3 + 7 of 32.
constexpr int tile_rows = Vec::multiplies_by_lane ? 7 : Vec::registers == 32 ? 8 : 4;

// Rows of x and out of one range stay in L2 while the panels stream past.
constexpr Index mc_multiple = 1;
constexpr Index mc = 256;

// fp32 operands of `linear`.
struct Fp32Linear : Fp32 {
  using Gelu = ExactGelu;
  static constexpr int rows = tile_rows;
  // Values of K in a k-block, which is one chain. Longer ones read and write c less often, and round more: with 768
  // DistilBERT takes 2 % less time on Zen 4, and its error grows from 1.2e-6 to 1.9e-6.
  static constexpr Index k_block = 256;
  // Raise a layout's version with every change of its bytes: packed weights are kept on disk, and a file of another
  // version must not be read.
  static constexpr PackedLayout layout{"f32", 1};
  static constexpr Index k_pack_size = 1;  // values of K in a k-pack
  static float k_pack(const float* w, Index) { return *w; }
  static constexpr Index packed_row_size(Index) { return 0; }
  static void pack_row(const float*, Index, float*) {}
};

inline Index smaller(Index a, Index b) { return a < b ? a : b; }

// Where panel `p` of the k-block at `k` begins in the packed W, in k-packs.
template <class Operands>
inline Index packed_offset(Index n, Index k_total, Index k, Index p) {
  const Index depth = smaller(k_total - k, Operands::k_block);
  return divide_up(k, Operands::k_pack_size) * round_up(n, panel) + p * divide_up(depth, Operands::k_pack_size) * panel;
}

template <class Operands>
Index packed_size(Index n, Index k) {
  return divide_up(k, Operands::k_pack_size) * round_up(n, panel) * Index{sizeof(typename Operands::B)};
}

// Where `row` of the k-block at `k` begins in packed A, in elements.
template <class Operands>
inline Index packed_a_offset(Index rows, Index k_total, Index k, Index row) {
  return rows * Operands::packed_row_size(k) + row * Operands::packed_row_size(smaller(k_total - k, Operands::k_block));
}

template <class Operands>
Index packed_a_size(Index rows, Index k) {
  return rows * Operands::packed_row_size(k) * Index{sizeof(typename Operands::A)};
}

template <class Operands>
void pack_linear(const LinearSource& source, Range panels, std::byte* packed) {
  using B = typename Operands::B;
  const Index n = source.n, k_total = source.k;
  for (Index k0 = 0; k0 < k_total; k0 += Operands::k_block) {
    const Index depth = smaller(k_total - k0, Operands::k_block);
    for (Index p = panels.begin; p < panels.end; ++p) {
      B* to = view<B>(packed, packed_offset<Operands>(n, k_total, k0, p));
      for (Index j = 0; j < panel; ++j) {
        const Index row = p * panel + j;
        const float* from = source.weight + row * k_total + k0;
        for (Index k = 0; k < depth; k += Operands::k_pack_size)
          to[k / Operands::k_pack_size * panel + j] = row < n ? Operands::k_pack(from + k, depth - k) : B{0};
      }
    }
  }
}

template <class Operands>
void pack_a(const Linear& op, Range rows) {
  const Index k_total = op.packed.k;
  for (Index row = rows.begin; row < rows.end; ++row)
    for (Index k = 0; k < k_total; k += Operands::k_block)
      Operands::pack_row(op.x + row * op.x_stride + k, smaller(k_total - k, Operands::k_block),
                         view<typename Operands::A>(op.packed_a, packed_a_offset<Operands>(op.rows, k_total, k, row)));
}

// The k-block of A at `k`, from row 0 on: of packed A, or of x itself.
template <class Operands>
inline const typename Operands::A* a_block(const Linear& op, Index k) {
  if constexpr (Operands::packed_row_size(1) == 0)
    return op.x + k;
  else
    return view<typename Operands::A>(op.packed_a, packed_a_offset<Operands>(op.rows, op.packed.k, k, 0));
}

template <class Gelu>
inline Vec apply(Activation activation, Vec x) {
  switch (activation) {
    case Activation::gelu:
      return Gelu::of(x);
    case Activation::relu:
      return max(x, Vec::zero());
    case Activation::tanh: {  // only ever on a pooler's few rows
      float lanes[Vec::width];
      x.store(lanes);
      for (float& lane : lanes) lane = tanhf(lane);
      return Vec::load(lanes);
    }
    case Activation::none:
      break;
  }
  return x;
}

template <class Gelu, int Rows>
inline void activate(float* c, Index c_stride, Activation activation) {
  if (activation == Activation::none) return;
  for (int i = 0; i < Rows; ++i)
    for (int j = 0; j < panel; j += Vec::width)
      apply<Gelu>(activation, Vec::load(c + i * c_stride + j)).store(c + i * c_stride + j);
}

// What a tile prefetches during its main loop: of each row of the next panel `vectors` vectors, from `first` on.
struct Prefetch {
  int vectors, first;
  template <class B>
  const B* of(const B* panel_of_w) const {
    return panel_of_w + first * Vec::width;
  }
};

// Spreads the prefetch of the next panel over the first three row tiles: the time of one tile is too short to hide it,
// and DRAM would then idle during the others.
inline Prefetch prefetch_slice(Index tile, Index tiles) {
  if (tiles == 1) return {panel_vectors, 0};
  if (tiles == 2) return tile == 0 ? Prefetch{panel_vectors - 1, 0} : Prefetch{1, panel_vectors - 1};
  return tile < panel_vectors ? Prefetch{1, static_cast<int>(tile)} : Prefetch{0, 0};
}

// Calls body<count>(), with `count` as a constant.
template <int Max = panel_vectors, class Body>
inline void for_count(int count, Body body) {
  if (count == Max) return body.template operator()<Max>();
  if constexpr (Max > 0) for_count<Max - 1>(count, body);
}

// One k-block of one tile: c = A B for the first k-block, c += A B after it; in the last one, where `bias` is not null,
// + bias.
template <class Operands, int Rows, int Prefetched>
inline void block_tile(const typename Operands::A* x, Index x_stride, const typename Operands::B* w, Index depth,
                       const typename Operands::B* next_panel, float* c, Index c_stride, bool first,
                       const float* bias) {
  Tile<Rows, panel_vectors, Operands> tile;
  tile.template multiply<Prefetched>(x, x_stride, w, depth, next_panel);
  tile.each([&](int i, int j, Vec& accumulator) {
    float* at = c + i * c_stride + j * Vec::width;
    if (!first) accumulator = Vec::load(at) + accumulator;
    if (bias) accumulator = accumulator + Vec::load(bias + j * Vec::width);
    accumulator.store(at);
  });
}

template <int Rows>
inline void copy_columns(const float* from, Index from_stride, float* to, Index to_stride, Index columns) {
  for (int i = 0; i < Rows; ++i)
    for (Index j = 0; j < columns; ++j) to[i * to_stride + j] = from[i * from_stride + j];
}

// Calls body<count>(first row, c, stride of c, prefetch) for each row tile of panel `p`, where c is the tile's place in
// out. Where the last panel reaches past N, c is a buffer instead: filled from out unless this is the `first` k-block,
// and copied back.
template <int Max, class Body>
inline void in_tiles(const Linear& op, Range rows, Index p, bool first, Body body) {
  const Index column = p * panel, columns = smaller(op.packed.n - column, panel),
              tiles = divide_up(rows.end - rows.begin, Max);
  Index tile = 0;
  in_row_tiles<Max>(rows, [&]<int Rows>(Index row) {
    const Prefetch prefetch = prefetch_slice(tile++, tiles);
    float* out = op.out + row * op.out_stride + column;
    if (columns == panel) return body.template operator()<Rows>(row, out, op.out_stride, prefetch);
    float edge[Rows * panel];
    if (!first) copy_columns<Rows>(out, op.out_stride, edge, panel, columns);
    body.template operator()<Rows>(row, edge, panel, prefetch);
    copy_columns<Rows>(edge, panel, out, op.out_stride, columns);
  });
}

struct PanelIndex {
  Index k, p;  // the k-block that begins at `k`, panel `p`
};

// The panel that is read after panel `p` of the k-block at `k`: the next one of the range; after the last one the first
// of the next k-block; after the last k-block the first panel past the range, which the same thread will probably
// compute next (parallel_linear). After the end of W there is none: the panel itself.
inline PanelIndex next_panel_index(const Linear& op, Range panels, Index k, Index p, Index next_k) {
  if (p + 1 < panels.end) return {k, p + 1};
  if (next_k < op.packed.k) return {next_k, panels.begin};
  return (p + 1) * panel < op.packed.n ? PanelIndex{0, p + 1} : PanelIndex{k, p};
}

template <class Operands>
void linear(const Linear& op, Range rows, Range panels) {
  using B = typename Operands::B;
  const Index n = op.packed.n, k_total = op.packed.k;
  for (Index k = 0; k < k_total; k += Operands::k_block) {
    const Index depth = smaller(k_total - k, Operands::k_block), packed_row = Operands::packed_row_size(depth);
    const bool first = k == 0, last = k + depth == k_total;
    const auto* a = a_block<Operands>(op, k);
    const Index a_stride = packed_row ? packed_row : op.x_stride;
    for (Index p = panels.begin; p < panels.end; ++p) {
      const PanelIndex next = next_panel_index(op, panels, k, p, k + depth);
      const B* w = view<B>(op.packed.weight, packed_offset<Operands>(n, k_total, k, p));
      const B* next_panel = view<B>(op.packed.weight, packed_offset<Operands>(n, k_total, next.k, next.p));
      const float* bias = last ? op.packed.bias + p * panel : nullptr;
      in_tiles<Operands::rows>(
          op, rows, p, first, [&]<int Rows>(Index row, float* c, Index c_stride, Prefetch prefetch) {
            for_count(prefetch.vectors, [&]<int Prefetched>() {
              block_tile<Operands, Rows, Prefetched>(a + row * a_stride, a_stride, w,
                                                     divide_up(depth, Operands::k_pack_size), prefetch.of(next_panel),
                                                     c, c_stride, first, bias);
            });
            if (last) activate<typename Operands::Gelu, Rows>(c, c_stride, op.activation);
          });
    }
  }
}

template <class Operands>
constexpr LinearKernels linear_kernels(const char* arithmetic) {
  return {arithmetic,
          Operands::layout,
          panel,
          mc_multiple,
          mc,
          packed_size<Operands>,
          pack_linear<Operands>,
          packed_a_size<Operands>,
          pack_a<Operands>,
          linear<Operands>};
}

}  // namespace
}  // namespace distilfast
