// The contract between the encoder and the kernels: four operations, a plain struct of pointers and sizes for each.
//
//   embed           out[t] = LN(word[id[t]] + position[p[t]] (+ token_type[s[t]]))        [T] -> [T, D]
//   linear          out = act(x Wt + b)                                    [T, K] . [N, K] -> [T, N]
//   attention       out = softmax(q kt / sqrt(d)) v inside each sequence           [T, 3D] -> [T, D]
//   add_layer_norm  out = LN(x + residual), variance in a second pass              [T, D] -> [T, D]
//
// and of two of them one kernel, linear_add_layer_norm.
//
// All pointers point to device memory. The number of rows is read on the device, so that a graph captured for
// `bucket_rows` serves every batch with no more of them. `T` is the element type of the precision: what matrix
// instructions read and what linears pass on. Accumulators, LayerNorm and the residual stream are fp32 in all of them.
// Each operation only enqueues: none allocates or waits. `load_<op>` loads every kernel that the operation launches in
// a precision, since a kernel must not be loaded for the first time while a graph is captured.
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

// Null, or why a width is not supported.
const char* layer_norm_unsupported_reason(int width);

// What the kernels read of a batch.
struct BatchInputs {
  std::int32_t *tokens, *sequences, *rows;  // how many
  std::int32_t* faults;                     // set by unpack_device_batch; 0 in a batch that the host has checked
  std::int32_t *ids, *positions, *token_types, *cu_seqlens, *gather;
};

// A caller's array of integers.
struct Integers {
  const void* data;  // null: no array
  bool is_int64;     // or int32
};

enum class RowsAre { first, all, given };  // of each sequence; of the batch; in an array

// Bits of `faults`.
constexpr std::uint32_t fault_ids = 1, fault_cu_seqlens = 2, fault_token_types = 4, fault_rows = 8,
                        fault_positions = 16;

// unpack_device_batch  a batch in a caller's memory -> BatchInputs; see unpack_device_batch.cuh for how errors are
// reported.
struct UnpackDeviceBatch {
  Integers ids;          // [T]
  Integers cu_seqlens;   // [B + 1]
  Integers token_types;  // [T], or null
  Integers rows;         // [R], where they are given
  RowsAre rows_are;
  int tokens, sequences, num_rows;       // T, B, R
  int vocabulary, num_positions, types;  // of the model's tables
  BatchInputs to;
};
void unpack_device_batch(const UnpackDeviceBatch& op, Stream& stream);
void load_unpack_device_batch();

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
  float* out;      // [T, D]
  void* out_cast;  // T [T, row_stride(D)], or null
};
void embed(const Embed& op, int bucket_rows, Stream& stream);
void load_embed(Precision precision);

// W as `linear` reads it, made by `pack_linear`.
struct PackedLinear {
  const void* weight;  // packed_linear_bytes
  const float* bias;   // [N]
  int n, k;
};
std::size_t packed_linear_bytes(Precision precision, int n, int k);
void pack_linear(Precision precision, const float* weight, int n, int k, void* packed, Stream& stream);  // [N, K]
void load_pack_linear(Precision precision);

// int8 is two linears. Up to so many rows a linear is a stream of W: W8A16, W int8 and x bf16. With more rows the
// products take the time: W8A8, x quantised too by quantize_activations, W packed by pack_w8a8.
constexpr int max_w8a16_rows = 64;

// W for W8A8, with what quantize_activations needs. `channel_shift` [K] is subtracted from x, so the bias must be the
// linear's own plus channel_shift Wt. `outliers` [outlier_channels(k)]: the channels that stay bf16, ascending. See
// distilfast/quantize.py.
std::size_t packed_w8a8_bytes(int n, int k);
void pack_w8a8(const float* weight, const float* channel_shift, const std::int32_t* outliers, int n, int k,
               void* packed, Stream& stream);
int outlier_channels(int k);

// quantize_activations  rows of x -> packed A of a W8A8 linear of the same bucket_rows; see int8_groups.cuh.
struct QuantizeActivations {
  const std::int32_t* rows;    // how many to make
  const std::int32_t* gather;  // [rows]: which row of x each comes from; or null: its own
  const void* x;               // bf16 [*, row_stride(K)]
  PackedLinear packed;         // the linear's
  void* packed_a;              // packed_a_bytes
};
int packed_a_row_bytes(int k);                       // without the scales, which follow all rows
std::size_t packed_a_bytes(int k, int bucket_rows);  // of all
void quantize_activations(const QuantizeActivations& op, int bucket_rows, Stream& stream);
void load_quantize_activations();

// With split_k > 1 the depth K is cut into as many splits. Each stores its accumulators, without bias and activation,
// in its own [*, N] of `out`; `add_layer_norm` adds them up in order.
struct Linear {
  Precision precision;
  const std::int32_t* rows;    // how many rows out has
  const std::int32_t* gather;  // [rows]: which row of x each comes from; or null: its own, as with packed A
  const void* x;               // T [*, row_stride(K)], or packed A
  PackedLinear packed;
  Activation activation;
  int split_k;
  Index split_stride;  // floats between the splits' outputs
  float* out;          // [split_k, *, N], or null
  void* out_cast;      // T [*, row_stride(N)], or null; only without split-K
};
void linear(const Linear& op, int bucket_rows, Stream& stream);
void load_linear(Precision precision);
// W8A8: what `linear` calls for int8 and more than max_w8a16_rows.
void linear_w8a8(const Linear& op, int bucket_rows, Stream& stream);
void load_linear_w8a8();
int linear_w8a8_split_k(int n, int k, int bucket_rows);
// The split-K with which a linear fills the device, for the encoder to use where add_layer_norm follows.
int linear_split_k(Precision precision, int n, int k, int bucket_rows);

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
// Null, or why a head size is not supported.
const char* attention_unsupported_reason(int head_size);
void attention(const Attention& op, int bucket_rows, Stream& stream);
void load_attention(Precision precision, int head_size);

struct AddLayerNorm {
  Precision precision;
  const std::int32_t* rows;    // how many rows out has
  const std::int32_t* gather;  // [rows]: which row of residual each belongs to; or null: its own
  const float* x;              // [split_k, *, D]
  int split_k;
  Index split_stride;     // floats between the splits of x
  const float* bias;      // [D], the bias of a linear with split-K; or null
  const float* residual;  // [*, D], or null: LN(x)
  LayerNormWeights norm;
  float* sum;      // [*, D], the sum of the splits and the bias, for a trace; or null
  float* out;      // [*, D]; may be x or, where nothing is gathered, residual
  void* out_cast;  // T [*, row_stride(D)], or null
};
void add_layer_norm(const AddLayerNorm& op, int bucket_rows, Stream& stream);
void load_add_layer_norm(Precision precision);

// out = LN(x Wt + b + residual) in one kernel; see linear_add_layer_norm.cuh.
struct LinearAddLayerNorm {
  Linear linear;                // no split-K, no activation; its out and out_cast are not used
  AddLayerNorm add_layer_norm;  // with a residual and out_cast; its x, split_k, split_stride and bias are not used
};
// Null, or why rows of this width are not supported: then the two kernels run.
const char* linear_add_layer_norm_unsupported_reason(Precision precision, int width);
void linear_add_layer_norm(const LinearAddLayerNorm& op, int bucket_rows, Stream& stream);
void load_linear_add_layer_norm(Precision precision);

}  // namespace distilfast::cuda
