// distilfast._cuda: numpy buffers to pointers and back, the GIL released while the device works. No arithmetic.
//
// The tests build it a second time, under another name and over the simulated device (DISTILFAST_CUDA_MODULE).
#include <deque>
#include <variant>

#include "bindings/common.h"
#include "bindings/dlpack.h"

#ifndef DISTILFAST_CUDA_MODULE
#define DISTILFAST_CUDA_MODULE _cuda
#endif

namespace distilfast::cuda {

void bind_operations(py::module_& module);  // cuda_ops.cpp

namespace {

RowSelection row_selection_named(const std::string& name) {
  static const std::map<std::string, RowSelection> names = {{"first", RowSelection::first}, {"all", RowSelection::all}};
  return named(names, name, "The rows");
}

class BoundEncoder {
 public:
  BoundEncoder(int width, int heads, int layers, int ffn, float eps, const std::string& activation,
               const HeadArgument& head, std::map<std::string, Floats> tensors, const std::string& precision,
               Index chunk_tokens, bool persistent, bool clusters)
      : sizes_(width, head_of(head)) {
    require(chunk_tokens >= 1, "chunk_tokens must be at least 1.");
    const EncoderShape shape{width, heads, layers, ffn, eps, activation_named(activation)};
    std::map<std::string, HostTensor> all;
    for (const auto& [name, tensor] : tensors) all[name] = {tensor.data(), static_cast<std::size_t>(tensor.size())};
    const FindTensor find = [&](const std::string& name) {
      const auto found = all.find(name);
      return found == all.end() ? HostTensor{} : found->second;
    };
    const ReleasedGil released;
    encoder_ = std::make_shared<Encoder>(shape, head_of(head), find, gpu_precision_named(precision), chunk_tokens,
                                         Options{persistent, clusters});
  }

  py::tuple forward_on_device(const Ints& ids, const Ints& positions, const std::optional<Ints>& token_types,
                              const Ints& cu_seqlens, const std::optional<Ints>& rows, bool hidden,
                              StreamHandle stream) const {
    const HostBatch batch = batch_of(ids, positions, token_types, cu_seqlens, rows, {}, sizes_, tables());
    const ForwardInput input = batch.input();
    std::shared_ptr<DeviceOutput> output;
    {
      const ReleasedGil released;
      output = encoder_->forward_on_device(input, hidden, input.num_rows > 0, stream);
    }
    return arrays(output, batch.tokens(), input.num_rows);
  }

  py::tuple forward_from_device(const py::object& ids, const py::object& cu_seqlens,
                                const std::optional<py::object>& token_types,
                                const std::variant<std::monostate, std::string, py::object>& rows, bool hidden,
                                StreamHandle stream) const {
    const CurrentDevice current(encoder_->device());
    check_reader(stream);              // before it is passed to the arrays' producers
    std::deque<DeviceIntegers> taken;  // held until the work is enqueued
    const auto take = [&](const py::object& array, const char* name) -> const DeviceIntegers& {
      return taken.emplace_back(array, name, encoder_->device(), stream);
    };
    const DeviceIntegers &id = take(ids, "input_ids"), &ends = take(cu_seqlens, "cu_seqlens");
    DeviceInput input{id.values(), ends.values(), {}, {}, RowSelection::all, id.size(), ends.size() - 1, 0};
    require(input.tokens > 0, "The batch is empty; at least one token is needed.");
    require(input.sequences > 0 && input.sequences <= input.tokens,
            "cu_seqlens must be strictly increasing from 0 to the number of tokens.");
    if (token_types) {
      const DeviceIntegers& types = take(*token_types, "token_types");
      require(types.size() == input.tokens, "token_types and input_ids are not of the same length.");
      input.token_types = types.values();
    }
    if (const auto* name = std::get_if<std::string>(&rows)) {
      input.row_selection = row_selection_named(*name);
      input.num_rows = input.row_selection == RowSelection::first ? input.sequences : input.tokens;
    } else if (const auto* array = std::get_if<py::object>(&rows)) {
      const DeviceIntegers& given = take(*array, "rows");
      require(given.size() <= input.tokens, "rows must be strictly increasing and lie within the tokens.");
      input.rows = given.values(), input.row_selection = RowSelection::given, input.num_rows = given.size();
    }
    if (sizes_.head_columns == 0) input.num_rows = 0;
    for (const DeviceIntegers& each : taken)
      if (each.producer()) input.producers.push_back(*each.producer());
    std::shared_ptr<DeviceOutput> output;
    {
      const ReleasedGil released;
      output = encoder_->forward_on_device(input, hidden, stream);
    }
    return arrays(output, input.tokens, input.num_rows);
  }

  py::tuple forward(const Ints& ids, const Ints& positions, const std::optional<Ints>& token_types,
                    const Ints& cu_seqlens, const std::optional<Ints>& rows, bool hidden,
                    const std::optional<py::dict>& trace, const std::optional<Ints>& columns,
                    const std::optional<std::set<std::string>>& names) const {
    return forward_on_host(*encoder_, sizes_, tables(), ids, positions, token_types, cu_seqlens, rows, hidden, trace,
                           columns, names);
  }

  const Encoder& encoder() const { return *encoder_; }

 private:
  TableRows tables() const {
    const Model& model = encoder_->model();
    return {model.rows_of(model.word), model.rows_of(model.position), model.rows_of(model.token_type)};
  }

  py::tuple arrays(const std::shared_ptr<DeviceOutput>& output, Index tokens, Index rows) const {
    py::object hidden = py::none(), head = py::none();
    if (output->hidden) hidden = py::cast(DeviceArray(output, output->hidden, tokens, sizes_.width));
    if (output->head) head = py::cast(DeviceArray(output, output->head, rows, sizes_.head_columns));
    return py::make_tuple(hidden, head);
  }

  ResultSizes sizes_;
  std::shared_ptr<Encoder> encoder_;
};

}  // namespace

void bind(py::module_& module) {
  using py::arg;
  module.doc() = "The encoder on an NVIDIA GPU; see distilfast.backends.cuda.";

  py::class_<BoundEncoder>(module, "Encoder")
      .def(py::init<int, int, int, int, float, const std::string&, const HeadArgument&, std::map<std::string, Floats>,
                    const std::string&, Index, bool, bool>(),
           py::kw_only(), arg("width"), arg("heads"), arg("layers"), arg("ffn"), arg("eps"), arg("activation"),
           arg("head"), arg("tensors"), arg("precision"), arg("chunk_tokens"), arg("persistent"), arg("clusters"))
      .def("forward", &BoundEncoder::forward, arg("ids"), arg("positions"), arg("token_types").none(true),
           arg("cu_seqlens"), arg("rows").none(true), arg("hidden"), arg("trace").none(true),
           arg("columns") = py::none(), arg("names") = py::none())
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
  module.def("used_memory", &used_memory, "Bytes of the current device's memory in use, by all processes.");

  module.def("outlier_channels", &outlier_channels, arg("k"),
             "How many channels of a linear of depth K int8 does not quantise, in batches of more than 64 tokens.");

  bind_operations(module);
}

}  // namespace distilfast::cuda

PYBIND11_MODULE(DISTILFAST_CUDA_MODULE, module) { distilfast::cuda::bind(module); }
