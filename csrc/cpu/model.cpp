#include "cpu/model.h"

#include <algorithm>
#include <stdexcept>

namespace distilfast {

namespace {

// Loads tensors by canonical name; knows what every kind of layer consists of.
class Loader {
 public:
  Loader(const FindTensor& find, const Kernels& kernels, Precision precision, Team& team, float eps)
      : find_(find), kernels_(kernels), precision_(precision), team_(team), eps_(eps) {}

  const float* tensor(const std::string& name) const {
    if (const float* data = find_(name)) return data;
    throw std::invalid_argument("The weights lack " + name + ".");
  }
  Norm norm(const std::string& name, Index width) const {
    return Norm(tensor(name + ".weight"), tensor(name + ".bias"), width, eps_);
  }
  Layer layer(const std::string& at, const EncoderShape& shape) const {
    const Index d = shape.width, f = shape.ffn;
    return {dense(at + "qkv", 3 * d, d), dense(at + "attention_out", d, d), norm(at + "attention_norm", d),
            dense(at + "ffn_in", f, d),  dense(at + "ffn_out", d, f),       norm(at + "output_norm", d)};
  }
  Dense head_dense(const std::string& name, Index n, Index k) const {
    return dense(name, n, k, precision_ == Precision::int8 ? Precision::bf16 : precision_);
  }

 private:
  Dense dense(const std::string& name, Index n, Index k) const { return dense(name, n, k, precision_); }
  Dense dense(const std::string& name, Index n, Index k, Precision precision) const {
    LinearSource source{tensor(name + ".weight"), n, k, nullptr, nullptr};
    std::vector<std::int32_t> wide;
    if (precision == Precision::int8) {
      source.centre = tensor(name + ".centre");
      const float* channels = tensor(name + ".wide");
      wide.assign(channels, channels + wide_channels(k));
      source.wide = wide.data();
    }
    return Dense(kernels_.linear(precision), source, tensor(name + ".bias"), team_);
  }

  const FindTensor& find_;
  const Kernels& kernels_;
  Precision precision_;
  Team& team_;
  float eps_;
};

}  // namespace

Dense::Dense(const LinearKernels& kernels, const LinearSource& source, const float* bias, Team& team)
    : kernels_(kernels),
      n_(source.n),
      k_(source.k),
      panels_((n_ + kernels.panel - 1) / kernels.panel),
      weight_(static_cast<std::size_t>(kernels.packed_size(n_, k_))),
      bias_(static_cast<std::size_t>(panels_ * kernels.panel)) {
  std::copy(bias, bias + n_, bias_.begin());
  team.run(panels_, [&](Index panel, int) { kernels.pack(source, {panel, panel + 1}, weight_.data()); });
}

Norm::Norm(const float* weight, const float* bias, Index width, float eps)
    : weight_(weight, weight + width), bias_(bias, bias + width), eps_(eps) {}

Model::Model(const EncoderShape& shape, const std::vector<HeadLinear>& head_linears, const FindTensor& find,
             const Kernels& kernels, Precision precision, Team& team)
    : shape(shape),
      word(find("embed.word")),
      position(find("embed.position")),
      token_type(find("embed.token_type")),
      embed_norm(Loader(find, kernels, precision, team, shape.eps).norm("embed.norm", shape.width)) {
  const Loader loader(find, kernels, precision, team, shape.eps);
  for (Index i = 0; i < shape.layers; ++i) layers.push_back(loader.layer("layer." + std::to_string(i) + ".", shape));
  Index width = shape.width;
  for (const HeadLinear& linear : head_linears) {
    const std::string name = "head." + std::to_string(head.size());
    head.push_back({loader.head_dense(name, linear.columns, width), linear.activation, {}});
    if (linear.norm) head.back().norm.push_back(loader.norm(name + ".norm", linear.columns));
    width = linear.columns;
  }
}

Index Model::operands_size(Index tokens, Index rows) const {
  Index most = 0;
  const auto count = [&](const Dense& dense, Index of_rows) {
    most = std::max(most, dense.kernels().operands_size(of_rows, dense.packed().k));
  };
  // All layers are alike, and attention_out is as deep as qkv.
  for (const Layer& layer : layers) count(layer.qkv, tokens), count(layer.ffn_in, tokens), count(layer.ffn_out, tokens);
  for (const HeadLayer& layer : head) count(layer.dense, rows);
  return most;
}

std::size_t Model::packed_bytes() const {
  std::size_t bytes = 0;
  for (const Layer& layer : layers)
    bytes += layer.qkv.bytes() + layer.attention_out.bytes() + layer.ffn_in.bytes() + layer.ffn_out.bytes();
  for (const HeadLayer& layer : head) bytes += layer.dense.bytes();
  return bytes;
}

}  // namespace distilfast
