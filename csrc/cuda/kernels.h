// The contract between the encoder and the kernels: four operations, a plain struct of pointers and sizes for each.
//
//   embed           out[t] = LN(word[id[t]] + position[p[t]] (+ token_type[s[t]]))        [T] -> [T, D]
//   linear          out = act(x Wt + b)                                    [T, K] . [N, K] -> [T, N]
//   attention       out = softmax(q kt / sqrt(d)) v inside each sequence           [T, 3D] -> [T, D]
//   add_layer_norm  out = LN(x + residual), variance in a second pass              [T, D] -> [T, D]
//
// and of two of them one kernel, linear_add_layer_norm.
//
// All pointers point to device memory. How many rows there are is read on the device, so that a graph which was made
// for `most_rows` serves every batch with no more of them. `T` is the element of the precision: what matrix
// instructions read and what travels between linears. Sums, LayerNorm and the residual stream are fp32 in all of them.
// Each operation only enqueues: nothing here allocates or waits. `load_<op>` brings to the device every kernel that the
// operation launches in a precision, so that its first launch may be a graph's.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/types.h"
#include "cuda/runtime.h"

namespace distilfast::cuda {

// Of an element of x and of the outputs; int8's are bf16, see Linear.
constexpr std::size_t element_size(Precision precision) { return precision == Precision::fp32 ? 4 : 2; }

// Rows of T begin at multiples of 16 bytes, in every precision.
constexpr int row_stride(int columns) { return (columns + 7) / 8 * 8; }

// Null, or why a width cannot be had.
const char* layer_norm_misfit(int width);

// What the kernels read of a batch.
struct BatchInputs {
  std::int32_t *tokens, *sequences, *rows;  // how many
  std::int32_t* faults;                     // what take_inputs found: 0 in a batch that the host has checked
  std::int32_t *ids, *positions, *token_types, *cu_seqlens, *gather;
};

// Integers of a caller's.
struct Integers {
  const void* data;  // null: there are none
  bool wide;         // 64 bits and not 32
};

enum class RowsAre { first, all, given };  // of each sequence; of the batch; in an array

// Bits of `faults`.
constexpr std::uint32_t fault_ids = 1, fault_cu_seqlens = 2, fault_token_types = 4, fault_rows = 8,
                        fault_positions = 16;

// take_inputs     a batch in a caller's memory -> BatchInputs; see take_inputs.cuh for what becomes of a wrong one.
struct TakeInputs {
  Integers ids;          // [T]
  Integers cu_seqlens;   // [B + 1]
  Integers token_types;  // [T], or null
  Integers rows;         // [R], where they are given
  RowsAre rows_are;
  int tokens, sequences, num_rows;   // T, B, R
  int words, most_positions, types;  // of the model's tables
  BatchInputs to;
};
void take_inputs(const TakeInputs& op, Stream& stream);
void load_take_inputs();

struct Embed {
  Precision precision;
  const std::int32_t* rows;         // how many tokens there are
  const std::int32_t* ids;          // [T]; a negative one makes a row of NaN
  const std::int32_t* positions;    // [T]
  const std::int32_t* token_types;  // [T]
  const float* word;                // [V, D]
  const float* position;            // [P, D]
  const float* token_type;          // [types, D], or null: the model has none
  LayerNormWeights norm;
  float* out;     // [T, D]
  void* out_low;  // T [T, row_stride(D)], or null
};
void embed(const Embed& op, int most_rows, Stream& stream);
void load_embed(Precision precision);

// W in the order in which `linear` reads it, made by `pack_linear`.
struct PackedLinear {
  const void* weight;  // packed_linear_bytes
  const float* bias;   // [N]
  int n, k;
};
std::size_t packed_linear_bytes(Precision precision, int n, int k);
void pack_linear(Precision precision, const float* weight, int n, int k, void* packed, Stream& stream);  // [N, K]

// int8 is two linears. Up to so many rows a linear is a stream of W, and only W is of 8 bits: x is bf16. Of more rows
// the products are what takes time: x is rounded too, by make_operands, and its `packed` is pack_int8's.
constexpr int most_weight_only_rows = 64;

// W for operands, with what make_operands has to know of it. `centre` [K]: is taken off x, so that the bias is the
// linear's own plus centre Wt. `wide` [wide_channels(k)]: channels that are not rounded, ascending. See
// distilfast/quantize.py.
std::size_t packed_int8_bytes(int n, int k);
void pack_int8(const float* weight, const float* centre, const std::int32_t* wide, int n, int k, void* packed,
               Stream& stream);
int wide_channels(int k);

// make_operands   rows of x -> what an int8 linear with the same most_rows reads; see int8_groups.cuh.
struct MakeOperands {
  const std::int32_t* rows;    // how many there are to be
  const std::int32_t* gather;  // [rows]: which row of x each comes from; or null: its own
  const void* x;               // bf16 [*, row_stride(K)]
  PackedLinear packed;         // the linear's
  void* operands;              // operand_bytes
};
int operand_row_bytes(int k);                     // without the scales, which are behind all rows
std::size_t operand_bytes(int k, int most_rows);  // of all
void make_operands(const MakeOperands& op, int most_rows, Stream& stream);
void load_make_operands();

// With splits > 1 the depth K is cut into as many parts, each of which leaves its own sum, without bias and activation,
// in a plane of `out`; `add_layer_norm` adds them up in order.
struct Linear {
  Precision precision;
  const std::int32_t* rows;    // how many rows out has
  const std::int32_t* gather;  // [rows]: which row of x each comes from; or null: its own, as with operands
  const void* x;               // T [*, row_stride(K)], or operands
  PackedLinear packed;
  Activation activation;
  int splits;
  Index plane;    // floats between the splits' planes of out
  float* out;     // [splits, *, N], or null
  void* out_low;  // T [*, row_stride(N)], or null; only with one split
};
void linear(const Linear& op, int most_rows, Stream& stream);
void load_linear(Precision precision);
// What `linear` does for int8 and more than most_weight_only_rows.
void linear_int8(const Linear& op, int most_rows, Stream& stream);
void load_linear_int8();
int linear_int8_splits(int n, int k, int most_rows);
// The splits with which a linear fills the device, for the encoder to choose where add_layer_norm follows.
int linear_splits(Precision precision, int n, int k, int most_rows);

struct Attention {
  Precision precision;
  const std::int32_t* sequences;   // B: how many there are
  const std::int32_t* cu_seqlens;  // [B + 1]
  const void* qkv;                 // T [T, row_stride(3D)]
  int heads, head_size;            // H, d
  void* out;                       // T [T, row_stride(D)]
  // [B]: where each sequence's [H, L, L] begin in `probabilities`; or both null. Only a trace asks for them.
  const std::int64_t* probability_begins;
  float* probabilities;
};
// Null, or why a head size cannot be had.
const char* attention_misfit(int head_size);
void attention(const Attention& op, int most_rows, Stream& stream);
void load_attention(Precision precision, int head_size);

struct AddLayerNorm {
  Precision precision;
  const std::int32_t* rows;    // how many rows out has
  const std::int32_t* gather;  // [rows]: which row of residual each belongs to; or null: its own
  const float* x;              // [splits, *, D]
  int splits;
  Index plane;            // floats between the planes of x
  const float* bias;      // [D], what a split linear left to add; or null
  const float* residual;  // [*, D], or null: LN(x)
  LayerNormWeights norm;
  float* sum;     // [*, D], x with its splits and bias added up, for a trace; or null
  float* out;     // [*, D]; may be x or, where nothing is gathered, residual
  void* out_low;  // T [*, row_stride(D)], or null
};
void add_layer_norm(const AddLayerNorm& op, int most_rows, Stream& stream);
void load_add_layer_norm(Precision precision);

// out = LN(x Wt + b + residual) without the sum's way through memory; see linear_add_layer_norm.cuh.
struct LinearAddLayerNorm {
  Linear linear;                // one split, no activation; its out and out_low are not used
  AddLayerNorm add_layer_norm;  // with a residual and out_low; its x, splits, plane and bias are not used
};
// Null, or why rows so wide cannot be had: then it takes the two kernels.
const char* linear_add_layer_norm_misfit(Precision precision, int width);
void linear_add_layer_norm(const LinearAddLayerNorm& op, int most_rows, Stream& stream);
void load_linear_add_layer_norm(Precision precision);

}  // namespace distilfast::cuda
