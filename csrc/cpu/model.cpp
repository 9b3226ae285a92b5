#include "cpu/model.h"

#include <algorithm>
#include <stdexcept>

namespace distilfast {

namespace {

// Raise this when Image or Dense lay out their parts otherwise; a kernel's own order has a version beside its `pack`.
constexpr int parts_layout = 1;

std::size_t cache_lines(Index floats) { return (static_cast<std::size_t>(floats) + 15) / 16 * 16; }

Index panels_of(const LinearKernels& kernels, Index n) { return (n + kernels.panel - 1) / kernels.panel; }

const float* tensor(const FindTensor& find, const std::string& name) {
  if (const float* data = find(name)) return data;
  throw std::invalid_argument("The weights lack " + name + ".");
}

std::string layer_prefix(Index layer) { return "layer." + std::to_string(layer) + "."; }

std::string head_name(std::size_t linear) { return "head." + std::to_string(linear); }

std::vector<Image::Part> parts_of(const EncoderShape& shape, const std::vector<HeadLinear>& head) {
  const Index d = shape.width, f = shape.ffn;
  std::vector<Image::Part> parts;
  for (Index i = 0; i < shape.layers; ++i) {
    const std::string at = layer_prefix(i);
    parts.push_back({at + "qkv", 3 * d, d});
    parts.push_back({at + "attention_out", d, d});
    parts.push_back({at + "ffn_in", f, d});
    parts.push_back({at + "ffn_out", d, f});
  }
  Index width = d;
  for (std::size_t i = 0; i < head.size(); ++i) {
    parts.push_back({head_name(i), head[i].columns, width});
    width = head[i].columns;
  }
  return parts;
}

std::size_t floats_of(const LinearKernels& kernels, const std::vector<Image::Part>& parts) {
  std::size_t floats = 0;
  for (const auto& [name, n, k] : parts) floats += Dense::packed_size(kernels, n, k);
  return floats;
}

Norm norm_of(const FindTensor& find, const std::string& name, Index width, float eps) {
  return Norm(tensor(find, name + ".weight"), tensor(find, name + ".bias"), width, eps);
}

Image image_of(const LinearKernels& kernels, const std::vector<Image::Part>& parts, const FindTensor& find,
               std::span<const float> packed, Team& team) {
  return packed.empty() ? Image(kernels, parts, find, team) : Image(kernels, parts, packed);
}

}  // namespace

std::size_t Dense::packed_size(const LinearKernels& kernels, Index n, Index k) {
  return cache_lines(kernels.packed_size(n, k)) + cache_lines(panels_of(kernels, n) * kernels.panel);
}

void Dense::pack(const LinearKernels& kernels, const float* weight, const float* bias, Index n, Index k, float* packed,
                 Team& team) {
  team.run(panels_of(kernels, n), [&](Index panel, int) { kernels.pack(weight, n, k, {panel, panel + 1}, packed); });
  // What no kernel reads is zero all the same: an image's bytes are the same each time.
  float* behind = packed + kernels.packed_size(n, k);
  float* const packed_bias = packed + cache_lines(kernels.packed_size(n, k));
  std::fill(behind, packed_bias, 0.0f);
  std::fill(std::copy(bias, bias + n, packed_bias), packed + packed_size(kernels, n, k), 0.0f);
}

Dense::Dense(const LinearKernels& kernels, Index n, Index k, const float* packed)
    : kernels_(kernels),
      n_(n),
      k_(k),
      panels_(panels_of(kernels, n)),
      weight_(packed),
      bias_(packed + cache_lines(kernels.packed_size(n, k))) {}

Image::Image(const LinearKernels& kernels, const std::vector<Part>& parts, const FindTensor& find, Team& team)
    : owned_(floats_of(kernels, parts)), floats_(owned_.data(), owned_.size()) {
  float* packed = owned_.data();
  for (const auto& [name, n, k] : parts) {
    Dense::pack(kernels, tensor(find, name + ".weight"), tensor(find, name + ".bias"), n, k, packed, team);
    linears_.emplace(name, Dense(kernels, n, k, packed));
    packed += Dense::packed_size(kernels, n, k);
  }
}

Image::Image(const LinearKernels& kernels, const std::vector<Part>& parts, std::span<const float> packed)
    : floats_(packed) {
  if (packed.size() != floats_of(kernels, parts))
    throw std::invalid_argument("The image of packed weights does not have the model's size.");
  for (const auto& [name, n, k] : parts) {
    linears_.emplace(name, Dense(kernels, n, k, packed.data()));
    packed = packed.subspan(Dense::packed_size(kernels, n, k));
  }
}

std::string image_layout(const LinearKernels& kernels) {
  return std::string(kernels.arithmetic) + ", panels of " + std::to_string(kernels.panel) + ", packing " +
         std::to_string(kernels.packing) + ", parts " + std::to_string(parts_layout);
}

Norm::Norm(const float* weight, const float* bias, Index width, float eps)
    : weight_(weight, weight + width), bias_(bias, bias + width), eps_(eps) {}

Model::Model(const EncoderShape& shape, const std::vector<HeadLinear>& head_linears, const FindTensor& find,
             const LinearKernels& kernels, std::span<const float> packed, Team& team)
    : shape(shape),
      image(image_of(kernels, parts_of(shape, head_linears), find, packed, team)),
      word(find("embed.word")),
      position(find("embed.position")),
      token_type(find("embed.token_type")),
      embed_norm(norm_of(find, "embed.norm", shape.width, shape.eps)) {
  for (Index i = 0; i < shape.layers; ++i) {
    const std::string at = layer_prefix(i);
    layers.push_back({image.linear(at + "qkv"), image.linear(at + "attention_out"),
                      norm_of(find, at + "attention_norm", shape.width, shape.eps), image.linear(at + "ffn_in"),
                      image.linear(at + "ffn_out"), norm_of(find, at + "output_norm", shape.width, shape.eps)});
  }
  for (const HeadLinear& linear : head_linears) {
    const std::string name = head_name(head.size());
    head.push_back({image.linear(name), linear.activation, {}});
    if (linear.norm) head.back().norm.push_back(norm_of(find, name + ".norm", linear.columns, shape.eps));
  }
}

Index Model::linear_scratch(Index rows) const {
  Index most = 0;
  const auto count = [&](const Dense& dense) {
    most = std::max(most, dense.kernels().scratch(rows, dense.packed().k));
  };
  for (const Layer& layer : layers) count(layer.qkv), count(layer.ffn_in), count(layer.ffn_out);
  for (const HeadLayer& layer : head) count(layer.dense);
  return most;
}

}  // namespace distilfast
