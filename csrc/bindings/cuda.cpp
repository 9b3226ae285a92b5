// distilfast._cuda: numpy buffers to pointers and back, the GIL released while the device works. No arithmetic.
//
// The tests build it a second time, under another name and over the simulated device (DISTILFAST_CUDA_MODULE).
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <deque>
#include <map>
#include <variant>

#include "cuda/encoder.h"

#ifndef DISTILFAST_CUDA_MODULE
#define DISTILFAST_CUDA_MODULE _cuda
#endif

namespace py = pybind11;

namespace distilfast::cuda {
namespace {

using Floats = py::array_t<float, py::array::c_style>;
using Ints = py::array_t<std::int32_t, py::array::c_style>;
// Rows of the precision's elements as raw bytes, [rows, row_stride(columns) * element size].
using Bytes = py::array_t<std::uint8_t, py::array::c_style>;

template <class Value>
Value named(const std::map<std::string, Value>& values, const std::string& name, const char* kind) {
  const auto found = values.find(name);
  if (found == values.end()) throw std::invalid_argument(std::string(kind) + " '" + name + "' is not known.");
  return found->second;
}

Activation activation_named(const std::string& name) {
  static const std::map<std::string, Activation> names = {
      {"none", Activation::none}, {"gelu", Activation::gelu}, {"relu", Activation::relu}, {"tanh", Activation::tanh}};
  return named(names, name, "Activation");
}

Precision precision_named(const std::string& name) {
  static const std::map<std::string, Precision> names = {
      {"fp32", Precision::fp32}, {"fp16", Precision::fp16}, {"bf16", Precision::bf16}, {"int8", Precision::int8}};
  return named(names, name, "Precision");
}

void require(bool condition, const char* sentence) {
  if (!condition) throw std::invalid_argument(sentence);
}

const std::int32_t* data_or_null(const std::optional<Ints>& array) { return array ? array->data() : nullptr; }

// ---- results that stay on the device

// The structs of DLPack (dlpack.h 0.8), which every array library agrees on.
struct DLDevice {
  std::int32_t type, id;
};
struct DLDataType {
  std::uint8_t code, bits;
  std::uint16_t lanes;
};
struct DLTensor {
  void* data;
  DLDevice device;
  std::int32_t dimensions;
  DLDataType type;
  std::int64_t *shape, *strides;
  std::uint64_t byte_offset;
};
struct DLManagedTensor {
  DLTensor tensor;
  void* context;
  void (*deleter)(DLManagedTensor*);
};

// fp32 [rows, columns] in device memory, which lives as long as anyone holds it; for numpy's kin by
// `__cuda_array_interface__` and DLPack.
class DeviceArray {
 public:
  DeviceArray(std::shared_ptr<DeviceOutput> owner, const float* data, Index rows, Index columns)
      : owner_(std::move(owner)), data_(data), shape_{rows, columns} {}

  py::tuple shape() const { return py::make_tuple(shape_[0], shape_[1]); }

  void wait() const {
    py::gil_scoped_release release;
    owner_->wait();
  }

  py::dict cuda_array_interface() const {
    py::dict facts;
    facts["shape"] = shape();
    facts["typestr"] = "<f4";
    facts["data"] = py::make_tuple(reinterpret_cast<std::uintptr_t>(data_), false);
    facts["strides"] = py::none();
    facts["stream"] = py::none();  // the caller's stream is already behind the numbers
    facts["version"] = 3;
    return facts;
  }

  py::tuple dlpack_device() const { return py::make_tuple(dlpack_device_type, owner_->device()); }

  // `stream`: the reader's; none: the default one, as DLPack has it; -1: it needs no order.
  py::capsule dlpack(const std::optional<std::intptr_t>& stream) const {
    if (stream != -1) owner_->share_with(static_cast<StreamHandle>(stream.value_or(0)));
    struct Exported {
      DLManagedTensor managed;
      DeviceArray array;
    };
    auto* exported = new Exported{{}, *this};
    DLTensor& tensor = exported->managed.tensor;
    tensor = {const_cast<float*>(data_),
              {dlpack_device_type, owner_->device()},
              2,
              {2, 32, 1},
              exported->array.shape_,
              nullptr,
              0};
    exported->managed.context = exported;
    exported->managed.deleter = [](DLManagedTensor* self) { delete static_cast<Exported*>(self->context); };
    // A reader renames the capsule and deletes the tensor itself; a capsule that no one has read does it here.
    return py::capsule(&exported->managed, "dltensor", [](PyObject* capsule) {
      if (!PyCapsule_IsValid(capsule, "dltensor")) return;
      auto* managed = static_cast<DLManagedTensor*>(PyCapsule_GetPointer(capsule, "dltensor"));
      managed->deleter(managed);
    });
  }

 private:
  std::shared_ptr<DeviceOutput> owner_;
  const float* data_;
  Index shape_[2];
};

// ---- a caller's integers that are on the device

// One dimension of int32 or int64, which is held as long as this lives.
class DeviceIntegers {
 public:
  // `stream`: where they are read. Throws std::invalid_argument, which calls them `name`.
  DeviceIntegers(const py::object& array, const std::string& name, int device, StreamHandle stream)
      : name_(name), device_(device), held_(array) {
    if (py::hasattr(array, "__dlpack__") && py::hasattr(array, "__dlpack_device__"))
      read_dlpack(array, stream);
    else if (py::hasattr(array, "__cuda_array_interface__"))
      read_interface(array.attr("__cuda_array_interface__"));
    else
      refuse("has neither DLPack nor __cuda_array_interface__; an array on the GPU is needed");
    if (reinterpret_cast<std::uintptr_t>(values_.data) % (values_.wide ? 8 : 4))
      refuse("is not aligned to its numbers");
  }
  DeviceIntegers(const DeviceIntegers&) = delete;
  DeviceIntegers& operator=(const DeviceIntegers&) = delete;

  const Integers& values() const { return values_; }
  Index size() const { return size_; }
  const std::optional<StreamHandle>& producer() const { return producer_; }

 private:
  struct Delete {
    void operator()(DLManagedTensor* tensor) const {
      if (tensor->deleter) tensor->deleter(tensor);
    }
  };

  [[noreturn]] void refuse(const std::string& why) const { throw std::invalid_argument(name_ + " " + why + "."); }

  void check_device(int device) const {
    if (device != device_)
      refuse("lies on device " + std::to_string(device) + " and the model on device " + std::to_string(device_));
  }
  void check_shape(std::size_t dimensions, Index stride, Index step) const {
    if (dimensions != 1) refuse("has " + std::to_string(dimensions) + " dimensions and not 1");
    if (size_ > 1 && stride != step) refuse("is not contiguous");
  }

  void read_dlpack(const py::object& array, StreamHandle stream) {
    const auto [type, device] = array.attr("__dlpack_device__")().cast<std::pair<int, int>>();
    if (type != dlpack_device_type) refuse("does not lie on a CUDA device");
    check_device(device);
    // DLPack calls the default stream 1; 0 may be taken for any.
    const bool has_streams = dlpack_device_type == 2;
    const py::object reader = has_streams ? py::cast(std::max<StreamHandle>(stream, 1)) : py::none();
    const py::capsule capsule = array.attr("__dlpack__")(py::arg("stream") = reader);
    managed_.reset(static_cast<DLManagedTensor*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor")));
    if (!managed_) throw py::error_already_set();
    PyCapsule_SetName(capsule.ptr(), "used_dltensor");
    const DLTensor& tensor = managed_->tensor;
    if (tensor.type.code != 0 || tensor.type.lanes != 1 || (tensor.type.bits != 32 && tensor.type.bits != 64))
      refuse("does not hold int32 or int64");
    size_ = tensor.dimensions > 0 ? tensor.shape[0] : 0;
    check_shape(static_cast<std::size_t>(tensor.dimensions), tensor.strides ? tensor.strides[0] : 1, 1);
    values_ = {static_cast<const char*>(tensor.data) + tensor.byte_offset, tensor.type.bits == 64};
  }

  void read_interface(const py::dict& facts) {
    const auto type = facts["typestr"].cast<std::string>();
    if (type != "<i4" && type != "<i8") refuse("does not hold int32 or int64");
    if (facts.contains("mask") && !facts["mask"].is_none()) refuse("has a mask");
    const py::tuple shape = facts["shape"];
    const bool strided = facts.contains("strides") && !facts["strides"].is_none();
    const Index step = type == "<i8" ? 8 : 4;
    size_ = shape.empty() ? 0 : shape[0].cast<Index>();
    check_shape(shape.size(), strided && size_ > 1 ? facts["strides"].cast<py::tuple>()[0].cast<Index>() : step, step);
    values_ = {reinterpret_cast<const void*>(facts["data"].cast<py::tuple>()[0].cast<std::uintptr_t>()), step == 8};
    if (size_ == 0) return;  // lies nowhere
    const std::optional<int> device = device_of(values_.data);
    if (!device) refuse("does not lie on a CUDA device");
    check_device(*device);
    if (facts.contains("stream") && !facts["stream"].is_none()) producer_ = facts["stream"].cast<StreamHandle>();
  }

  std::string name_;
  int device_;
  py::object held_;
  std::unique_ptr<DLManagedTensor, Delete> managed_;
  Integers values_{};
  Index size_ = 0;
  std::optional<StreamHandle> producer_;
};

RowsAre rows_named(const std::string& name) {
  static const std::map<std::string, RowsAre> names = {{"first", RowsAre::first}, {"all", RowsAre::all}};
  return named(names, name, "The rows");
}

class BoundEncoder {
 public:
  BoundEncoder(int width, int heads, int layers, int ffn, float eps, const std::string& activation,
               const std::vector<std::tuple<int, std::string, bool>>& head, std::map<std::string, Floats> tensors,
               const std::string& precision, Index chunk_tokens, bool persistent, bool clusters)
      : width_(width) {
    require(chunk_tokens >= 1, "chunk_tokens must be at least 1.");
    std::vector<HeadLinear> linears;
    for (const auto& [columns, name, norm] : head) linears.push_back({columns, activation_named(name), norm});
    const EncoderShape shape{precision_named(precision), width, heads, layers, ffn, eps, activation_named(activation)};
    std::map<std::string, HostTensor> all;
    for (const auto& [name, tensor] : tensors) all[name] = {tensor.data(), static_cast<std::size_t>(tensor.size())};
    const FindTensor find = [&](const std::string& name) {
      const auto found = all.find(name);
      return found == all.end() ? std::nullopt : std::optional(found->second);
    };
    py::gil_scoped_release release;
    encoder_ = std::make_shared<Encoder>(shape, linears, find, chunk_tokens, Options{persistent, clusters});
  }

  py::tuple forward_on_device(const Ints& ids, const Ints& positions, const std::optional<Ints>& token_types,
                              const Ints& cu_seqlens, const std::optional<Ints>& rows, bool hidden,
                              StreamHandle stream) const {
    const ForwardInput input = checked(ids, positions, token_types, cu_seqlens, rows);
    std::shared_ptr<DeviceOutput> output;
    {
      py::gil_scoped_release release;
      output = encoder_->forward_on_device(input, hidden, input.num_rows > 0, stream);
    }
    return arrays(output, ids.size(), input.num_rows);
  }

  py::tuple forward_from_device(const py::object& ids, const py::object& cu_seqlens,
                                const std::optional<py::object>& token_types,
                                const std::variant<std::monostate, std::string, py::object>& rows, bool hidden,
                                StreamHandle stream) const {
    const CurrentDevice current(encoder_->device());
    check_stream(stream);              // before it is handed to whoever made the arrays
    std::deque<DeviceIntegers> taken;  // until the work is enqueued
    const auto take = [&](const py::object& array, const char* name) -> const DeviceIntegers& {
      return taken.emplace_back(array, name, encoder_->device(), stream);
    };
    const DeviceIntegers &id = take(ids, "input_ids"), &ends = take(cu_seqlens, "cu_seqlens");
    DeviceInput input{id.values(), ends.values(), {}, {}, RowsAre::all, id.size(), ends.size() - 1, 0};
    require(input.tokens > 0, "The batch is empty; at least one token is needed.");
    require(input.sequences > 0 && input.sequences <= input.tokens,
            "cu_seqlens must rise from 0 to the number of tokens.");
    if (token_types) {
      const DeviceIntegers& types = take(*token_types, "token_types");
      require(types.size() == input.tokens, "token_types and input_ids are not of the same length.");
      input.token_types = types.values();
    }
    if (const auto* name = std::get_if<std::string>(&rows)) {
      input.rows_are = rows_named(*name);
      input.num_rows = input.rows_are == RowsAre::first ? input.sequences : input.tokens;
    } else if (const auto* array = std::get_if<py::object>(&rows)) {
      const DeviceIntegers& given = take(*array, "rows");
      require(given.size() <= input.tokens, "rows must rise strictly and lie within the tokens.");
      input.rows = given.values(), input.rows_are = RowsAre::given, input.num_rows = given.size();
    }
    if (encoder_->model().head.empty()) input.num_rows = 0;
    for (const DeviceIntegers& each : taken)
      if (each.producer()) input.producers.push_back(*each.producer());
    std::shared_ptr<DeviceOutput> output;
    {
      py::gil_scoped_release release;
      output = encoder_->forward_on_device(input, hidden, stream);
    }
    return arrays(output, input.tokens, input.num_rows);
  }

  py::tuple forward(const Ints& ids, const Ints& positions, const std::optional<Ints>& token_types,
                    const Ints& cu_seqlens, const std::optional<Ints>& rows, bool hidden,
                    const std::optional<py::dict>& trace) const {
    const ForwardInput input = checked(ids, positions, token_types, cu_seqlens, rows);
    const bool run_head = rows && !encoder_->model().head.empty();
    const Index tokens = ids.size(), num_rows = input.num_rows;
    py::object hidden_out = py::none(), head_out = py::none();
    ForwardOutput output{nullptr, nullptr};
    if (hidden) {
      Floats array({tokens, width_});
      output.hidden = array.mutable_data();
      hidden_out = std::move(array);
    }
    if (run_head) {
      Floats array({num_rows, Index{encoder_->model().head_columns()}});
      output.head = array.mutable_data();
      head_out = std::move(array);
    }
    Intermediates intermediates;
    {
      py::gil_scoped_release release;
      encoder_->forward(input, output, trace ? recorder(intermediates) : Trace{});
    }
    if (trace) hand_over(intermediates, *trace);
    return py::make_tuple(hidden_out, head_out);
  }

  const Encoder& encoder() const { return *encoder_; }

 private:
  py::tuple arrays(const std::shared_ptr<DeviceOutput>& output, Index tokens, Index rows) const {
    py::object hidden = py::none(), head = py::none();
    if (output->hidden) hidden = py::cast(DeviceArray(output, output->hidden, tokens, width_));
    if (output->head) head = py::cast(DeviceArray(output, output->head, rows, encoder_->model().head_columns()));
    return py::make_tuple(hidden, head);
  }

  struct Intermediate {
    std::string name;
    std::vector<float> data;
    Index rows, columns;
  };
  using Intermediates = std::vector<Intermediate>;

  ForwardInput checked(const Ints& ids, const Ints& positions, const std::optional<Ints>& token_types,
                       const Ints& cu_seqlens, const std::optional<Ints>& rows) const {
    const Index tokens = ids.size();
    require(positions.size() == tokens && (!token_types || token_types->size() == tokens) && cu_seqlens.size() >= 2,
            "ids, positions, token_types and cu_seqlens do not belong together.");
    require(cu_seqlens.at(cu_seqlens.size() - 1) == tokens, "cu_seqlens does not end at the number of tokens.");
    const Index num_rows = rows && !encoder_->model().head.empty() ? rows->size() : 0;
    return {ids.data(),         positions.data(), data_or_null(token_types), cu_seqlens.data(), cu_seqlens.size() - 1,
            data_or_null(rows), num_rows};
  }

  static Trace recorder(Intermediates& into) {
    return [&into](const std::string& name, const float* data, Index rows, Index columns) {
      into.push_back({name, std::vector<float>(data, data + rows * columns), rows, columns});
    };
  }

  static void hand_over(const Intermediates& intermediates, py::dict trace) {
    for (const Intermediate& each : intermediates) {
      std::vector<Index> shape = {each.rows, each.columns};
      if (each.name.ends_with(".probabilities")) shape = {each.columns};
      trace[py::str(each.name)] = Floats(shape, each.data.data());
    }
  }

  Index width_;
  std::shared_ptr<Encoder> encoder_;
};

// ---- the operations alone, for tests and benchmarks

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
  const Precision type = precision_named(precision);
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
      : precision_(precision_named(precision)), reads_operands_(centre || wide) {
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
  const Precision type = precision_named(precision);
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
  const Precision type = precision_named(precision);
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

void bind(py::module_& module) {
  using py::arg;
  module.doc() = "The encoder on an NVIDIA GPU; see distilfast.backends.cuda.";

  py::class_<BoundEncoder>(module, "Encoder")
      .def(py::init<int, int, int, int, float, const std::string&,
                    const std::vector<std::tuple<int, std::string, bool>>&, std::map<std::string, Floats>,
                    const std::string&, Index, bool, bool>(),
           py::kw_only(), arg("width"), arg("heads"), arg("layers"), arg("ffn"), arg("eps"), arg("activation"),
           arg("head"), arg("tensors"), arg("precision"), arg("chunk_tokens"), arg("persistent"), arg("clusters"))
      .def("forward", &BoundEncoder::forward, arg("ids"), arg("positions"), arg("token_types").none(true),
           arg("cu_seqlens"), arg("rows").none(true), arg("hidden"), arg("trace").none(true))
      .def("forward_on_device", &BoundEncoder::forward_on_device, arg("ids"), arg("positions"),
           arg("token_types").none(true), arg("cu_seqlens"), arg("rows").none(true), arg("hidden"), arg("stream"))
      .def("forward_from_device", &BoundEncoder::forward_from_device, arg("ids"), arg("cu_seqlens"),
           arg("token_types").none(true), arg("rows").none(true), arg("hidden"), arg("stream"))
      .def_property_readonly("weight_bytes", [](const BoundEncoder& self) { return self.encoder().model().bytes(); })
      .def_property_readonly("scratch_bytes", [](const BoundEncoder& self) { return self.encoder().scratch_bytes(); });

  py::class_<DeviceArray>(module, "DeviceArray")
      .def_property_readonly("shape", &DeviceArray::shape)
      .def("wait", &DeviceArray::wait)
      .def_property_readonly("__cuda_array_interface__", &DeviceArray::cuda_array_interface)
      .def("__dlpack_device__", &DeviceArray::dlpack_device)
      .def(
          "__dlpack__",
          [](const DeviceArray& self, const std::optional<std::intptr_t>& stream, const py::kwargs&) {
            return self.dlpack(stream);
          },
          py::kw_only(), arg("stream") = py::none());

  module.def("unavailable", &unavailable, "None, or why no device can be used, in one sentence.");
  module.def("device_name", &device_name, "The current device's name.");
  module.def("architecture", &architecture, "The current device's compute capability, as 80 or 90.");
  module.def("used_memory", &used_memory, "Bytes of the current device's memory that are in use, by anyone.");

  module.def("wide_channels", &wide_channels, arg("k"),
             "How many channels of a linear of depth K int8 does not round, in batches of more than 64 tokens.");

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

PYBIND11_MODULE(DISTILFAST_CUDA_MODULE, module) { distilfast::cuda::bind(module); }
