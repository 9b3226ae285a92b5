// The weights of one encoder and its head, packed for the kernels of one ISA.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "cpu/arena.h"
#include "cpu/kernels.h"
#include "cpu/threads.h"

namespace distilfast {

struct EncoderShape {
  Index width, heads, layers, ffn;  // D, H, layers, F
  float eps;
  Activation activation;
};

struct HeadLinear {
  Index columns;  // N
  Activation activation;
  bool norm;
};

// Called with a tensor's canonical name; returns its fp32 values, row-major, or null where the model has none.
using FindTensor = std::function<const float*(const std::string& name)>;

class Dense {
 public:
  // Packs W; nothing of `source` is read later.
  Dense(const LinearKernels& kernels, const LinearSource& source, const float* bias, Team& team);

  const LinearKernels& kernels() const { return kernels_; }
  Index columns() const { return n_; }
  Index panels() const { return panels_; }
  PackedLinear packed() const { return {weight_.data(), bias_.data(), n_, k_}; }
  std::size_t bytes() const { return (weight_.size() + bias_.size()) * sizeof(float); }

 private:
  const LinearKernels& kernels_;
  Index n_, k_, panels_;
  Buffer weight_;
  std::vector<float> bias_;
};

class Norm {
 public:
  Norm(const float* weight, const float* bias, Index width, float eps);

  LayerNormWeights view() const { return {weight_.data(), bias_.data(), static_cast<Index>(weight_.size()), eps_}; }

 private:
  std::vector<float> weight_, bias_;
  float eps_;
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
  std::vector<Norm> norm;  // one or none
};

struct Model {
  // `find` is used only here, but the three embedding tables that it returns are not copied and must outlive this. With
  // int8 it is also asked for each encoder linear's "<name>.centre" and "<name>.wide" (channel numbers, as floats); the
  // head's linears, which run on few rows, are then bf16.
  Model(const EncoderShape& shape, const std::vector<HeadLinear>& head, const FindTensor& find, const Kernels& kernels,
        Precision precision, Team& team);

  // Floats of operands that no linear needs more of: of `tokens` rows in the encoder, `rows` in the head.
  Index operands_size(Index tokens, Index rows) const;

  std::size_t packed_bytes() const;

  EncoderShape shape;
  const float *word, *position, *token_type;
  Norm embed_norm;
  std::vector<Layer> layers;
  std::vector<HeadLayer> head;
};

}  // namespace distilfast
