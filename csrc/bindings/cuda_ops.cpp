// The operations of distilfast._cuda alone, for tests and benchmarks: the same functions that the encoder calls.
#include "bindings/common.h"
#include "cuda/kernels.h"

namespace distilfast::cuda {
namespace {

// Rows of the precision's elements as raw bytes, [rows, row_stride(columns) * element size].
using Bytes = py::array_t<std::uint8_t, py::array::c_style>;

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

// What an operation leaves: fp32 [*, columns] and T [rows, row_stride(columns)]. Elements between `columns` and the
// stride are never written, so each row comes back without them.
class Results {
 public:
  Results(Precision precision, Index fp32_rows, Index low_rows, Index columns)
      : columns_(columns),
        size_(static_cast<Index>(element_size(precision))),
        stride_(row_stride(static_cast<int>(columns)) * size_),
        fp32_rows_(fp32_rows),
        low_rows_(low_rows),
        fp32_(static_cast<std::size_t>(fp32_rows * columns) * sizeof(float)),
        low_(static_cast<std::size_t>(low_rows * stride_)) {}

  float* fp32() { return reinterpret_cast<float*>(fp32_.data()); }
  char* low() { return low_.data(); }

  // `rows` of each of the planes that fp32 consists of, and of T where there is room for it.
  py::tuple fetch(Index rows, Index planes, Stream& stream) const {
    const Index low_rows = low_rows_ ? rows : 0, plane = planes ? fp32_rows_ / planes : 0;
    Floats fp32({planes * rows, columns_});
    Bytes low({low_rows, columns_ * size_});
    for (Index i = 0; i < planes; ++i)
      download(fp32.mutable_data() + i * rows * columns_, floats(fp32_) + i * plane * columns_,
               static_cast<std::size_t>(rows * columns_) * sizeof(float), stream);
    for (Index row = 0; row < low_rows; ++row)
      download(low.mutable_data() + row * columns_ * size_, low_.data() + row * stride_,
               static_cast<std::size_t>(columns_ * size_), stream);
    stream.wait();
    return py::make_tuple(fp32, low);
  }

 private:
  Index columns_, size_, stride_, fp32_rows_, low_rows_;
  DeviceBuffer fp32_, low_;
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
         results.low()},
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
  // `centre` [K] and `wide` [wide_channels(K)]: for operands, in which case `bias` is the centred one.
  BoundLinear(const Floats& weight, const Floats& bias, const std::string& precision,
              const std::optional<Floats>& centre, const std::optional<Ints>& wide)
      : precision_(gpu_precision_named(precision)), reads_operands_(centre || wide) {
    require(weight.ndim() == 2 && bias.size() == weight.shape(0), "weight [N, K] and bias [N] do not belong together.");
    n_ = static_cast<int>(weight.shape(0)), k_ = static_cast<int>(weight.shape(1));
    Stream stream;
    const DeviceBuffer plain = to_device(weight, stream);
    bias_ = to_device(bias, stream);
    if (reads_operands_) {
      pack_for_operands(plain, centre, wide, stream);
    } else {
      weight_ = DeviceBuffer(packed_linear_bytes(precision_, n_, k_));
      pack_linear(precision_, floats(plain), n_, k_, weight_.data(), stream);
    }
    stream.wait();
  }

  // `x` [*, row_stride(K)] raw; (fp32 [splits * rows, N], T [rows, N] raw), the second empty with several splits.
  py::tuple operator()(const Bytes& x, const std::string& activation, const std::optional<Ints>& gather,
                       std::optional<int> most_rows, int splits) const {
    check_columns(x, precision_, k_);
    Stream stream;
    const Index rows = gather ? gather->size() : x.shape(0), most = std::max<Index>(most_rows.value_or(0), rows);
    require(precision_ != Precision::int8 || (most > most_weight_only_rows) == reads_operands_,
            "int8 of more than 64 rows needs centre and wide, and of less none.");
    const DeviceBuffer input = to_device(x, stream), index = to_device(gather, stream),
                       count = number_on_device(rows, stream);
    const DeviceBuffer operands = reads_operands_ ? made_operands(input, index, count, most, stream) : DeviceBuffer();
    Results results(precision_, splits * most, splits == 1 ? rows : 0, n_);
    linear(
        {precision_, ints(count), reads_operands_ ? nullptr : ints(index), (reads_operands_ ? operands : input).data(),
         packed(), activation_named(activation), splits, most * n_, results.fp32(), results.low()},
        static_cast<int>(most), stream);
    return results.fetch(rows, splits, stream);
  }

  // The operands of `x` [rows, row_stride(K)] raw: (units [rows, *], scales bf16 [groups, rows] as bits).
  py::tuple operands(const Bytes& x) const {
    require(reads_operands_, "Operands are made for int8 with centre and wide.");
    Stream stream;
    const Index rows = x.shape(0), row_bytes = operand_row_bytes(k_), stride = row_stride(static_cast<int>(rows)) * 2;
    const DeviceBuffer input = to_device(x, stream), count = number_on_device(rows, stream);
    const DeviceBuffer made = made_operands(input, DeviceBuffer(), count, rows, stream);
    const Index groups = (static_cast<Index>(made.bytes()) - rows * row_bytes) / stride;
    Bytes units({rows, row_bytes});
    py::array_t<std::uint16_t, py::array::c_style> scales({groups, rows});
    download(units.mutable_data(), made.data(), static_cast<std::size_t>(units.nbytes()), stream);
    for (Index group = 0; group < groups; ++group)
      download(scales.mutable_data() + group * rows, made.data() + rows * row_bytes + group * stride,
               static_cast<std::size_t>(rows) * 2, stream);
    stream.wait();
    return py::make_tuple(units, scales);
  }

  int splits(int most_rows) const { return linear_splits(precision_, n_, k_, most_rows); }

  // LN(x Wt + b + residual[gather]) for the rows x[gather]; (fp32 [rows, N], T [rows, N] raw), the fp32 where a
  // residual that is not gathered lay.
  py::tuple add_layer_norm(const Bytes& x, const Floats& residual, const Floats& weight, const Floats& bias, float eps,
                           const std::optional<Ints>& gather, std::optional<int> most_rows) const {
    if (const char* misfit = linear_add_layer_norm_misfit(precision_, n_)) throw std::invalid_argument(misfit);
    check_columns(x, precision_, k_);
    require(residual.ndim() == 2 && residual.shape(0) == x.shape(0) && residual.shape(1) == n_ && weight.size() == n_ &&
                bias.size() == n_,
            "residual [*, N], weight [N] and bias [N] do not belong to x and the linear.");
    Stream stream;
    const Index rows = gather ? gather->size() : x.shape(0), most = std::max<Index>(most_rows.value_or(0), rows);
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
                            results.low()}},
                          static_cast<int>(most), stream);
    return results.fetch(rows, 1, stream);
  }

 private:
  PackedLinear packed() const { return {weight_.data(), floats(bias_), n_, k_}; }

  void pack_for_operands(const DeviceBuffer& plain, const std::optional<Floats>& centre,
                         const std::optional<Ints>& wide, Stream& stream) {
    require(
        precision_ == Precision::int8 && centre && centre->size() == k_ && wide && wide->size() == wide_channels(k_),
        "centre [K] and wide [wide_channels(K)] are for int8.");
    const DeviceBuffer centres = to_device(*centre, stream), channels = to_device(*wide, stream);
    weight_ = DeviceBuffer(packed_int8_bytes(n_, k_));
    pack_int8(floats(plain), floats(centres), ints(channels), n_, k_, weight_.data(), stream);
    stream.wait();  // before `centres` and `channels` go
  }

  DeviceBuffer made_operands(const DeviceBuffer& x, const DeviceBuffer& gather, const DeviceBuffer& count, Index most,
                             Stream& stream) const {
    DeviceBuffer operands(operand_bytes(k_, static_cast<int>(most)));
    make_operands({ints(count), ints(gather), x.data(), packed(), operands.data()}, static_cast<int>(most), stream);
    return operands;
  }

  Precision precision_;
  bool reads_operands_;
  int n_, k_;
  DeviceBuffer weight_, bias_;
};

// `qkv` [T, row_stride(3D)] raw; (T [T, D] raw, the probabilities, flat).
py::tuple attention_alone(const Bytes& qkv, const Ints& cu_seqlens, int heads, int head_size,
                          const std::string& precision, std::optional<int> most_rows) {
  if (const char* misfit = attention_misfit(head_size)) throw std::invalid_argument(misfit);
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
  attention({type, ints(sequences), ints(ends), input.data(), heads, head_size, results.low(),
             reinterpret_cast<const std::int64_t*>(starts.data()), reinterpret_cast<float*>(weights.data())},
            most_rows.value_or(static_cast<int>(tokens)), stream);
  Floats probabilities(all);
  download(probabilities.mutable_data(), weights.data(), weights.bytes(), stream);
  return py::make_tuple(results.fetch(tokens, 0, stream)[1], probabilities);
}

// `x` [splits, rows, D]; (fp32 [rows, D], T [rows, D] raw).
py::tuple add_layer_norm_alone(const Floats& x, const std::optional<Floats>& x_bias,
                               const std::optional<Floats>& residual, const std::optional<Ints>& gather,
                               const Floats& weight, const Floats& bias, float eps, const std::string& precision) {
  require(x.ndim() == 3 && x.shape(2) == weight.size() && bias.size() == weight.size(),
          "x [splits, T, D], weight [D] and bias [D] do not belong together.");
  Stream stream;
  const Precision type = gpu_precision_named(precision);
  const Index rows = x.shape(1);
  const auto count = number_on_device(rows, stream), parts = to_device(x, stream), add = to_device(x_bias, stream),
             rest = to_device(residual, stream), index = to_device(gather, stream), scale = to_device(weight, stream),
             shift = to_device(bias, stream);
  Results results(type, rows, rows, weight.size());
  add_layer_norm({type,
                  ints(count),
                  ints(index),
                  floats(parts),
                  static_cast<int>(x.shape(0)),
                  rows * x.shape(2),
                  floats(add),
                  floats(rest),
                  {floats(scale), floats(shift), static_cast<int>(weight.size()), eps},
                  nullptr,
                  results.fp32(),
                  results.low()},
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
           arg("weight"), arg("bias"), py::kw_only(), arg("precision"), arg("centre") = py::none(),
           arg("wide") = py::none())
      .def("operands", &BoundLinear::operands, arg("x"))
      .def("__call__", &BoundLinear::operator(), arg("x"), arg("activation") = "none", py::kw_only(),
           arg("gather") = py::none(), arg("most_rows") = py::none(), arg("splits") = 1)
      .def("add_layer_norm", &BoundLinear::add_layer_norm, arg("x"), arg("residual"), arg("weight"), arg("bias"),
           py::kw_only(), arg("eps"), arg("gather") = py::none(), arg("most_rows") = py::none())
      .def("splits", &BoundLinear::splits, arg("most_rows"));
  module.def("attention", &attention_alone, arg("qkv"), arg("cu_seqlens"), arg("heads"), arg("head_size"),
             py::kw_only(), arg("precision"), arg("most_rows") = py::none());
  module.def("add_layer_norm", &add_layer_norm_alone, arg("x"), arg("x_bias").none(true), arg("residual").none(true),
             arg("gather").none(true), arg("weight"), arg("bias"), py::kw_only(), arg("eps"), arg("precision"));
}

}  // namespace distilfast::cuda
