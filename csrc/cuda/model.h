// The weights of one encoder and its head in device memory, packed for the kernels.
#pragma once

#include <optional>
#include <vector>

#include "common/layer_names.h"
#include "cuda/kernels.h"

namespace distilfast::cuda {

// With int8 distilfast/backends/cuda.py adds three tensors to each linear of the encoder: `.channel_shift`,
// `.outlier_channels` (as floats) and `.shifted_bias`.

// A linear; int8 has W packed twice, for W8A16 and for W8A8.
struct Dense {
  Precision precision;
  DeviceBuffer weight, bias;
  int n, k;
  DeviceBuffer w8a8_weight{}, w8a8_bias{};

  bool reads_packed_a(int bucket_rows) const { return precision == Precision::int8 && bucket_rows > max_w8a16_rows; }
  PackedLinear packed(int bucket_rows) const {
    const bool is_w8a8 = reads_packed_a(bucket_rows);
    return {(is_w8a8 ? w8a8_weight : weight).data(),
            reinterpret_cast<const float*>((is_w8a8 ? w8a8_bias : bias).data()), n, k};
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

using Layer = LayerOf<Dense, Norm>;
using HeadLayer = HeadLayerOf<Dense, Norm>;

struct Model {
  // `find` is used only here. Throws where a tensor is missing or of another size, or the shape is not supported.
  Model(const EncoderShape& shape, const std::vector<HeadLinear>& head, const FindTensor& find, Precision precision,
        Stream& stream);

  std::size_t bytes() const;
  int rows_of(const DeviceBuffer& table) const {
    return static_cast<int>(table.bytes() / sizeof(float) / static_cast<std::size_t>(shape.width));
  }
  int head_columns() const { return head.empty() ? 0 : head.back().dense.n; }

  EncoderShape shape;
  Precision precision;                      // of the encoder; the head's is head_precision(precision)
  DeviceBuffer word, position, token_type;  // the last is empty where the model has none
  std::optional<Norm> embed_norm;           // never empty once constructed
  std::vector<Layer> layers;
  std::vector<HeadLayer> head;

 private:
  void load_kernels() const;
};

}  // namespace distilfast::cuda
