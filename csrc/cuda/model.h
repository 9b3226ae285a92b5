// The weights of one encoder and its head in device memory, packed for the kernels.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "cuda/kernels.h"

namespace distilfast::cuda {

struct EncoderShape {
  Precision precision;            // with int8 the head's linears, which run on few rows, are bf16
  int width, heads, layers, ffn;  // D, H, layers, F
  float eps;
  Activation activation;
};

struct HeadLinear {
  int columns;  // N
  Activation activation;
  bool norm;
};

// fp32 values in host memory, row-major.
struct HostTensor {
  const float* data;
  std::size_t size;
};

// Called with a tensor's canonical name; nothing where the model has none. int8 asks for what
// distilfast/backends/cuda.py adds to each linear of the encoder: `.channel_shift`, `.outlier_channels` (as floats) and
// `.shifted_bias`.
using FindTensor = std::function<std::optional<HostTensor>(const std::string& name)>;

// A linear; int8 has W packed twice, for few rows and for operands.
struct Dense {
  Precision precision;
  DeviceBuffer weight, bias;
  int n, k;
  DeviceBuffer int8_weight{}, int8_bias{};  // for operands

  bool reads_operands(int most_rows) const { return precision == Precision::int8 && most_rows > most_weight_only_rows; }
  PackedLinear packed(int most_rows) const {
    const bool is_int8 = reads_operands(most_rows);
    return {(is_int8 ? int8_weight : weight).data(),
            reinterpret_cast<const float*>((is_int8 ? int8_bias : bias).data()), n, k};
  }
};

struct Norm {
  DeviceBuffer weight, bias;
  int width;
  float eps;

  LayerNormWeights view() const {
    return {reinterpret_cast<const float*>(weight.data()), reinterpret_cast<const float*>(bias.data()), width, eps};
  }
};

struct Layer {
  Dense qkv, attention_out;
  Norm attention_norm;
  Dense ffn_in, ffn_out;
  Norm output_norm;
};

struct HeadLayer {
  Dense dense;
  Activation activation;
  std::optional<Norm> norm;
};

struct Model {
  // `find` is used only here. Throws where a tensor is missing or of another size, or the shape cannot be run.
  Model(const EncoderShape& shape, const std::vector<HeadLinear>& head, const FindTensor& find, Stream& stream);

  std::size_t bytes() const;
  int rows_of(const DeviceBuffer& table) const {
    return static_cast<int>(table.bytes() / sizeof(float) / static_cast<std::size_t>(shape.width));
  }
  int head_columns() const { return head.empty() ? 0 : head.back().dense.n; }

  EncoderShape shape;
  DeviceBuffer word, position, token_type;  // the last is empty where the model has none
  std::optional<Norm> embed_norm;           // always there
  std::vector<Layer> layers;
  std::vector<HeadLayer> head;

 private:
  void load_kernels() const;
};

}  // namespace distilfast::cuda
