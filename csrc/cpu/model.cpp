#include "cpu/model.h"

#include <algorithm>
#include <stdexcept>

namespace distilfast {

namespace {

// Raise this when PackedWeights or Dense arrange their contents otherwise; a kernel's own layout has a version beside
// its `pack`.
constexpr int packed_weights_version = 1;

std::size_t cache_lines(Index bytes) { return (static_cast<std::size_t>(bytes) + 63) / 64 * 64; }

Index panels_of(const LinearKernels& kernels, Index n) { return (n + kernels.panel - 1) / kernels.panel; }

const float* tensor(const FindTensor& find, const std::string& name) { return require_tensor(find, name).data; }

std::vector<PackedWeights::Item> linears_of(const EncoderShape& shape, const std::vector<HeadLinear>& head,
                                            Precision precision) {
  std::vector<PackedWeights::Item> items;
  for (Index i = 0; i < shape.layers; ++i)
    for (LinearShape& linear : layer_linears(shape, i, precision)) items.push_back(std::move(linear));
  for (LinearShape& linear : head_linears(shape.width, head, precision)) items.push_back(std::move(linear));
  return items;
}

std::size_t bytes_of(const Kernels& kernels, const std::vector<PackedWeights::Item>& items) {
  std::size_t bytes = 0;
  for (const auto& [name, n, k, precision] : items) bytes += Dense::packed_size(kernels.linear(precision), n, k);
  return bytes;
}

void pack(const Kernels& kernels, const PackedWeights::Item& item, const FindTensor& find, std::byte* packed,
          Team& team) {
  LinearSource source{tensor(find, item.name + ".weight"), item.n, item.k, nullptr, nullptr};
  std::vector<std::int32_t> outlier_channels;
  if (item.precision == Precision::int8) {
    source.channel_shift = tensor(find, item.name + ".channel_shift");
    const float* channels = tensor(find, item.name + ".outlier_channels");
    outlier_channels.assign(channels, channels + outlier_count(item.k));
    source.outlier_channels = outlier_channels.data();
  }
  Dense::pack(kernels.linear(item.precision), source, tensor(find, item.name + ".bias"), packed, team);
}

Norm norm_of(const FindTensor& find, const std::string& name, Index width, float eps) {
  return Norm(tensor(find, name + ".weight"), tensor(find, name + ".bias"), width, eps);
}

Index size_of_packed_a(const Dense& dense, Index rows) { return dense.kernels().packed_a_size(rows, dense.packed().k); }

PackedWeights packed_weights_of(const Kernels& kernels, const std::vector<PackedWeights::Item>& items,
                                const FindTensor& find, std::span<const std::byte> packed, Team& team) {
  return packed.empty() ? PackedWeights(kernels, items, find, team) : PackedWeights(kernels, items, packed);
}

}  // namespace

std::size_t Dense::packed_size(const LinearKernels& kernels, Index n, Index k) {
  return cache_lines(kernels.packed_size(n, k)) +
         cache_lines(panels_of(kernels, n) * kernels.panel * Index{sizeof(float)});
}

void Dense::pack(const LinearKernels& kernels, const LinearSource& source, const float* bias, std::byte* packed,
                 Team& team) {
  const Index n = source.n, k = source.k;
  team.run(panels_of(kernels, n), [&](Index panel, int) { kernels.pack(source, {panel, panel + 1}, packed); });
  // The padding is zero although no kernel reads it, so that the bytes are the same each time.
  std::byte* const packed_bias = packed + cache_lines(kernels.packed_size(n, k));
  std::fill(packed + kernels.packed_size(n, k), packed + packed_size(kernels, n, k), std::byte{0});
  std::copy(bias, bias + n, view<float>(packed_bias));
}

Dense::Dense(const LinearKernels& kernels, Index n, Index k, const std::byte* packed)
    : kernels_(kernels),
      n_(n),
      k_(k),
      panels_(panels_of(kernels, n)),
      weight_(packed),
      bias_(view<float>(packed + cache_lines(kernels.packed_size(n, k)))) {}

PackedWeights::PackedWeights(const Kernels& kernels, const std::vector<Item>& items, const FindTensor& find, Team& team)
    : owned_(bytes_of(kernels, items)), bytes_(owned_.data(), owned_.size()) {
  std::byte* packed = owned_.data();
  for (const Item& item : items) {
    const LinearKernels& linear = kernels.linear(item.precision);
    pack(kernels, item, find, packed, team);
    linears_.emplace(item.name, Dense(linear, item.n, item.k, packed));
    packed += Dense::packed_size(linear, item.n, item.k);
  }
}

PackedWeights::PackedWeights(const Kernels& kernels, const std::vector<Item>& items, std::span<const std::byte> packed)
    : bytes_(packed) {
  if (packed.size() != bytes_of(kernels, items))
    throw std::invalid_argument("The packed weights do not have the model's size.");
  for (const auto& [name, n, k, precision] : items) {
    const LinearKernels& linear = kernels.linear(precision);
    linears_.emplace(name, Dense(linear, n, k, packed.data()));
    if (linear.addresses_are_valid && !linear.addresses_are_valid(k, linears_.at(name).packed().weight))
      throw std::invalid_argument("The packed weights name channels that " + name + " does not have.");
    packed = packed.subspan(Dense::packed_size(linear, n, k));
  }
}

std::string packed_weights_layout(const Kernels& kernels, Precision precision) {
  const auto id = [&](Precision each) {
    const LinearKernels& linear = kernels.linear(each);
    return std::string(linear.layout.operands) + "/nr" + std::to_string(linear.panel) + "/v" +
           std::to_string(linear.layout.version);
  };
  return id(precision) + ",head=" + id(head_precision(precision)) + ",weights=v" +
         std::to_string(packed_weights_version);
}

Norm::Norm(const float* weight, const float* bias, Index width, float eps)
    : weight_(weight, weight + width), bias_(bias, bias + width), eps_(eps) {}

std::vector<HeadLayer> head_layers(const PackedWeights& packed_weights, const std::vector<HeadLinear>& linears,
                                   const FindTensor& find, float eps) {
  std::vector<HeadLayer> head;
  for (const HeadLinear& linear : linears) {
    const std::string name = head_name(head.size());
    head.push_back({packed_weights.linear(name), linear.activation, std::nullopt});
    if (linear.norm) head.back().norm = norm_of(find, head_norm_name(head.size() - 1), linear.columns, eps);
  }
  return head;
}

Index packed_a_size(const std::vector<HeadLayer>& head, Index rows) {
  Index largest = 0;
  for (const HeadLayer& layer : head) largest = std::max(largest, size_of_packed_a(layer.dense, rows));
  return largest;
}

Model::Model(const EncoderShape& shape, const std::vector<HeadLinear>& linears, const FindTensor& find,
             const Kernels& kernels, Precision precision, std::span<const std::byte> packed, Team& team)
    : shape(shape),
      packed_weights(packed_weights_of(kernels, linears_of(shape, linears, precision), find, packed, team)),
      word(tensor(find, names::embed_word)),
      position(tensor(find, names::embed_position)),
      token_type(find(names::embed_token_type).data),
      embed_norm(norm_of(find, names::embed_norm, shape.width, shape.eps)) {
  for (Index i = 0; i < shape.layers; ++i) {
    const auto linear = [&](const char* name) { return packed_weights.linear(layer_name(i, name)); };
    const auto norm = [&](const char* name) { return norm_of(find, layer_name(i, name), shape.width, shape.eps); };
    layers.push_back({linear(names::qkv), linear(names::attention_out), norm(names::attention_norm),
                      linear(names::ffn_in), linear(names::ffn_out), norm(names::output_norm)});
  }
  head = head_layers(packed_weights, linears, find, shape.eps);
}

Index Model::packed_a_size(Index tokens, Index rows) const {
  Index largest = distilfast::packed_a_size(head, rows);
  const auto count = [&](const Dense& dense) { largest = std::max(largest, size_of_packed_a(dense, tokens)); };
  // All layers are alike, and attention_out has the K of qkv.
  for (const Layer& layer : layers) count(layer.qkv), count(layer.ffn_in), count(layer.ffn_out);
  return largest;
}

}  // namespace distilfast
