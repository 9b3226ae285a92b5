// The contract between the encoder and the kernels of one ISA: four operations, one table of functions.
//
//   embed           out[t] = LN(word[id[t]] + position[p[t]] (+ token_type[s[t]]))        [T] -> [T, D]
//   linear          out = act(x Wt + b)                                    [T, K] . [N, K] -> [T, N]
//   attention       out = softmax(q kt / sqrt(d)) v inside each sequence           [T, 3D] -> [T, D]
//   add_layer_norm  out = LN(x + residual), variance in a second pass              [T, D] -> [T, D]
//
// Every function computes a range (of rows, of panels of W, one head), so that the caller can split the work among
// threads. The split never changes a bit: the order of every reduction depends on K, D and the sequence's length alone.
// Below this line there are pointers, sizes and strides; no allocation, no threads, no exceptions. Strides count
// floats, sizes of packed buffers and of scratch count bytes; such a buffer begins on a cache line.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/types.h"

namespace distilfast {

struct Range {
  Index begin, end;
};

// Rows of floats, `stride` floats from one to the next.
struct ConstRows {
  const float* data;
  Index stride;
};
struct Rows {
  float* data;
  Index stride;

  operator ConstRows() const { return {data, stride}; }
};

// A typed view of a packed buffer, from element `offset` on. Where a buffer holds several types, all have 4 bytes.
namespace {
template <class T>
inline T* view(std::byte* bytes, Index offset = 0) {
  return reinterpret_cast<T*>(bytes) + offset;
}
template <class T>
inline const T* view(const std::byte* bytes, Index offset = 0) {
  return reinterpret_cast<const T*>(bytes) + offset;
}
}  // namespace

struct Embed {
  const std::int32_t* ids;          // [T]
  const std::int32_t* positions;    // [T]
  const std::int32_t* token_types;  // [T], or null: all zero
  const float* word;                // [V, D]
  const float* position;            // [P, D]
  const float* token_type;          // [types, D], or null: the model has none
  LayerNormWeights norm;
  float* out;  // [T, D]
};

// W, and for int8 what its quantisation needs: see linear/int8_format.h.
struct LinearSource {
  const float* weight;  // [N, K]
  Index n, k;
  const float* channel_shift;            // int8: [K], subtracted from x before x is quantised
  const std::int32_t* outlier_channels;  // int8: [outlier_count(K)], the channels kept in fp32, ascending
};

// The consecutive values of K that share a scale in int8, and how many channels it keeps in fp32: none in groups of
// 256, else one in 96, at least eight where there are as many. Why: linear/int8_format.h.
inline Index int8_group(Index k) { return k == 768 || k == 3072 ? 256 : 64; }
inline Index outlier_count(Index k) { return int8_group(k) == 256 ? 0 : k < 8 ? k : k < 768 ? 8 : k / 96; }

// Packed B: W and b in the order in which the kernel reads them, written by its `pack`.
struct PackedLinear {
  const std::byte* weight;
  const float* bias;  // [panels * panel], zero-padded past N
  Index n, k;
};

struct Linear {
  const float* x;  // [T, K]
  Index x_stride;
  Index rows;           // T
  std::byte* packed_a;  // x in the order in which `run` reads it, written by `pack_a`; null where `run` reads x itself
  PackedLinear packed;
  Activation activation;
  float* out;  // [T, N]
  Index out_stride;
};

struct Attention {
  const float* q;  // [rows, H, d]
  const float* k;  // [T, H, d]
  const float* v;  // [T, H, d]
  Index q_stride, kv_stride;
  Index head_size;  // d
  float scale;      // 1 / sqrt(d)
  float* out;       // [rows, H, d]
  Index out_stride;
};

// One head of one sequence: which query rows, which keys, and where its probabilities go (null: nowhere).
struct AttentionTask {
  Index head;
  Range queries;         // rows of q and out
  Range keys;            // rows of k and v: the whole sequence
  float* probabilities;  // [queries, keys]
};

struct AddLayerNorm {
  const float* x;  // [T, D]
  Index x_stride;
  const float* residual;  // [T, D], or null: LN(x)
  LayerNormWeights norm;
  float* out;  // [T, D]; may be x
};

// What `pack` writes. Kernels that write the same bytes for the same (N, K) have the same one and share files on disk.
struct PackedLayout {
  const char* operands;  // type, then whatever else the bytes depend on: "f32", "int8/rotated"
  int version;           // raised with every change of the bytes: tests/kernels/test_packing.py knows those of each
};

// `linear` in one precision.
struct LinearKernels {
  const char* arithmetic;  // "fp32 fma", "bf16 dot product": what `info` says, and nothing depends on it
  PackedLayout layout;
  Index panel;        // nr: columns of W in a panel
  Index mc_multiple;  // a range of rows begins at a multiple of it
  Index mc;           // and has at most so many rows, itself a multiple
  Index (*packed_size)(Index n, Index k);
  void (*pack)(const LinearSource&, Range panels, std::byte* packed);
  Index (*packed_a_size)(Index rows, Index k);  // 0: `run` reads x itself
  void (*pack_a)(const Linear&, Range rows);
  void (*run)(const Linear&, Range rows, Range panels);
  // Whether the numbers in a packed W that are used as addresses are inside x [rows, K]; null: there are none.
  bool (*addresses_are_valid)(Index k, const std::byte* packed) = nullptr;
};

// `attention` in one precision. Each task packs the keys and values of its head into scratch: split a head into few
// tasks.
struct AttentionKernels {
  const char* arithmetic;                         // as in LinearKernels
  Index (*scratch)(Index head_size, Index keys);  // bytes
  void (*run)(const Attention&, const AttentionTask&, std::byte* scratch);
};

struct Kernels {
  const char* isa;
  LinearKernels linear_fp32, linear_bf16x3, linear_bf16, linear_int8;
  AttentionKernels attention_fp32, attention_bf16;
  void (*embed)(const Embed&, Range rows);
  void (*add_layer_norm)(const AddLayerNorm&, Range rows);

  const LinearKernels& linear(Precision precision) const {
    switch (precision) {
      case Precision::bf16x3:
        return linear_bf16x3;
      case Precision::bf16:
        return linear_bf16;
      case Precision::int8:
        return linear_int8;
      case Precision::fp16:  // the GPU's; see common/types.h
      case Precision::fp32:
        break;
    }
    return linear_fp32;
  }
  const AttentionKernels& attention(Precision precision) const {
    return precision == Precision::fp32 || precision == Precision::bf16x3 ? attention_fp32 : attention_bf16;
  }
};

}  // namespace distilfast
