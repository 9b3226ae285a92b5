// The contract between the encoder and the kernels: four operations, a plain struct of pointers and sizes for each.
//
//   embed           out[t] = LN(word[id[t]] + position[p[t]] (+ token_type[s[t]]))        [T] -> [T, D]
//   linear          out = act(x Wt + b)                                    [T, K] . [N, K] -> [T, N]
//   attention       out = softmax(q kt / sqrt(d)) v inside each sequence           [T, 3D] -> [T, D]
//   add_layer_norm  out = LN(x + residual), variance in a second pass              [T, D] -> [T, D]
//
// linear_add_layer_norm fuses two of them.
//
// All pointers point to device memory. The number of rows is read on the device, so that a graph built for
// `bucket_rows` serves every batch with no more of them. `T` is the element type of the precision: that of the matrix
// instructions' operands and of what one linear passes to the next. Accumulators, LayerNorm and the residual stream are
// always fp32. Each operation only enqueues: none allocates or waits. `load_<op>` loads every kernel that the operation
// launches in a precision, since loading one may wait for the whole device.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/types.h"
#include "cuda/runtime.h"

namespace distilfast::cuda {

// Bytes of an element of x and of the outputs, which are bf16 in int8, see Linear.
constexpr std::size_t element_size(Precision precision) { return precision == Precision::fp32 ? 4 : 2; }

// Rows of T begin at multiples of 16 bytes, in every precision.
constexpr int row_stride(int columns) { return (columns + 7) / 8 * 8; }

// Null, or why a width is not supported.
const char* layer_norm_unsupported_reason(int width);

// A batch, as the kernels read it.
struct BatchInputs {
  std::int32_t *tokens, *sequences, *rows;  // counts
  std::int32_t* faults;                     // set by unpack_device_batch; 0 for a batch that the host has checked
  std::int32_t *ids, *positions, *token_types, *cu_seqlens, *gather;
};

// A caller's array of integers.
struct Integers {
  const void* data;  // null: no array
  bool is_int64;     // or int32
};

enum class RowSelection { first, all, given };  // of each sequence; of the batch; by an array

// Bits of `faults`.
constexpr std::uint32_t fault_ids = 1, fault_cu_seqlens = 2, fault_token_types = 4, fault_rows = 8,
                        fault_positions = 16;

// unpack_device_batch  a batch in the caller's device memory -> BatchInputs; see unpack_device_batch.cuh for errors.
struct UnpackDeviceBatch {
  Integers ids;          // [T]
  Integers cu_seqlens;   // [B + 1]
  Integers token_types;  // [T], or null
  Integers rows;         // [R], for RowSelection::given
  RowSelection row_selection;
  int tokens, sequences, num_rows;       // T, B, R
  int vocabulary, num_positions, types;  // of the model's tables
  BatchInputs to;
};
void unpack_device_batch(const UnpackDeviceBatch& op, Stream& stream);
void load_unpack_device_batch();

struct Embed {
  Precision precision;
  const std::int32_t* rows;         // the number of tokens
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

// int8 has two linears. Up to this many rows a linear is bound by reading W: W8A16, W int8 and x bf16. With more rows
// it is bound by the products: W8A8, x quantised too, by quantize_activations, and W packed by pack_w8a8.
constexpr int max_w8a16_rows = 64;

// W for W8A8, with what quantize_activations needs. `channel_shift` [K] is subtracted from x, so the linear must be run
// with the shifted bias, its own plus channel_shift Wt. `outliers` [outlier_channels(k)]: the channels that stay bf16,
// ascending. See distilfast/quantize.py.
std::size_t packed_w8a8_bytes(int n, int k);
void pack_w8a8(const float* weight, const float* channel_shift, const std::int32_t* outliers, int n, int k,
               void* packed, Stream& stream);
int outlier_channels(int k);

// quantize_activations  rows of x -> packed A of a W8A8 linear of the same bucket_rows; see int8_groups.cuh.
struct QuantizeActivations {
  const std::int32_t* rows;    // the number of rows of packed A
  const std::int32_t* gather;  // [rows]: the row of x for each; null: the same row
  const void* x;               // bf16 [*, row_stride(K)]
  PackedLinear packed;         // the linear's
  void* packed_a;              // packed_a_bytes
};
int packed_a_row_bytes(int k);                       // without scales, which follow the last row
std::size_t packed_a_bytes(int k, int bucket_rows);  // with scales
void quantize_activations(const QuantizeActivations& op, int bucket_rows, Stream& stream);
void load_quantize_activations();

// With split_k > 1 each split of K stores its accumulators, without bias and activation, as its own [*, N] of `out`,
// and `add_layer_norm` adds these partial sums in order.
struct Linear {
  Precision precision;
  const std::int32_t* rows;    // the number of rows of out
  const std::int32_t* gather;  // [rows]: the row of x for each; null: the same row, as always with packed A
  const void* x;               // T [*, row_stride(K)], or packed A
  PackedLinear packed;
  Activation activation;
  int split_k;
  Index split_stride;  // floats between partial sums
  float* out;          // [split_k, *, N], or null
  void* out_cast;      // T [*, row_stride(N)], or null; only without split-K
};
void linear(const Linear& op, int bucket_rows, Stream& stream);
void load_linear(Precision precision);
// W8A8, which `linear` calls for int8 and more than max_w8a16_rows.
void linear_w8a8(const Linear& op, int bucket_rows, Stream& stream);
void load_linear_w8a8();
int linear_w8a8_split_k(int n, int k, int bucket_rows);
// The split-K that fills the device; the encoder uses it where add_layer_norm follows.
int linear_split_k(Precision precision, int n, int k, int bucket_rows);

struct Attention {
  Precision precision;
  const std::int32_t* sequences;   // B
  const std::int32_t* cu_seqlens;  // [B + 1]
  const void* qkv;                 // T [T, row_stride(3D)]
  int heads, head_size;            // H, d
  void* out;                       // T [T, row_stride(D)]
  // [B]: where each sequence's [H, L, L] begin in `probabilities`; both are null without a trace.
  const std::int64_t* probability_begins;
  float* probabilities;
};
// Null, or why a head size is not supported.
const char* attention_unsupported_reason(int head_size);
void attention(const Attention& op, int bucket_rows, Stream& stream);
void load_attention(Precision precision, int head_size);

struct AddLayerNorm {
  Precision precision;
  const std::int32_t* rows;    // the number of rows of out
  const std::int32_t* gather;  // [rows]: the row of residual for each; null: the same row
  const float* x;              // [split_k, *, D]
  int split_k;
  Index split_stride;     // floats between partial sums
  const float* bias;      // [D], the bias of a split-K linear, or null
  const float* residual;  // [*, D], or null: LN(x)
  LayerNormWeights norm;
  float* sum;      // [*, D]: x and the bias, added up, for a trace; or null
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
// Null, or why rows of this width are not supported; the two kernels run instead.
const char* linear_add_layer_norm_unsupported_reason(Precision precision, int width);
void linear_add_layer_norm(const LinearAddLayerNorm& op, int bucket_rows, Stream& stream);
void load_linear_add_layer_norm(Precision precision);

}  // namespace distilfast::cuda
