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

// One linear over its packed weight and bias, which it does not own and which must outlive it.
class Dense {
 public:
  // Bytes that the packed weight and bias take up: whole cache lines.
  static std::size_t packed_size(const LinearKernels& kernels, Index n, Index k);
  static void pack(const LinearKernels& kernels, const LinearSource& source, const float* bias, std::byte* packed,
                   Team& team);

  // `packed`: what `pack` wrote, on the boundary of a cache line.
  Dense(const LinearKernels& kernels, Index n, Index k, const std::byte* packed);

  const LinearKernels& kernels() const { return kernels_; }
  Index columns() const { return n_; }
  Index panels() const { return panels_; }
  PackedLinear packed() const { return {weight_, bias_, n_, k_}; }

 private:
  const LinearKernels& kernels_;
  Index n_, k_, panels_;
  const std::byte* weight_;
  const float* bias_;
};

// All packed linears of a model in one block of memory, so that it can be kept in a file and mapped by many processes.
// Its bytes are a function of the checkpoint, the linears' sizes and `packed_weights_layout` alone.
class PackedWeights {
 public:
  using Item = LinearShape;

  // Packs the tensors that `find` returns; for int8 these include "<name>.channel_shift" and "<name>.outlier_channels"
  // (channel numbers, as floats).
  PackedWeights(const Kernels& kernels, const std::vector<Item>& items, const FindTensor& find, Team& team);
  // Uses weights packed before, which must outlive this; throws std::invalid_argument where their size is wrong, or
  // where they name channels that do not exist.
  PackedWeights(const Kernels& kernels, const std::vector<Item>& items, std::span<const std::byte> packed);

  const Dense& linear(const std::string& name) const { return linears_.at(name); }
  std::span<const std::byte> bytes() const { return bytes_; }

 private:
  Buffer owned_;  // empty where the block is the caller's
  std::span<const std::byte> bytes_;
  std::map<std::string, Dense> linears_;
};

// The id of the layout, such as "f32/nr48/v1,head=f32/nr48/v1,weights=v1": with the checkpoint and the sizes of the
// linears it decides every byte, so it belongs to the key under which packed weights are kept.
std::string packed_weights_layout(const Kernels& kernels, Precision precision);

class Norm {
 public:
  Norm(const float* weight, const float* bias, Index width, float eps);

  LayerNormWeights view() const { return {weight_.data(), bias_.data(), static_cast<int>(weight_.size()), eps_}; }

 private:
  std::vector<float> weight_, bias_;
  float eps_;
};

using Layer = LayerOf<Dense, Norm>;
using HeadLayer = HeadLayerOf<Dense, Norm>;

// The linears of a head, whose weights are among the packed ones.
std::vector<HeadLayer> head_layers(const PackedWeights& packed_weights, const std::vector<HeadLinear>& linears,
                                   const FindTensor& find, float eps);

// Bytes of packed A that suffice for every linear of a head, with so many rows.
Index packed_a_size(const std::vector<HeadLayer>& head, Index rows);

struct Model {
  // `find` is used only here, but the three embedding tables that it returns are not copied and must outlive this.
  // `packed` is empty, or weights packed before that must outlive this too; then `find` is not asked for linears. With
  // int8 the head's linears, which run on few rows, are bf16.
  Model(const EncoderShape& shape, const std::vector<HeadLinear>& head, const FindTensor& find, const Kernels& kernels,
        Precision precision, std::span<const std::byte> packed, Team& team);

  // Bytes of packed A that suffice for every linear, with `tokens` rows in the encoder and `rows` in the head.
  Index packed_a_size(Index tokens, Index rows) const;

  EncoderShape shape;
  PackedWeights packed_weights;
  const float *word, *position, *token_type;
  Norm embed_norm;
  std::vector<Layer> layers;
  std::vector<HeadLayer> head;
};

}  // namespace distilfast
