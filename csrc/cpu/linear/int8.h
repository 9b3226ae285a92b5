// int8 operands of `linear` on vector units; what they stand for: linear/int8_groups.h.
//
// The instructions multiply unsigned by signed bytes (vpdpbusd is u8 x s8), so W is stored with zero point 128. The
// compensation, 128 times the sum of q_x, is subtracted from each group's int32 accumulators; `pack_a` computes it.
//
// Packed W: the header; [panel][outlier channel][column] in fp32; then k-blocks as in vec.h, in each block panels, in
// each panel groups of 16 rows of k-packs and one row of scales.
// Packed A: [row][outlier channel] in fp32; then k-blocks, in each block rows, in each row groups of k-packs, a scale
// and the compensation. Reference: linear/ref_int8.h.
#pragma once

#include "cpu/linear/int8_groups.h"

namespace distilfast {
namespace {

// Raise the version also when linear/int8_groups.h writes other bytes.
constexpr PackedLayout int8_layout{"int8/g64", 3};

constexpr Index packed_group = (group_k_packs + 1) * panel;  // elements of 4 bytes
// Groups of a k-block: those of a panel fit L1 beside the rows of a tile, and K = 768 is two whole blocks.
constexpr Index block_groups = 6;
// int32 and fp32 accumulators, a row of B and a broadcast fill 32 registers: 2 x 4 x 3 + 3 + 1. With 16 registers the
// fp32 accumulators, which are needed once a group, spill to L1.
constexpr int int8_tile_rows = 4;

// Where everything of one packed W lies, in elements of 4 bytes.
struct Int8Layout : Int8Header {
  Index columns;

  Int8Layout(Index n, Index k) : Int8Header(k), columns(round_up(n, panel)) {}

  Index outlier_weights(Index p) const { return Int8Header::size() + p * outliers * panel; }
  // The k-block that begins with group `g`.
  Index block(Index g, Index p) const {
    return outlier_weights(columns / panel) + g * (group_k_packs + 1) * columns + p * in_block(g) * packed_group;
  }
  Index in_block(Index g) const { return smaller(groups - g, block_groups); }
  Index size() const { return block(groups, 0); }
};

constexpr int weight_zero_point = 128;

// The product of a k-pack of x with one of W: four values of K at once, or two and two.
#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
struct Int8Dot {
  using A = KPack;
  using B = KPack;
  using Accumulator = IntVec;
  static constexpr Index a_k_pack = 1;  // elements of packed A for a k-pack
  static constexpr int products = 1;
  static void widen(KPack*) {}
  static IntVec column(const KPack* k_pack, int) { return IntVec::load(k_pack); }
  static IntVec row(const KPack* a, Index k_pack, int) { return IntVec::all(static_cast<int>(a[k_pack])); }
  static IntVec multiply_add(IntVec row, IntVec column, IntVec accumulator) {
    return add_int8_products(column, row, accumulator);
  }
};
#else
// For machines without VNNI: the even and the odd bytes of a k-pack are widened to int16 and multiplied by vpmaddwd.
// (vpmaddubsw, which multiplies bytes, saturates its sums.)
struct Int8Widened {
  using A = KPack;
  using B = KPack;
  using Accumulator = IntVec;
  static constexpr Index a_k_pack = 2;
  static constexpr int products = 2;
  // Widens a group in place, from 16 k-packs to twice as many words; from the end, so that each is read before it is
  // overwritten.
  static void widen(KPack* words) {
    for (Index k_pack = group_k_packs - 1; k_pack >= 0; --k_pack) {
      const KPack four = words[k_pack];
      words[2 * k_pack] = int16_pair(four, four >> 16);
      words[2 * k_pack + 1] = int16_pair(four >> 8, four >> 24);
    }
  }
  // The lowest, signed, byte of each.
  static KPack int16_pair(KPack first, KPack second) {
    const short both[] = {static_cast<signed char>(first), static_cast<signed char>(second)};
    return __builtin_bit_cast(KPack, both);
  }
  static IntVec column(const KPack* k_pack, int product) {
    return product == 0 ? even_bytes_to_int16(IntVec::load(k_pack)) : odd_bytes_to_int16(IntVec::load(k_pack));
  }
  static IntVec row(const KPack* a, Index k_pack, int product) {
    return IntVec::all(static_cast<int>(a[2 * k_pack + product]));
  }
  static IntVec multiply_add(IntVec row, IntVec column, IntVec accumulator) {
    return add_int16_products(row, column, accumulator);
  }
};
#endif

template <class Dot>
constexpr Index a_k_packs = group_k_packs * Dot::a_k_pack;
template <class Dot>
constexpr Index a_group = a_k_packs<Dot> + 2;  // elements of packed A for a group of a row

// Elements from one row of a k-block of packed A to the next; the last block has room for as many groups as any other.
template <class Dot>
constexpr Index a_row_stride = block_groups * a_group<Dot>;

template <class Dot>
inline Index packed_a_block(const Int8Layout& at, Index rows, Index g, Index row) {
  return rows * (at.outliers + g * a_group<Dot>)+row * a_row_stride<Dot>;
}

// What follows the k-packs of a group of a row in packed A.
struct RowQuant {
  float scale;
  std::int32_t compensation;
};

inline Index int8_packed_size(Index n, Index k) { return Int8Layout(n, k).size() * Index{sizeof(KPack)}; }

template <class Dot>
Index int8_packed_a_size(Index rows, Index k) {
  const Index row_elements = outlier_count(k) + divide_up(k, group * block_groups) * a_row_stride<Dot>;
  return rows * row_elements * Index{sizeof(KPack)};
}

// Adds the zero point, 128, to four signed bytes.
inline KPack with_zero_point(KPack k_pack) { return k_pack ^ 0x80808080u; }

inline void pack_int8(const LinearSource& source, Range panels, std::byte* packed) {
  const Int8Layout at(source.n, source.k);
  if (panels.begin == 0) pack_header(source, at, packed);
  for (Index p = panels.begin; p < panels.end; ++p)
    for (Index j = 0; j < panel; ++j) {
      float* outlier_weights = view<float>(packed, at.outlier_weights(p) + j);
      const auto take = [&](Index g, GroupQuant quant, const KPack* k_packs) {
        const Index first = g / block_groups * block_groups;
        const Index to = at.block(first, p) + (g - first) * packed_group + j;
        for (Index i = 0; i < group_k_packs; ++i) *view<KPack>(packed, to + i * panel) = with_zero_point(k_packs[i]);
        *view<float>(packed, to + group_k_packs * panel) = quant.scale;
      };
      quantize_column(source, at, p * panel + j, take, [&](Index i, float w) { outlier_weights[i * panel] = w; });
    }
}

template <class Dot>
void pack_int8_a(const Linear& op, Range rows) {
  const Int8Layout at(op.packed.n, op.packed.k);
  for (Index row = rows.begin; row < rows.end; ++row) {
    float* outlier_x = view<float>(op.packed_a, row * at.outliers);
    const auto place = [&](Index g) {
      const Index first = g / block_groups * block_groups;
      return view<KPack>(op.packed_a, packed_a_block<Dot>(at, op.rows, first, row) + (g - first) * a_group<Dot>);
    };
    const auto take = [&](Index g, GroupQuant quant) {
      KPack* to = place(g);
      Dot::widen(to);
      *reinterpret_cast<RowQuant*>(to + a_k_packs<Dot>) = {quant.scale, weight_zero_point * quant.row_sum};
    };
    quantize_row(op, at, row, place, take, [&](Index i, float x) { outlier_x[i] = x; });
  }
}

// What the tiles of one panel of W share in one k-block.
struct Int8Panel {
  const float* outlier_weights;  // null after the first k-block
  Index outliers;
  const KPack* groups;
  Index count;
  const float* bias;  // null before the last k-block
};

// total += the dequantised accumulators of a group; `x` and `w` point past the group's k-packs.
template <class Dot, int Rows>
inline __attribute__((always_inline)) void add_dequantized(Tile<Rows, panel_vectors, Dot>& group, const KPack* x,
                                                           const KPack* w, Tile<Rows, panel_vectors>& total) {
  Vec scale[panel_vectors];
#pragma GCC unroll 4
  for (int j = 0; j < panel_vectors; ++j) scale[j] = Vec::load(reinterpret_cast<const float*>(w) + j * Vec::width);
  group.each([&](int i, int j, IntVec accumulator) {
    const RowQuant& quant = *reinterpret_cast<const RowQuant*>(x + i * a_row_stride<Dot>);
    const IntVec compensation = IntVec::all(quant.compensation);
    total.accumulators[i][j] =
        fma(from_int32(accumulator - compensation), Vec::all(quant.scale) * scale[j], total.accumulators[i][j]);
  });
}

// One k-block of one tile. The accumulators begin with the outlier product, or after the first k-block with c; then
// come the groups, and in the last k-block the bias. Not inlined: the accumulators fill the registers, and values that
// a caller keeps in some would spill them.
template <class Dot, int Rows, int Prefetched>
__attribute__((noinline)) void int8_tile(const Int8Panel& w, const KPack* next_panel, const float* outlier_x,
                                         const KPack* x, float* c, Index c_stride) {
  Tile<Rows, panel_vectors> total;
  if (w.outlier_weights)
    total.multiply(outlier_x, w.outliers, w.outlier_weights, w.outliers);
  else
    total.each([&](int i, int j, Vec& accumulator) { accumulator = Vec::load(c + i * c_stride + j * Vec::width); });
  const KPack* columns = w.groups;
  for (Index g = 0; g < w.count; ++g, x += a_group<Dot>) {
    Tile<Rows, panel_vectors, Dot> group;
    group.clear();
#pragma GCC unroll 4
    for (int k_pack = 0; k_pack < group_k_packs; ++k_pack, columns += panel, next_panel += panel) {
      prefetch_vectors<Prefetched>(next_panel);
      group.add_k_pack(x, a_row_stride<Dot>, k_pack, columns);
    }
    prefetch_vectors<Prefetched>(next_panel);
    add_dequantized(group, x + a_k_packs<Dot>, columns, total);
    columns += panel, next_panel += panel;
  }
  if (w.bias)
    total.each([&](int, int j, Vec& accumulator) { accumulator = accumulator + Vec::load(w.bias + j * Vec::width); });
  total.each([&](int i, int j, Vec accumulator) { accumulator.store(c + i * c_stride + j * Vec::width); });
}

template <class Dot>
void int8_linear(const Linear& op, Range rows, Range panels) {
  const Int8Layout at(op.packed.n, op.packed.k);
  const std::byte* weight = op.packed.weight;
  for (Index g = 0; g < at.groups; g += block_groups) {
    const bool first = g == 0, last = g + block_groups >= at.groups;
    const KPack* x = view<KPack>(op.packed_a, packed_a_block<Dot>(at, op.rows, g, 0));
    for (Index p = panels.begin; p < panels.end; ++p) {
      const Int8Panel w{first ? view<float>(weight, at.outlier_weights(p)) : nullptr, at.outliers,
                        view<KPack>(weight, at.block(g, p)), at.in_block(g),
                        last ? op.packed.bias + p * panel : nullptr};
      const PanelIndex next = next_panel_index(op, panels, g * group, p, (g + block_groups) * group);
      const KPack* next_panel = view<KPack>(weight, at.block(next.k / group, next.p));
      in_tiles<int8_tile_rows>(
          op, rows, p, first, [&]<int Rows>(Index row, float* c, Index c_stride, Prefetch prefetch) {
            for_count(prefetch.vectors, [&]<int Prefetched>() {
              int8_tile<Dot, Rows, Prefetched>(w, prefetch.of(next_panel), view<float>(op.packed_a, row * at.outliers),
                                               x + row * a_row_stride<Dot>, c, c_stride);
            });
            if (last) activate<CoarseGelu, Rows>(c, c_stride, op.activation);
          });
    }
  }
}

template <class Dot>
constexpr LinearKernels int8_linear_kernels(const char* arithmetic) {
  return {arithmetic,
          int8_layout,
          panel,
          mc_multiple,
          mc,
          int8_packed_size,
          pack_int8,
          int8_packed_a_size<Dot>,
          pack_int8_a<Dot>,
          int8_linear<Dot>,
          outlier_channels_are_valid};
}

}  // namespace
}  // namespace distilfast
