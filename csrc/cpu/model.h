// The weights of one encoder and its head, packed for the kernels of one ISA.
#pragma once

#include <map>
#include <span>
#include <string>
#include <vector>

#include "common/layer_names.h"
#include "cpu/arena.h"
#include "cpu/kernels.h"
#include "cpu/threads.h"

namespace distilfast {

// One linear over its packed weight and bias, which lie in memory of someone else's and must outlive it.
class Dense {
 public:
  // Floats that the packed weight and bias take up: whole cache lines.
  static std::size_t packed_size(const LinearKernels& kernels, Index n, Index k);
  static void pack(const LinearKernels& kernels, const LinearSource& source, const float* bias, float* packed,
                   Team& team);

  // `packed`: what `pack` wrote, on the boundary of a cache line.
  Dense(const LinearKernels& kernels, Index n, Index k, const float* packed);

  const LinearKernels& kernels() const { return kernels_; }
  Index columns() const { return n_; }
  Index panels() const { return panels_; }
  PackedLinear packed() const { return {weight_, bias_, n_, k_}; }

 private:
  const LinearKernels& kernels_;
  Index n_, k_, panels_;
  const float *weight_, *bias_;
};

// All packed linears of a model in one block of memory, so that it can be kept in a file and mapped by many processes.
// Its bytes are a function of the checkpoint, the linears' sizes and `image_layout` alone.
class Image {
 public:
  using Part = LinearShape;

  // Packs the tensors that `find` has; for int8 it is asked for "<name>.centre" and "<name>.wide" too (channel numbers,
  // as floats).
  Image(const Kernels& kernels, const std::vector<Part>& parts, const FindTensor& find, Team& team);
  // Reads an image that was packed before and must outlive this; throws std::invalid_argument where its size is wrong.
  Image(const Kernels& kernels, const std::vector<Part>& parts, std::span<const float> packed);

  const Dense& linear(const std::string& name) const { return linears_.at(name); }
  std::span<const float> floats() const { return floats_; }

 private:
  Buffer owned_;  // empty where the image is someone else's
  std::span<const float> floats_;
  std::map<std::string, Dense> linears_;
};

// What else the bytes of an image depend on, in words: the key of an image that is kept for later.
std::string image_layout(const Kernels& kernels, Precision precision);

class Norm {
 public:
  Norm(const float* weight, const float* bias, Index width, float eps);

  LayerNormWeights view() const { return {weight_.data(), bias_.data(), static_cast<int>(weight_.size()), eps_}; }

 private:
  std::vector<float> weight_, bias_;
  float eps_;
};

using Layer = LayerOf<Dense, Norm>;

struct HeadLayer {
  Dense dense;
  Activation activation;
  std::vector<Norm> norm;  // one or none
};

struct Model {
  // `find` is used only here, but the three embedding tables that it returns are not copied and must outlive this.
  // Where `packed` has an image, which must outlive this too, the linears are not asked for. With int8 the head's
  // linears, which run on few rows, are bf16.
  Model(const EncoderShape& shape, const std::vector<HeadLinear>& head, const FindTensor& find, const Kernels& kernels,
        Precision precision, std::span<const float> packed, Team& team);

  // Floats of operands that no linear needs more of: of `tokens` rows in the encoder, `rows` in the head.
  Index operands_size(Index tokens, Index rows) const;

  EncoderShape shape;
  Image image;
  const float *word, *position, *token_type;
  Norm embed_norm;
  std::vector<Layer> layers;
  std::vector<HeadLayer> head;
};

}  // namespace distilfast
