// The contract between the encoder and the kernels of one ISA: four operations, one table of functions.
//
//   embed           out[t] = LN(word[id[t]] + position[p[t]] (+ token_type[s[t]]))        [T] -> [T, D]
//   linear          out = act(x Wt + b)                                    [T, K] . [N, K] -> [T, N]
//   attention       out = softmax(q kt / sqrt(d)) v inside each sequence           [T, 3D] -> [T, D]
//   add_layer_norm  out = LN(x + residual), variance in a second pass              [T, D] -> [T, D]
//
// Every function does a part of the work (rows, panels, one head) so that the caller can share it out; the parts never
// change a bit of the result: the order of every sum is fixed by the sizes K, D and the sequence's length alone.
// Below this line there are pointers, sizes and strides (in floats); no allocation, no threads, no exceptions.
#pragma once

#include <cstdint>

#include "common/types.h"

namespace distilfast {

struct Range {
  Index begin, end;
};

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

// W and what else `pack` reads.
struct LinearSource {
  const float* weight;  // [N, K]
  Index n, k;
  const float* centre;       // int8: [K], what is taken off x before it is rounded
  const std::int32_t* wide;  // int8: [wide_channels(K)], the channels of x that are not rounded, ascending
};

// int8 leaves so many channels as they are: one in 96, and eight at least where there are as many.
inline Index wide_channels(Index k) { return k < 8 ? k : k < 768 ? 8 : k / 96; }

// W and b in the order in which a `linear` reads them, made by its `pack`.
struct PackedLinear {
  const float* weight;  // fp32, or what `pack` has put into the same 4 bytes
  const float* bias;    // [panels * panel], zeros behind N
  Index n, k;
};

struct Linear {
  const float* x;  // [T, K]
  Index x_stride;
  Index rows;       // T
  float* operands;  // x as `run` reads it, left there by `make_operands`; null where that is x itself
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
struct AttentionPart {
  Index head;
  Range queries;         // rows of q and out
  Range keys;            // rows of k and v: the whole sequence
  float* probabilities;  // [queries, keys]
};

struct AddLayerNorm {
  const float* x;         // [T, D]
  const float* residual;  // [T, D], or null: LN(x)
  LayerNormWeights norm;
  float* out;  // [T, D]; may be x
};

// `linear` in one precision. Sizes are in floats.
struct LinearKernels {
  const char* arithmetic;  // "fp32 fma", "bf16 dot product": what `info` says
  int packing;             // version of what `pack` writes: packed weights on disk are read by the same one only
  Index panel;             // columns of W that are computed at a time
  Index part_step;         // a part of the rows begins at a multiple of it
  Index part_rows;         // and has so many at most, itself a multiple
  Index (*packed_size)(Index n, Index k);
  void (*pack)(const LinearSource&, Range panels, float* packed);
  Index (*operands_size)(Index rows, Index k);  // 0: x is read where it is
  void (*make_operands)(const Linear&, Range rows);
  void (*run)(const Linear&, Range rows, Range panels);
};

// `attention` in one precision. A part copies the keys and values of its head into scratch, in the order in which they
// are read: cut a head into few parts.
struct AttentionKernels {
  const char* arithmetic;                         // as in LinearKernels
  Index (*scratch)(Index head_size, Index keys);  // floats
  void (*run)(const Attention&, const AttentionPart&, float* scratch);
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
