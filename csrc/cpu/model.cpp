#include "cpu/model.h"

#include <algorithm>
#include <stdexcept>

namespace distilfast {

namespace {

// Raise this when Image or Dense lay out their parts otherwise; a kernel's own order has a version beside its `pack`.
constexpr int parts_layout = 1;

std::size_t cache_lines(Index floats) { return (static_cast<std::size_t>(floats) + 15) / 16 * 16; }

Index panels_of(const LinearKernels& kernels, Index n) { return (n + kernels.panel - 1) / kernels.panel; }

const float* tensor(const FindTensor& find, const std::string& name) { return require_tensor(find, name).data; }

std::vector<Image::Part> parts_of(const EncoderShape& shape, const std::vector<HeadLinear>& head, Precision precision) {
  std::vector<Image::Part> parts;
  for (Index i = 0; i < shape.layers; ++i)
    for (LinearShape& linear : layer_linears(shape, i, precision)) parts.push_back(std::move(linear));
  for (LinearShape& linear : head_linears(shape, head, precision)) parts.push_back(std::move(linear));
  return parts;
}

std::size_t floats_of(const Kernels& kernels, const std::vector<Image::Part>& parts) {
  std::size_t floats = 0;
  for (const auto& [name, n, k, precision] : parts) floats += Dense::packed_size(kernels.linear(precision), n, k);
  return floats;
}

void pack(const Kernels& kernels, const Image::Part& part, const FindTensor& find, float* packed, Team& team) {
  LinearSource source{tensor(find, part.name + ".weight"), part.n, part.k, nullptr, nullptr};
  std::vector<std::int32_t> wide;
  if (part.precision == Precision::int8) {
    source.centre = tensor(find, part.name + ".centre");
    const float* channels = tensor(find, part.name + ".wide");
    wide.assign(channels, channels + wide_channels(part.k));
    source.wide = wide.data();
  }
  Dense::pack(kernels.linear(part.precision), source, tensor(find, part.name + ".bias"), packed, team);
}

Norm norm_of(const FindTensor& find, const std::string& name, Index width, float eps) {
  return Norm(tensor(find, name + ".weight"), tensor(find, name + ".bias"), width, eps);
}

Image image_of(const Kernels& kernels, const std::vector<Image::Part>& parts, const FindTensor& find,
               std::span<const float> packed, Team& team) {
  return packed.empty() ? Image(kernels, parts, find, team) : Image(kernels, parts, packed);
}

}  // namespace

std::size_t Dense::packed_size(const LinearKernels& kernels, Index n, Index k) {
  return cache_lines(kernels.packed_size(n, k)) + cache_lines(panels_of(kernels, n) * kernels.panel);
}

void Dense::pack(const LinearKernels& kernels, const LinearSource& source, const float* bias, float* packed,
                 Team& team) {
  const Index n = source.n, k = source.k;
  team.run(panels_of(kernels, n), [&](Index panel, int) { kernels.pack(source, {panel, panel + 1}, packed); });
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

Image::Image(const Kernels& kernels, const std::vector<Part>& parts, const FindTensor& find, Team& team)
    : owned_(floats_of(kernels, parts)), floats_(owned_.data(), owned_.size()) {
  float* packed = owned_.data();
  for (const Part& part : parts) {
    const LinearKernels& linear = kernels.linear(part.precision);
    pack(kernels, part, find, packed, team);
    linears_.emplace(part.name, Dense(linear, part.n, part.k, packed));
    packed += Dense::packed_size(linear, part.n, part.k);
  }
}

Image::Image(const Kernels& kernels, const std::vector<Part>& parts, std::span<const float> packed) : floats_(packed) {
  if (packed.size() != floats_of(kernels, parts))
    throw std::invalid_argument("The image of packed weights does not have the model's size.");
  for (const auto& [name, n, k, precision] : parts) {
    linears_.emplace(name, Dense(kernels.linear(precision), n, k, packed.data()));
    packed = packed.subspan(Dense::packed_size(kernels.linear(precision), n, k));
  }
}

std::string image_layout(const Kernels& kernels, Precision precision) {
  const auto described = [&](Precision each) {
    const LinearKernels& linear = kernels.linear(each);
    return std::string(linear.arithmetic) + ", panels of " + std::to_string(linear.panel) + ", packing " +
           std::to_string(linear.packing);
  };
  const Precision head = head_precision(precision);
  return described(precision) + (head == precision ? "" : "; head " + described(head)) + ", parts " +
         std::to_string(parts_layout);
}

Norm::Norm(const float* weight, const float* bias, Index width, float eps)
    : weight_(weight, weight + width), bias_(bias, bias + width), eps_(eps) {}

Model::Model(const EncoderShape& shape, const std::vector<HeadLinear>& linears, const FindTensor& find,
             const Kernels& kernels, Precision precision, std::span<const float> packed, Team& team)
    : shape(shape),
      image(image_of(kernels, parts_of(shape, linears, precision), find, packed, team)),
      word(tensor(find, names::embed_word)),
      position(tensor(find, names::embed_position)),
      token_type(find(names::embed_token_type).data),
      embed_norm(norm_of(find, names::embed_norm, shape.width, shape.eps)) {
  for (Index i = 0; i < shape.layers; ++i) {
    const auto linear = [&](const char* name) { return image.linear(layer_name(i, name)); };
    const auto norm = [&](const char* name) { return norm_of(find, layer_name(i, name), shape.width, shape.eps); };
    layers.push_back({linear(names::qkv), linear(names::attention_out), norm(names::attention_norm),
                      linear(names::ffn_in), linear(names::ffn_out), norm(names::output_norm)});
  }
  for (const HeadLinear& linear : linears) {
    const std::string name = head_name(head.size());
    head.push_back({image.linear(name), linear.activation, {}});
    if (linear.norm)
      head.back().norm.push_back(norm_of(find, head_norm_name(head.size() - 1), linear.columns, shape.eps));
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

}  // namespace distilfast
