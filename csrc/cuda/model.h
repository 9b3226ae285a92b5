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

// Called with a tensor's canonical name; nothing where the model has none.
using FindTensor = std::function<std::optional<HostTensor>(const std::string& name)>;

struct Dense {
  Precision precision;
  DeviceBuffer weight, bias;
  int n, k;

  PackedLinear packed() const { return {weight.data(), reinterpret_cast<const float*>(bias.data()), n, k}; }
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
