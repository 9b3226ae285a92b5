// The operations of distilfast._cuda alone, for tests and benchmarks: the same functions that the encoder calls.
#include "bindings/common.h"
#include "cuda/kernels.h"

namespace distilfast::cuda {
namespace {

template <class T>
DeviceBuffer to_device(const py::array_t<T, py::array::c_style>& array, Stream& stream) {
  DeviceBuffer buffer(static_cast<std::size_t>(array.nbytes()));
  upload(buffer.data(), array.data(), buffer.bytes(), stream);
  return buffer;
}

template <class T>
DeviceBuffer to_device(const std::optional<py::array_t<T, py::array::c_style>>& array, Stream& stream) {
  return array ? to_device(*array, stream) : DeviceBuffer();
}

DeviceBuffer number_on_device(Index number, Stream& stream) {
  return to_device(Ints(1, std::vector<std::int32_t>{static_cast<std::int32_t>(number)}.data()), stream);
}

const float* floats(const DeviceBuffer& buffer) { return reinterpret_cast<const float*>(buffer.data()); }
const std::int32_t* ints(const DeviceBuffer& buffer) { return reinterpret_cast<const std::int32_t*>(buffer.data()); }

// The outputs of an operation: fp32 [*, columns] and T [rows, row_stride(columns)]. Elements between `columns` and the
// stride are never written, so each row is fetched without them.
class Results {
 public:
  Results(Precision precision, Index fp32_rows, Index cast_rows, Index columns)
      : columns_(columns),
        size_(static_cast<Index>(element_size(precision))),
        stride_(row_stride(static_cast<int>(columns)) * size_),
        fp32_rows_(fp32_rows),
        cast_rows_(cast_rows),
        fp32_(static_cast<std::size_t>(fp32_rows * columns) * sizeof(float)),
        cast_(static_cast<std::size_t>(cast_rows * stride_)) {}

  float* fp32() { return reinterpret_cast<float*>(fp32_.data()); }
  char* cast() { return cast_.data(); }

  // The first `rows` of each of the `split_k` outputs in fp32, and of the output in T where there is one.
  py::tuple fetch(Index rows, Index split_k, Stream& stream) const {
    const Index cast_rows = cast_rows_ ? rows : 0, split_rows = split_k ? fp32_rows_ / split_k : 0;
    Floats fp32({split_k * rows, columns_});
    Bytes cast({cast_rows, columns_ * size_});
    for (Index i = 0; i < split_k; ++i)
      download(fp32.mutable_data() + i * rows * columns_, floats(fp32_) + i * split_rows * columns_,
               static_cast<std::size_t>(rows * columns_) * sizeof(float), stream);
    for (Index row = 0; row < cast_rows; ++row)
      download(cast.mutable_data() + row * columns_ * size_, cast_.data() + row * stride_,
               static_cast<std::size_t>(columns_ * size_), stream);
    stream.wait();
    return py::make_tuple(fp32, cast);
  }

 private:
  Index columns_, size_, stride_, fp32_rows_, cast_rows_;
  DeviceBuffer fp32_, cast_;
};

py::tuple embed_alone(const Ints& ids, const Ints& positions, const std::optional<Ints>& token_types,
                      const Floats& word, const Floats& position, const std::optional<Floats>& token_type,
                      const Floats& weight, const Floats& bias, float eps, const std::string& precision) {
  Stream stream;
  const Precision type = gpu_precision_named(precision);
  const Index tokens = ids.size();
  const auto count = number_on_device(tokens, stream), id = to_device(ids, stream), at = to_device(positions, stream),
             kind = to_device(token_types, stream), words = to_device(word, stream),
             places = to_device(position, stream), kinds = to_device(token_type, stream),
             scale = to_device(weight, stream), shift = to_device(bias, stream);
  Results results(type, tokens, tokens, weight.size());
  embed({type,
         ints(count),
         ints(id),
         ints(at),
         ints(kind),
         floats(words),
         floats(places),
         floats(kinds),
         {floats(scale), floats(shift), static_cast<int>(weight.size()), eps},
         results.fp32(),
         results.cast()},
        static_cast<int>(tokens), stream);
  return results.fetch(tokens, 1, stream);
}

void check_columns(const Bytes& x, Precision precision, int k) {
  require(x.ndim() == 2 && x.shape(1) == row_stride(k) * static_cast<Index>(element_size(precision)),
          "x does not have the weight's K columns.");
}

// A linear with its weight packed once.
class BoundLinear {
 public:
  // `channel_shift` [K] and `outliers` [outlier_channels(K)]: for W8A8, where `bias` is the shifted bias.
  BoundLinear(const Floats& weight, const Floats& bias, const std::string& precision,
              const std::optional<Floats>& channel_shift, const std::optional<Ints>& outliers)
      : precision_(gpu_precision_named(precision)), reads_packed_a_(channel_shift || outliers) {
    require(weight.ndim() == 2 && bias.size() == weight.shape(0), "weight [N, K] and bias [N] do not belong together.");
    n_ = static_cast<int>(weight.shape(0)), k_ = static_cast<int>(weight.shape(1));
    Stream stream;
    const DeviceBuffer plain = to_device(weight, stream);
    bias_ = to_device(bias, stream);
    if (reads_packed_a_) {
      pack_w8a8_of(plain, channel_shift, outliers, stream);
    } else {
      weight_ = DeviceBuffer(packed_linear_bytes(precision_, n_, k_));
      pack_linear(precision_, floats(plain), n_, k_, weight_.data(), stream);
    }
    stream.wait();
  }

  // `x` [*, row_stride(K)] raw; (fp32 [split_k * rows, N], T [rows, N] raw), the second empty with split-K.
  py::tuple operator()(const Bytes& x, const std::string& activation, const std::optional<Ints>& gather,
                       std::optional<int> bucket_rows, int split_k) const {
    check_columns(x, precision_, k_);
    Stream stream;
    const Index rows = gather ? gather->size() : x.shape(0), most = std::max<Index>(bucket_rows.value_or(0), rows);
    require(precision_ != Precision::int8 || (most > max_w8a16_rows) == reads_packed_a_,
            "int8 needs channel_shift and outlier_channels for more than 64 rows, and takes neither for fewer.");
    const DeviceBuffer input = to_device(x, stream), index = to_device(gather, stream),
                       count = number_on_device(rows, stream);
    const DeviceBuffer packed_a = reads_packed_a_ ? quantized(input, index, count, most, stream) : DeviceBuffer();
    Results results(precision_, split_k * most, split_k == 1 ? rows : 0, n_);
    linear(
        {precision_, ints(count), reads_packed_a_ ? nullptr : ints(index), (reads_packed_a_ ? packed_a : input).data(),
         packed(), activation_named(activation), split_k, most * n_, results.fp32(), results.cast()},
        static_cast<int>(most), stream);
    return results.fetch(rows, split_k, stream);
  }

  // Packed A of `x` [rows, row_stride(K)] raw: (bytes [rows, *], scales bf16 [groups, rows] as bits).
  py::tuple quantize_activations(const Bytes& x) const {
    require(reads_packed_a_, "Activations are quantised for int8 with channel_shift and outlier_channels.");
    Stream stream;
    const Index rows = x.shape(0), row_bytes = packed_a_row_bytes(k_), stride = row_stride(static_cast<int>(rows)) * 2;
    const DeviceBuffer input = to_device(x, stream), count = number_on_device(rows, stream);
    const DeviceBuffer made = quantized(input, DeviceBuffer(), count, rows, stream);
    const Index groups = (static_cast<Index>(made.bytes()) - rows * row_bytes) / stride;
    Bytes bytes({rows, row_bytes});
    py::array_t<std::uint16_t, py::array::c_style> scales({groups, rows});
    download(bytes.mutable_data(), made.data(), static_cast<std::size_t>(bytes.nbytes()), stream);
    for (Index group = 0; group < groups; ++group)
      download(scales.mutable_data() + group * rows, made.data() + rows * row_bytes + group * stride,
               static_cast<std::size_t>(rows) * 2, stream);
    stream.wait();
    return py::make_tuple(bytes, scales);
  }

  int split_k(int bucket_rows) const { return linear_split_k(precision_, n_, k_, bucket_rows); }

  // LN(x Wt + b + residual[gather]) for the rows x[gather]; (fp32 [rows, N], T [rows, N] raw). Without a gather the
  // fp32 output overwrites the residual, as in the encoder.
  py::tuple add_layer_norm(const Bytes& x, const Floats& residual, const Floats& weight, const Floats& bias, float eps,
                           const std::optional<Ints>& gather, std::optional<int> bucket_rows) const {
    if (const char* reason = linear_add_layer_norm_unsupported_reason(precision_, n_))
      throw std::invalid_argument(reason);
    check_columns(x, precision_, k_);
    require(residual.ndim() == 2 && residual.shape(0) == x.shape(0) && residual.shape(1) == n_ && weight.size() == n_ &&
                bias.size() == n_,
            "residual [*, N], weight [N] and bias [N] do not belong to x and the linear.");
    Stream stream;
    const Index rows = gather ? gather->size() : x.shape(0), most = std::max<Index>(bucket_rows.value_or(0), rows);
    const DeviceBuffer input = to_device(x, stream), rest = to_device(residual, stream),
                       index = to_device(gather, stream), count = number_on_device(rows, stream),
                       scale = to_device(weight, stream), shift = to_device(bias, stream);
    Results results(precision_, rows, rows, n_);
    if (!gather) upload(results.fp32(), residual.data(), rest.bytes(), stream);
    linear_add_layer_norm({{precision_,
                            ints(count),
                            ints(index),
                            input.data(),
                            {weight_.data(), floats(bias_), n_, k_},
                            Activation::none,
                            1,
                            0,
                            nullptr,
                            nullptr},
                           {precision_,
                            ints(count),
                            ints(index),
                            nullptr,
                            1,
                            0,
                            nullptr,
                            gather ? floats(rest) : results.fp32(),
                            {floats(scale), floats(shift), n_, eps},
                            nullptr,
                            results.fp32(),
                            results.cast()}},
                          static_cast<int>(most), stream);
    return results.fetch(rows, 1, stream);
  }

 private:
  PackedLinear packed() const { return {weight_.data(), floats(bias_), n_, k_}; }

  void pack_w8a8_of(const DeviceBuffer& plain, const std::optional<Floats>& channel_shift,
                    const std::optional<Ints>& outliers, Stream& stream) {
    require(precision_ == Precision::int8 && channel_shift && channel_shift->size() == k_ && outliers &&
                outliers->size() == outlier_channels(k_),
            "channel_shift [K] and outlier_channels [outlier_channels(K)] are for int8.");
    const DeviceBuffer shifts = to_device(*channel_shift, stream), channels = to_device(*outliers, stream);
    weight_ = DeviceBuffer(packed_w8a8_bytes(n_, k_));
    pack_w8a8(floats(plain), floats(shifts), ints(channels), n_, k_, weight_.data(), stream);
    stream.wait();  // before `shifts` and `channels` are freed
  }

  DeviceBuffer quantized(const DeviceBuffer& x, const DeviceBuffer& gather, const DeviceBuffer& count, Index most,
                         Stream& stream) const {
    DeviceBuffer packed_a(packed_a_bytes(k_, static_cast<int>(most)));
    cuda::quantize_activations({ints(count), ints(gather), x.data(), packed(), packed_a.data()}, static_cast<int>(most),
                               stream);
    return packed_a;
  }

  Precision precision_;
  bool reads_packed_a_;
  int n_, k_;
  DeviceBuffer weight_, bias_;
};

// `qkv` [T, row_stride(3D)] raw; (T [T, D] raw, the probabilities, flat).
py::tuple attention_alone(const Bytes& qkv, const Ints& cu_seqlens, int heads, int head_size,
                          const std::string& precision, std::optional<int> bucket_rows) {
  if (const char* reason = attention_unsupported_reason(head_size)) throw std::invalid_argument(reason);
  Stream stream;
  const Precision type = gpu_precision_named(precision);
  const Index tokens = qkv.shape(0), width = heads * head_size, count = cu_seqlens.size() - 1;
  require(qkv.shape(1) == row_stride(static_cast<int>(3 * width)) * static_cast<Index>(element_size(type)),
          "qkv [T, 3D] does not hold this many heads.");
  py::array_t<std::int64_t, py::array::c_style> begins(count);
  Index all = 0;
  for (Index b = 0; b < count; ++b) {
    begins.mutable_at(b) = all;
    const Index length = cu_seqlens.at(b + 1) - cu_seqlens.at(b);
    all += heads * length * length;
  }
  const DeviceBuffer input = to_device(qkv, stream), ends = to_device(cu_seqlens, stream),
                     starts = to_device(begins, stream), sequences = number_on_device(count, stream);
  const DeviceBuffer weights(static_cast<std::size_t>(all) * sizeof(float));
  Results results(type, 0, tokens, width);
  attention({type, ints(sequences), ints(ends), input.data(), heads, head_size, results.cast(),
             reinterpret_cast<const std::int64_t*>(starts.data()), reinterpret_cast<float*>(weights.data())},
            bucket_rows.value_or(static_cast<int>(tokens)), stream);
  Floats probabilities(all);
  download(probabilities.mutable_data(), weights.data(), weights.bytes(), stream);
  return py::make_tuple(results.fetch(tokens, 0, stream)[1], probabilities);
}

// `x` [split_k, rows, D]; (fp32 [rows, D], T [rows, D] raw).
py::tuple add_layer_norm_alone(const Floats& x, const std::optional<Floats>& x_bias,
                               const std::optional<Floats>& residual, const std::optional<Ints>& gather,
                               const Floats& weight, const Floats& bias, float eps, const std::string& precision) {
  require(x.ndim() == 3 && x.shape(2) == weight.size() && bias.size() == weight.size(),
          "x [split_k, T, D], weight [D] and bias [D] do not belong together.");
  Stream stream;
  const Precision type = gpu_precision_named(precision);
  const Index rows = x.shape(1);
  const auto count = number_on_device(rows, stream), splits = to_device(x, stream), add = to_device(x_bias, stream),
             rest = to_device(residual, stream), index = to_device(gather, stream), scale = to_device(weight, stream),
             shift = to_device(bias, stream);
  Results results(type, rows, rows, weight.size());
  add_layer_norm({type,
                  ints(count),
                  ints(index),
                  floats(splits),
                  static_cast<int>(x.shape(0)),
                  rows * x.shape(2),
                  floats(add),
                  floats(rest),
                  {floats(scale), floats(shift), static_cast<int>(weight.size()), eps},
                  nullptr,
                  results.fp32(),
                  results.cast()},
                 static_cast<int>(rows), stream);
  return results.fetch(rows, 1, stream);
}

}  // namespace

void bind_operations(py::module_& module) {
  using py::arg;
  module.def("embed", &embed_alone, arg("ids"), arg("positions"), arg("token_types").none(true), arg("word"),
             arg("position"), arg("token_type").none(true), arg("weight"), arg("bias"), py::kw_only(), arg("eps"),
             arg("precision"));
  py::class_<BoundLinear>(module, "Linear")
      .def(py::init<const Floats&, const Floats&, const std::string&, const std::optional<Floats>&,
                    const std::optional<Ints>&>(),
           arg("weight"), arg("bias"), py::kw_only(), arg("precision"), arg("channel_shift") = py::none(),
           arg("outlier_channels") = py::none())
      .def("quantize_activations", &BoundLinear::quantize_activations, arg("x"))
      .def("__call__", &BoundLinear::operator(), arg("x"), arg("activation") = "none", py::kw_only(),
           arg("gather") = py::none(), arg("bucket_rows") = py::none(), arg("split_k") = 1)
      .def("add_layer_norm", &BoundLinear::add_layer_norm, arg("x"), arg("residual"), arg("weight"), arg("bias"),
           py::kw_only(), arg("eps"), arg("gather") = py::none(), arg("bucket_rows") = py::none())
      .def("split_k", &BoundLinear::split_k, arg("bucket_rows"));
  module.def("attention", &attention_alone, arg("qkv"), arg("cu_seqlens"), arg("heads"), arg("head_size"),
             py::kw_only(), arg("precision"), arg("bucket_rows") = py::none());
  module.def("add_layer_norm", &add_layer_norm_alone, arg("x"), arg("x_bias").none(true), arg("residual").none(true),
             arg("gather").none(true), arg("weight"), arg("bias"), py::kw_only(), arg("eps"), arg("precision"));
}

}  // namespace distilfast::cuda
