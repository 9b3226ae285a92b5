// The inputs and outputs of both backends: a model's shape, its weights by name, a batch, the results.
//
// A model's sizes are int, with which a GPU computes addresses fastest; counts of tokens and rows, and products of the
// two, are Index.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <stdexcept>
#include <string>

namespace distilfast {

using Index = std::int64_t;

enum class Activation { none, gelu, relu, tanh };

// The type of the operands of `linear` and `attention`; accumulators, LayerNorm and the residual stream are fp32 in
// each. bf16x3: each fp32 operand is split into two bf16 terms, and a product takes three. The CPU has no fp16 and the
// GPU no bf16x3: each module's bindings accept only the names that its kernels have.
enum class Precision { fp32, fp16, bf16x3, bf16, int8 };

struct EncoderShape {
  int width, heads, layers, ffn;  // D, H, layers, F
  float eps;
  Activation activation;
};

struct HeadLinear {
  int columns;  // N
  Activation activation;
  bool norm;  // whether a LayerNorm follows
};

struct LayerNormWeights {
  const float* weight;  // [D]
  const float* bias;    // [D]
  int width;            // D
  float eps;
};

// The weights of one encoder layer in a backend's own types.
template <class Dense, class Norm>
struct LayerOf {
  Dense qkv, attention_out;
  Norm attention_norm;
  Dense ffn_in, ffn_out;
  Norm output_norm;
};

// The same for one linear of the head.
template <class Dense, class Norm>
struct HeadLayerOf {
  Dense dense;
  Activation activation;
  std::optional<Norm> norm;
};

// fp32 values in host memory, row-major; `data` is null where the model has no such tensor.
struct HostTensor {
  const float* data;
  std::size_t size;
};

// Called with a tensor's canonical name.
using FindTensor = std::function<HostTensor(const std::string& name)>;

inline HostTensor require_tensor(const FindTensor& find, const std::string& name) {
  const HostTensor tensor = find(name);
  if (!tensor.data) throw std::invalid_argument("The weights lack " + name + ".");
  return tensor;
}

// Called with every intermediate in the order of computation, [rows, columns]; where a batch runs in chunks, with each
// chunk's.
using Trace = std::function<void(const std::string& name, const float* data, Index rows, Index columns)>;

// Called between two chunks of a batch: false ends the forward, whose results are then incomplete.
using ShouldContinue = std::function<bool()>;

// A batch in host memory.
struct ForwardInput {
  const std::int32_t* ids;                // [T]
  const std::int32_t* positions;          // [T]
  const std::int32_t* token_types;        // [T] or null
  const std::int32_t* cu_seqlens;         // [B + 1]
  Index sequences;                        // B
  const std::int32_t* rows;               // [R], strictly increasing: the rows that the head reads
  Index num_rows;                         // R
  const std::int32_t* columns = nullptr;  // [C], strictly increasing: of the head's last linear, or null: all
  Index num_columns = 0;                  // C
};

struct ForwardOutput {
  float* hidden;  // [T, D]; null: not wanted, and the last layer skips the rows that the head does not read
  float* head;    // [R, C], without selected columns [R, N]; null: no head is run
};

// out [R, C] = the selected columns of logits [R, N], of which a backend need not compute the others.
inline void select_columns(const ForwardInput& input, const float* logits, Index rows, Index n, float* out) {
  for (Index row = 0; row < rows; ++row)
    for (Index i = 0; i < input.num_columns; ++i) *out++ = logits[row * n + input.columns[i]];
}

}  // namespace distilfast
