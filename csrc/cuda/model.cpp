#include "cuda/model.h"

#include <stdexcept>

namespace distilfast::cuda {

namespace {

// Uploads and packs tensors by canonical name.
class Loader {
 public:
  Loader(const EncoderShape& shape, const FindTensor& find, Stream& stream)
      : shape_(shape), find_(find), stream_(stream) {}

  DeviceBuffer table(const std::string& name) { return on_device(require_tensor(find_, name)); }
  DeviceBuffer table_or_none(const std::string& name) {
    const HostTensor tensor = find_(name);
    return tensor.data ? on_device(tensor) : DeviceBuffer();
  }
  Dense dense(const LinearShape& linear) {
    const auto& [name, n, k, precision] = linear;
    const HostTensor weight = tensor(name + ".weight", static_cast<std::size_t>(n) * static_cast<std::size_t>(k));
    Dense dense{precision, DeviceBuffer(packed_linear_bytes(precision, n, k)), vector(name + ".bias", n), n, k};
    const DeviceBuffer plain = on_device(weight);
    pack_linear(precision, reinterpret_cast<const float*>(plain.data()), n, k, dense.weight.data(), stream_);
    if (precision == Precision::int8) pack_w8a8_of(name, plain, dense);
    stream_.wait();  // before `plain` is freed
    return dense;
  }
  Norm norm(const std::string& name, int width) {
    return {vector(name + ".weight", width), vector(name + ".bias", width), width, shape_.eps};
  }
  Layer layer(int i, Precision precision) {
    const auto [qkv, attention_out, ffn_in, ffn_out] = layer_linears(shape_, i, precision);
    return {dense(qkv),    dense(attention_out), norm(layer_name(i, names::attention_norm), shape_.width),
            dense(ffn_in), dense(ffn_out),       norm(layer_name(i, names::output_norm), shape_.width)};
  }

 private:
  HostTensor tensor(const std::string& name, std::size_t size) const {
    const HostTensor tensor = require_tensor(find_, name);
    if (tensor.size != size)
      throw std::invalid_argument(name + " holds " + std::to_string(tensor.size) + " numbers and must hold " +
                                  std::to_string(size) + ".");
    return tensor;
  }
  DeviceBuffer on_device(const HostTensor& tensor) {
    DeviceBuffer buffer(tensor.size * sizeof(float));
    upload(buffer.data(), tensor.data, buffer.bytes(), stream_);
    return buffer;
  }
  DeviceBuffer vector(const std::string& name, int size) {
    return on_device(tensor(name, static_cast<std::size_t>(size)));
  }
  void pack_w8a8_of(const std::string& name, const DeviceBuffer& plain, Dense& dense) {
    const HostTensor channels = tensor(name + ".outlier_channels", static_cast<std::size_t>(outlier_channels(dense.k)));
    const std::vector<std::int32_t> numbers(channels.data, channels.data + channels.size);
    const DeviceBuffer channel_shift = vector(name + ".channel_shift", dense.k);
    DeviceBuffer outliers(numbers.size() * sizeof(std::int32_t));
    upload(outliers.data(), numbers.data(), outliers.bytes(), stream_);
    dense.w8a8_bias = vector(name + ".shifted_bias", dense.n);
    dense.w8a8_weight = DeviceBuffer(packed_w8a8_bytes(dense.n, dense.k));
    pack_w8a8(reinterpret_cast<const float*>(plain.data()), reinterpret_cast<const float*>(channel_shift.data()),
              reinterpret_cast<const std::int32_t*>(outliers.data()), dense.n, dense.k, dense.w8a8_weight.data(),
              stream_);
    stream_.wait();  // before the buffers are freed
  }

  const EncoderShape& shape_;
  const FindTensor& find_;
  Stream& stream_;
};

std::size_t bytes_of(const Dense& dense) {
  return dense.weight.bytes() + dense.bias.bytes() + dense.w8a8_weight.bytes() + dense.w8a8_bias.bytes();
}
std::size_t bytes_of(const Norm& norm) { return norm.weight.bytes() + norm.bias.bytes(); }

}  // namespace

Model::Model(const EncoderShape& shape, const std::vector<HeadLinear>& linears, const FindTensor& find,
             Precision precision, Stream& stream)
    : shape(shape), precision(precision) {
  if (const char* reason = attention_unsupported_reason(shape.width / shape.heads)) throw std::invalid_argument(reason);
  if (const char* reason = layer_norm_unsupported_reason(shape.width)) throw std::invalid_argument(reason);
  load_kernels();
  Loader loader(shape, find, stream);
  word = loader.table(names::embed_word);
  position = loader.table(names::embed_position);
  token_type = loader.table_or_none(names::embed_token_type);
  embed_norm = loader.norm(names::embed_norm, shape.width);
  for (int i = 0; i < shape.layers; ++i) layers.push_back(loader.layer(i, precision));
  for (const LinearShape& linear : head_linears(shape.width, linears, precision)) {
    const HeadLinear& source = linears[head.size()];
    head.push_back({loader.dense(linear), source.activation, std::nullopt});
    if (source.norm) head.back().norm = loader.norm(head_norm_name(head.size() - 1), linear.n);
  }
  stream.wait();
}

void Model::load_kernels() const {
  load_unpack_device_batch();
  load_embed(precision);
  load_linear(precision);
  load_linear(head_precision(precision));
  if (precision == Precision::int8) load_quantize_activations();
  load_attention(precision, shape.width / shape.heads);
  load_add_layer_norm(precision);
}

std::size_t Model::bytes() const {
  std::size_t bytes = word.bytes() + position.bytes() + token_type.bytes() + bytes_of(*embed_norm);
  for (const Layer& layer : layers)
    bytes += bytes_of(layer.qkv) + bytes_of(layer.attention_out) + bytes_of(layer.attention_norm) +
             bytes_of(layer.ffn_in) + bytes_of(layer.ffn_out) + bytes_of(layer.output_norm);
  for (const HeadLayer& layer : head) bytes += bytes_of(layer.dense) + (layer.norm ? bytes_of(*layer.norm) : 0);
  return bytes;
}

}  // namespace distilfast::cuda
