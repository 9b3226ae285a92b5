// int8 operands of `linear` on vector units; what they stand for: linear/int8_format.h.
//
// The instructions of x86 multiply unsigned by signed bytes (vpdpbusd is u8 x s8), so W is stored with zero point 128.
// The compensation, -128 times the sum of q_x, initialises each group's int32 accumulators; `pack_a` computes it. NEON
// multiplies signed bytes, and W has no zero point there.
//
// Packed W: the header; [panel][outlier channel][column] in fp32; then k-blocks as in vec.h, in each block panels, in
// each panel groups of k-packs and one row of scales.
// Packed A: [row][outlier channel] in fp32; then k-blocks, in each block rows, in each row groups of k-packs, a scale
// and the compensation. Reference: linear/ref_int8.h.
#pragma once

#include "cpu/linear/int8_groups.h"

namespace distilfast {
namespace {

// Values of K in a k-block, one group or four: those of a panel fit L1 beside the rows of a tile.
constexpr Index int8_block = 256;
// int32 and fp32 accumulators, a row of B and a broadcast fill 32 registers: 2 x 4 x 3 + 3 + 1. With 16 registers the
// fp32 accumulators, which are needed once a group, spill to L1. Eight rows, their fp32 sums kept in c alone, took a
// tenth longer on Cascade Lake, even with c prefetched.
constexpr int int8_tile_rows = 4;

struct Int8Blocks : Int8Header {
  Index block_groups;  // of a k-block

  explicit Int8Blocks(Index k) : Int8Header(k), block_groups(int8_block / group) {}
};

// Where everything of one packed W lies, in elements of 4 bytes.
struct Int8Layout : Int8Blocks {
  Index columns;

  Int8Layout(Index n, Index k) : Int8Blocks(k), columns(round_up(n, panel)) {}

  Index in_block(Index g) const { return smaller(groups - g, block_groups); }
  Index packed_group() const { return (k_packs() + 1) * panel; }  // of a panel
  Index outlier_weights(Index p) const { return Int8Header::size() + p * outliers * panel; }
  // Panel `p` of the k-block that begins with group `g`.
  Index block(Index g, Index p) const {
    return outlier_weights(columns / panel) + (g * columns / panel + p * in_block(g)) * packed_group();
  }
  Index size() const { return block(groups, 0); }
};

// What all operand types here share. Raise a layout's version also when linear/int8_groups.h writes other bytes.
struct Int8Operands {
  using A = KPack;
  using B = KPack;
  using Accumulator = IntVec;
  static constexpr Index a_k_pack = 1;      // elements of packed A for a k-pack
  static constexpr Index k_pack_words = 1;  // k-packs that are multiplied at once
  static constexpr int products = 1;
  static constexpr bool by_lane = false;
  static void widen(KPack*, Index) {}
  // Where in a group of a panel the k-pack `k_pack` of column `j` lies.
  static Index place(Index k_pack, Index j) { return k_pack * panel + j; }
};

// The product of a k-pack of x with one of W: four values of K at once, or two and two.
#if defined(__ARM_NEON)
struct SignedInt8 : Int8Operands {
  static constexpr PackedLayout layout{"int8/rotated/signed", 1};
  static constexpr int weight_zero_point = 0;
};

// For processors without sdot: products of bytes in int16, added in pairs and widened.
struct Int8Pairs : SignedInt8 {
  static IntVec column(const KPack* k_pack, int) { return IntVec::load(k_pack); }
  static IntVec row(const KPack* a, Index k_pack, int) { return IntVec::all(static_cast<int>(a[k_pack])); }
  static IntVec multiply_add(IntVec row, IntVec column, IntVec accumulator) {
    return add_int8_products(row, column, accumulator);
  }
};
#if defined(__ARM_FEATURE_DOTPROD)
struct Int8Dot : SignedInt8 {
  static constexpr bool by_lane = true;
  static IntVec column(const KPack* k_pack, int) { return IntVec::load(k_pack); }
  static IntVec row_lanes(const KPack* a) { return IntVec::load(a); }
  template <int lane>
  static IntVec multiply_add_lane(IntVec row, IntVec column, IntVec accumulator) {
    return add_int8_products_lane<lane>(row, column, accumulator);
  }
};
#endif
#else
struct UnsignedInt8 : Int8Operands {
  static constexpr PackedLayout layout{"int8/rotated", 2};
  static constexpr int weight_zero_point = 128;
};
#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
struct Int8Dot : UnsignedInt8 {
  static IntVec column(const KPack* k_pack, int) { return IntVec::load(k_pack); }
  static IntVec row(const KPack* a, Index k_pack, int) { return IntVec::all(static_cast<int>(a[k_pack])); }
  static IntVec multiply_add(IntVec row, IntVec column, IntVec accumulator) {
    return add_int8_products(column, row, accumulator);
  }
};
#else
// For machines without VNNI: the even and the odd bytes of a k-pack are widened to int16 and multiplied by vpmaddwd.
// (vpmaddubsw, which multiplies bytes, saturates its sums.)
struct Int8Widened : UnsignedInt8 {
  static constexpr Index a_k_pack = 2;
  static constexpr int products = 2;
  // Widens k-packs in place to twice as many words; from the end, so that each is read before it is overwritten.
  static void widen(KPack* words, Index k_packs) {
    for (Index k_pack = k_packs - 1; k_pack >= 0; --k_pack) {
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
#endif

// What follows the k-packs of a group of a row in packed A.
struct RowQuant {
  float scale;
  std::int32_t compensation;
};

// Where everything of packed A lies, in elements of 4 bytes.
template <class Dot>
struct Int8LayoutA : Int8Blocks {
  explicit Int8LayoutA(Index k) : Int8Blocks(k) {}

  Index group_k_packs() const { return k_packs() * Dot::a_k_pack; }
  Index group_size() const { return group_k_packs() + Index{sizeof(RowQuant) / sizeof(KPack)}; }
  // From one row of a k-block to the next; the last block has room for as many groups as any other.
  Index row_stride() const { return block_groups * group_size(); }
  Index blocks() const { return divide_up(depth(), int8_block); }
  Index at(Index rows, Index g, Index row) const {
    const Index block = g * group / int8_block;
    return rows * outliers + (block * rows + row) * row_stride() + (g - block * block_groups) * group_size();
  }
  Index size(Index rows) const { return rows * (outliers + blocks() * row_stride()); }
};

inline Index int8_packed_size(Index n, Index k) { return Int8Layout(n, k).size() * Index{sizeof(KPack)}; }

template <class Dot>
Index int8_packed_a_size(Index rows, Index k) {
  return Int8LayoutA<Dot>(k).size(rows) * Index{sizeof(KPack)};
}

// Adds the zero point, 128 or none, to four signed bytes.
template <class Dot>
inline KPack with_zero_point(KPack k_pack) {
  return Dot::weight_zero_point ? k_pack ^ 0x80808080u : k_pack;
}

template <class Dot>
void pack_int8(const LinearSource& source, Range panels, std::byte* packed) {
  const Int8Layout at(source.n, source.k);
  if (panels.begin == 0) pack_header(source, at, packed);
  for (Index p = panels.begin; p < panels.end; ++p)
    for (Index j = 0; j < panel; ++j) {
      float* outlier_weights = view<float>(packed, at.outlier_weights(p) + j);
      const auto take = [&](Index g, GroupQuant quant, const KPack* k_packs) {
        const Index first = g / at.block_groups * at.block_groups;
        const Index to = at.block(first, p) + (g - first) * at.packed_group();
        for (Index i = 0; i < at.k_packs(); ++i)
          *view<KPack>(packed, to + Dot::place(i, j)) = with_zero_point<Dot>(k_packs[i]);
        *view<float>(packed, to + at.k_packs() * panel + j) = quant.scale;
      };
      quantize_column(source, at, p * panel + j, take, [&](Index i, float w) { outlier_weights[i * panel] = w; });
    }
}

template <class Dot>
void pack_int8_a(const Linear& op, Range rows) {
  const Int8LayoutA<Dot> at(op.packed.k);
  for (Index row = rows.begin; row < rows.end; ++row) {
    float* outlier_x = view<float>(op.packed_a, row * at.outliers);
    const auto group_of = [&](Index g) { return view<KPack>(op.packed_a, at.at(op.rows, g, row)); };
    const auto place = [&](Index g) { return [to = group_of(g)](int k_pack) { return to + k_pack; }; };
    const auto take = [&](Index g, GroupQuant quant) {
      KPack* to = group_of(g);
      Dot::widen(to, at.k_packs());
      *reinterpret_cast<RowQuant*>(to + at.group_k_packs()) = {quant.scale, -Dot::weight_zero_point * quant.row_sum};
    };
    quantize_row(op, at, row, place, take, [&](Index i, float x) { outlier_x[i] = x; });
  }
}

// What the tiles of one panel of W share in one k-block.
struct Int8Panel {
  const float* outlier_weights;
  Index outliers;
  const KPack* groups;
  Index count;        // of groups
  Index k_packs;      // of a group
  Index x_stride;     // of packed A
  Index x_k_packs;    // of a group of packed A
  bool first;         // k-block
  const float* bias;  // null before the last k-block
};

// total += the dequantised accumulators of a group; `x` and `w` point past the group's k-packs.
template <class Dot, int Rows>
inline __attribute__((always_inline)) void add_dequantized(Tile<Rows, panel_vectors, Dot>& group, const KPack* x,
                                                           Index x_stride, const KPack* w,
                                                           Tile<Rows, panel_vectors>& total) {
  Vec scale[panel_vectors];
#pragma GCC unroll 4
  for (int j = 0; j < panel_vectors; ++j) scale[j] = Vec::load(reinterpret_cast<const float*>(w) + j * Vec::width);
  group.each([&](int i, int j, IntVec accumulator) {
    const Vec row_scale = Vec::all(reinterpret_cast<const RowQuant*>(x + i * x_stride)->scale);
    total.accumulators[i][j] = fma(from_int32(accumulator), row_scale * scale[j], total.accumulators[i][j]);
  });
}

// One k-block of one tile. The accumulators begin with the outlier product, or after the first k-block with c; then
// come the groups, and in the last k-block the bias. Not inlined: the accumulators fill the registers, and values that
// a caller keeps in some would spill them.
template <class Dot, int Rows, int Prefetched>
__attribute__((noinline)) void int8_tile(const Int8Panel& w, const KPack* next_panel, const float* outlier_x,
                                         const KPack* x, float* c, Index c_stride) {
  const Index k_packs = w.k_packs, x_stride = w.x_stride;
  Tile<Rows, panel_vectors> total;
  if (w.first)
    total.multiply(outlier_x, w.outliers, w.outlier_weights, w.outliers);
  else
    total.each([&](int i, int j, Vec& accumulator) { accumulator = Vec::load(c + i * c_stride + j * Vec::width); });
  const KPack* columns = w.groups;
  // The rows of c below, which the next tile reads or writes, lie in L2 or beyond: without this it would wait for them.
  total.each([&](int i, int j, Vec) { __builtin_prefetch(c + (Rows + i) * c_stride + j * Vec::width, 0, 3); });
  for (Index g = 0; g < w.count; ++g) {
    const KPack* quants = x + w.x_k_packs;
    Tile<Rows, panel_vectors, Dot> group;
    if constexpr (Dot::weight_zero_point == 0)
      group.clear();
    else
      group.each([&](int i, int, IntVec& accumulator) {
        accumulator = IntVec::all(reinterpret_cast<const RowQuant*>(quants + i * x_stride)->compensation);
      });
    for (Index k_pack = 0; k_pack < k_packs; k_pack += 4) {
      if constexpr (Dot::by_lane) group.add_lanes(x, x_stride, k_pack, columns);
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i, columns += panel, next_panel += panel) {
        prefetch_vectors<Prefetched>(next_panel);
        if constexpr (!Dot::by_lane)
          if (i % Dot::k_pack_words == 0) group.add_k_pack(x, x_stride, k_pack + i, columns);
      }
    }
    prefetch_vectors<Prefetched>(next_panel);
    add_dequantized(group, quants, x_stride, columns, total);
    columns += panel, next_panel += panel;
    x = quants + sizeof(RowQuant) / sizeof(KPack);
  }
  if (w.bias)
    total.each([&](int, int j, Vec& accumulator) { accumulator = accumulator + Vec::load(w.bias + j * Vec::width); });
  total.each([&](int i, int j, Vec accumulator) { accumulator.store(c + i * c_stride + j * Vec::width); });
}

template <class Dot>
void int8_linear(const Linear& op, Range rows, Range panels) {
  const Int8Layout at(op.packed.n, op.packed.k);
  const Int8LayoutA<Dot> a(op.packed.k);
  const std::byte* weight = op.packed.weight;
  const Index x_stride = a.row_stride();
  for (Index g = 0; g < at.groups; g += at.block_groups) {
    const bool first = g == 0, last = g + at.block_groups >= at.groups;
    const KPack* x = view<KPack>(op.packed_a, a.at(op.rows, g, 0));
    for (Index p = panels.begin; p < panels.end; ++p) {
      const Int8Panel w{view<float>(weight, at.outlier_weights(p)),
                        at.outliers,
                        view<KPack>(weight, at.block(g, p)),
                        at.in_block(g),
                        at.k_packs(),
                        x_stride,
                        a.group_k_packs(),
                        first,
                        last ? op.packed.bias + p * panel : nullptr};
      const PanelIndex next = next_panel_index(op, panels, g * at.group, p, (g + at.block_groups) * at.group);
      const KPack* next_panel = view<KPack>(weight, at.block(next.k / at.group, next.p));
      in_tiles<int8_tile_rows>(
          op, rows, p, first, [&]<int Rows>(Index row, float* c, Index c_stride, Prefetch prefetch) {
            for_count(prefetch.vectors, [&]<int Prefetched>() {
              int8_tile<Dot, Rows, Prefetched>(w, prefetch.of(next_panel), view<float>(op.packed_a, row * at.outliers),
                                               x + row * x_stride, c, c_stride);
            });
            if (last) activate<CoarseGelu, Rows>(c, c_stride, op.activation);
          });
    }
  }
}

template <class Dot>
constexpr LinearKernels int8_linear_kernels(const char* arithmetic) {
  return {arithmetic,
          Dot::layout,
          panel,
          mc_multiple,
          mc,
          int8_packed_size,
          pack_int8<Dot>,
          int8_packed_a_size<Dot>,
          pack_int8_a<Dot>,
          int8_linear<Dot>,
          outlier_channels_are_valid};
}

}  // namespace
}  // namespace distilfast
