#include "cuda/model.h"

#include <stdexcept>

namespace distilfast::cuda {

namespace {

// Brings tensors to the device by canonical name; knows what every kind of layer consists of.
class Loader {
 public:
  Loader(const EncoderShape& shape, const FindTensor& find, Stream& stream)
      : shape_(shape), find_(find), stream_(stream) {}

  DeviceBuffer table(const std::string& name, bool needed) {
    const std::optional<HostTensor> tensor = find_(name);
    if (!tensor && needed) throw std::invalid_argument("The weights lack " + name + ".");
    return tensor ? on_device(*tensor) : DeviceBuffer();
  }
  Dense dense(const std::string& name, int n, int k, Precision precision) {
    const HostTensor weight = tensor(name + ".weight", static_cast<std::size_t>(n) * static_cast<std::size_t>(k));
    Dense dense{precision, DeviceBuffer(packed_linear_bytes(precision, n, k)), vector(name + ".bias", n), n, k};
    const DeviceBuffer plain = on_device(weight);
    pack_linear(precision, reinterpret_cast<const float*>(plain.data()), n, k, dense.weight.data(), stream_);
    if (precision == Precision::int8) pack_for_operands(name, plain, dense);
    stream_.wait();  // before `plain` goes
    return dense;
  }
  Norm norm(const std::string& name, int width) {
    return {vector(name + ".weight", width), vector(name + ".bias", width), width, shape_.eps};
  }
  Layer layer(const std::string& at) {
    const int d = shape_.width, f = shape_.ffn;
    const auto dense_of = [&](const char* name, int n, int k) { return dense(at + name, n, k, shape_.precision); };
    return {dense_of("qkv", 3 * d, d), dense_of("attention_out", d, d), norm(at + "attention_norm", d),
            dense_of("ffn_in", f, d),  dense_of("ffn_out", d, f),       norm(at + "output_norm", d)};
  }

 private:
  HostTensor tensor(const std::string& name, std::size_t size) const {
    const std::optional<HostTensor> tensor = find_(name);
    if (!tensor) throw std::invalid_argument("The weights lack " + name + ".");
    if (tensor->size != size)
      throw std::invalid_argument(name + " holds " + std::to_string(tensor->size) + " numbers and must hold " +
                                  std::to_string(size) + ".");
    return *tensor;
  }
  DeviceBuffer on_device(const HostTensor& tensor) {
    DeviceBuffer buffer(tensor.size * sizeof(float));
    upload(buffer.data(), tensor.data, buffer.bytes(), stream_);
    return buffer;
  }
  DeviceBuffer vector(const std::string& name, int size) {
    return on_device(tensor(name, static_cast<std::size_t>(size)));
  }
  void pack_for_operands(const std::string& name, const DeviceBuffer& plain, Dense& dense) {
    const HostTensor channels = tensor(name + ".outlier_channels", static_cast<std::size_t>(wide_channels(dense.k)));
    const std::vector<std::int32_t> numbers(channels.data, channels.data + channels.size);
    const DeviceBuffer centre = vector(name + ".channel_shift", dense.k);
    DeviceBuffer wide(numbers.size() * sizeof(std::int32_t));
    upload(wide.data(), numbers.data(), wide.bytes(), stream_);
    dense.int8_bias = vector(name + ".shifted_bias", dense.n);
    dense.int8_weight = DeviceBuffer(packed_int8_bytes(dense.n, dense.k));
    pack_int8(reinterpret_cast<const float*>(plain.data()), reinterpret_cast<const float*>(centre.data()),
              reinterpret_cast<const std::int32_t*>(wide.data()), dense.n, dense.k, dense.int8_weight.data(), stream_);
    stream_.wait();  // before `centre` and `wide` go
  }

  const EncoderShape& shape_;
  const FindTensor& find_;
  Stream& stream_;
};

Precision head_precision(const EncoderShape& shape) {
  return shape.precision == Precision::int8 ? Precision::bf16 : shape.precision;
}

std::size_t bytes_of(const Dense& dense) {
  return dense.weight.bytes() + dense.bias.bytes() + dense.int8_weight.bytes() + dense.int8_bias.bytes();
}
std::size_t bytes_of(const Norm& norm) { return norm.weight.bytes() + norm.bias.bytes(); }

}  // namespace

Model::Model(const EncoderShape& shape, const std::vector<HeadLinear>& head_linears, const FindTensor& find,
             Stream& stream)
    : shape(shape) {
  if (const char* misfit = attention_misfit(shape.width / shape.heads)) throw std::invalid_argument(misfit);
  if (const char* misfit = layer_norm_misfit(shape.width)) throw std::invalid_argument(misfit);
  load_kernels();
  Loader loader(shape, find, stream);
  word = loader.table("embed.word", true);
  position = loader.table("embed.position", true);
  token_type = loader.table("embed.token_type", false);
  embed_norm = loader.norm("embed.norm", shape.width);
  for (int i = 0; i < shape.layers; ++i) layers.push_back(loader.layer("layer." + std::to_string(i) + "."));
  int width = shape.width;
  for (const HeadLinear& linear : head_linears) {
    const std::string name = "head." + std::to_string(head.size());
    head.push_back({loader.dense(name, linear.columns, width, head_precision(shape)), linear.activation, std::nullopt});
    if (linear.norm) head.back().norm = loader.norm(name + ".norm", linear.columns);
    width = linear.columns;
  }
  stream.wait();
}

void Model::load_kernels() const {
  load_take_inputs();
  load_embed(shape.precision);
  load_linear(shape.precision);
  load_linear(head_precision(shape));
  if (shape.precision == Precision::int8) load_make_operands();
  load_attention(shape.precision, shape.width / shape.heads);
  load_add_layer_norm(shape.precision);
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
