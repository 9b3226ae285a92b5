// distilfast._cpu: numpy buffers to pointers and back, the GIL released while the encoder runs. No arithmetic.
#include "bindings/common.h"
#include "common/layer_names.h"
#include "cpu/checksum.h"
#include "cpu/cores.h"
#include "cpu/dispatch.h"
#include "cpu/encoder.h"
#include "cpu/head.h"
#include "cpu/threads.h"

namespace distilfast {

void bind_operations(py::module_& module);  // cpu_ops.cpp

namespace {

// An encoder and the Python arrays that its embedding tables and its packed weights live in.
class BoundEncoder {
 public:
  BoundEncoder(int width, int heads, int layers, int ffn, float eps, const std::string& activation,
               const HeadArgument& head, const py::object& tensors, const std::string& isa,
               const std::string& precision, const std::optional<Bytes>& packed, int threads)
      : sizes_(width, head_of(head)) {
    require(threads >= 1, "threads must be at least 1.");
    require(width >= 1, "width must be at least 1.");
    const EncoderShape shape{width, heads, layers, ffn, eps, activation_named(activation)};
    std::span<const std::byte> packed_weights;
    if (packed) {
      packed_ = *packed;
      packed_weights = std::as_bytes(std::span(packed->data(), static_cast<std::size_t>(packed->size())));
    }
    std::vector<Floats> used;  // a tensor that was made when it was asked for lives until it is packed
    const ReleasedGil released;
    const FindTensor find = [&](const std::string& name) -> HostTensor {
      const TakenGil taken(released);
      if (!tensors.contains(name)) return {};
      const Floats tensor = tensors[py::str(name)].cast<Floats>();
      (name.starts_with("embed.") ? kept_ : used).push_back(tensor);
      count_rows(name, tensor.size() / width);
      return {tensor.data(), static_cast<std::size_t>(tensor.size())};
    };
    encoder_ = std::make_unique<Encoder>(shape, head_of(head), find, kernels_for(isa), cpu_precision_named(precision),
                                         packed_weights, threads);
  }

  py::tuple forward(const Ints& ids, const Ints& positions, const std::optional<Ints>& token_types,
                    const Ints& cu_seqlens, const std::optional<Ints>& rows, bool hidden,
                    const std::optional<py::dict>& trace, const std::optional<Ints>& columns,
                    const std::optional<std::set<std::string>>& names) const {
    return forward_on_host(*encoder_, sizes_, tables_, ids, positions, token_types, cu_seqlens, rows, hidden, trace,
                           columns, names);
  }

  const Encoder& encoder() const { return *encoder_; }

 private:
  void count_rows(const std::string& name, Index rows) {
    if (name == names::embed_word) tables_.words = rows;
    if (name == names::embed_position) tables_.positions = rows;
    if (name == names::embed_token_type) tables_.token_types = rows;
  }

  ResultSizes sizes_;
  TableRows tables_;
  std::vector<Floats> kept_;
  std::optional<Bytes> packed_;
  std::unique_ptr<Encoder> encoder_;
};

// A head by itself, which has copies of its weights.
class BoundHead {
 public:
  BoundHead(int width, float eps, const HeadArgument& head, const py::object& tensors, const std::string& isa,
            const std::string& precision, int threads)
      : sizes_(width, head_of(head)) {
    require(threads >= 1, "threads must be at least 1.");
    require(width >= 1, "width must be at least 1.");
    require(sizes_.head_columns > 0, "A head has at least one linear.");
    std::vector<Floats> used;
    const ReleasedGil released;
    const FindTensor find = [&](const std::string& name) -> HostTensor {
      const TakenGil taken(released);
      if (!tensors.contains(name)) return {};
      used.push_back(tensors[py::str(name)].cast<Floats>());
      return {used.back().data(), static_cast<std::size_t>(used.back().size())};
    };
    head_ = std::make_unique<Head>(width, eps, head_of(head), find, kernels_for(isa), cpu_precision_named(precision),
                                   threads);
  }

  Floats forward(const Floats& x, const std::optional<Ints>& columns) const {
    require(x.ndim() == 2 && x.shape(1) == sizes_.width, "x must be [R, D] for the head's D.");
    require(!columns || !sizes_.ends_with_norm, "columns need a head that ends with a linear.");
    ForwardInput input{};
    Numbers selected;
    if (columns) {
      selected = increasing_below(sizes_.head_columns, "columns", numbers_of("columns", *columns));
      input.columns = selected.data(), input.num_columns = static_cast<Index>(selected.size());
    }
    Floats out({Index{x.shape(0)}, columns ? input.num_columns : sizes_.head_columns});
    const HeadOutput output{input, out.mutable_data()};
    if (x.shape(0) > 0) {
      const ReleasedGil released;
      head_->forward(x.data(), x.shape(0), output);
    }
    return out;
  }

 private:
  ResultSizes sizes_;
  std::unique_ptr<Head> head_;
};

std::string packed_layout(const std::string& isa, const std::string& precision) {
  return packed_weights_layout(kernels_for(isa), cpu_precision_named(precision));
}

std::uint64_t checksum_of(const py::buffer& block, int threads) {
  const py::buffer_info info = block.request();
  const auto bytes = static_cast<std::size_t>(info.size * info.itemsize);
  require(PyBuffer_IsContiguous(info.view(), 'C'), "The block must be contiguous.");
  require(threads >= 1, "threads must be at least 1.");
  const ReleasedGil released;
  Team team(threads);
  return checksum({static_cast<const std::byte*>(info.ptr), bytes}, team);
}

// The packed weights where they lie, for as long as the encoder lives.
Bytes packed_of(const py::object& self) {
  const std::span<const std::byte> packed = self.cast<const BoundEncoder&>().encoder().model().packed_weights.bytes();
  Bytes view(static_cast<Index>(packed.size()), reinterpret_cast<const std::uint8_t*>(packed.data()), self);
  view.attr("setflags")(py::arg("write") = false);
  return view;
}

// What the entry of a table runs: the addresses of its functions, and the sizes that they are called with.
py::tuple identity(const LinearKernels& kernels) {
  const auto address = [](auto* function) { return reinterpret_cast<std::uintptr_t>(function); };
  return py::make_tuple(address(kernels.packed_size), address(kernels.pack), address(kernels.packed_a_size),
                        address(kernels.pack_a), address(kernels.run), kernels.layout.operands, kernels.layout.version,
                        kernels.panel, kernels.mc_multiple, kernels.mc);
}
py::tuple identity(const AttentionKernels& kernels) {
  return py::make_tuple(reinterpret_cast<std::uintptr_t>(kernels.scratch),
                        reinterpret_cast<std::uintptr_t>(kernels.run));
}
template <class Op>
py::tuple identity(void (*function)(const Op&, Range)) {
  return py::make_tuple(reinterpret_cast<std::uintptr_t>(function));
}

// {isa: {(operation, precision): identity}} of every ISA that was compiled, also where it cannot run.
py::dict kernel_identities() {
  py::dict all;
  for (const Isa& isa : isas()) {
    if (!isa.kernels) continue;
    py::dict own;
    for (const char* precision : {"fp32", "bf16x3", "bf16", "int8"}) {
      own[py::make_tuple("linear", precision)] = identity(isa.kernels->linear(cpu_precision_named(precision)));
      own[py::make_tuple("attention", precision)] = identity(isa.kernels->attention(cpu_precision_named(precision)));
    }
    own[py::make_tuple("embed", "fp32")] = identity(isa.kernels->embed);
    own[py::make_tuple("add_layer_norm", "fp32")] = identity(isa.kernels->add_layer_norm);
    all[isa.name] = own;
  }
  return all;
}

py::list isa_list() {
  py::list all;
  for (const Isa& isa : isas()) all.append(py::make_tuple(isa.name, isa.missing));
  return all;
}

// A context manager: within it the calling thread is urgent.
class UrgentHere {
 public:
  void begin() { urgent_.emplace(); }
  void end() { urgent_.reset(); }

 private:
  std::optional<Urgent> urgent_;
};

}  // namespace

}  // namespace distilfast

PYBIND11_MODULE(_cpu, module) {
  using namespace distilfast;
  using py::arg;
  module.doc() = "The encoder on the CPU; see distilfast.backends.cpu.";

  py::class_<BoundEncoder>(module, "Encoder")
      .def(py::init<int, int, int, int, float, const std::string&, const HeadArgument&, const py::object&,
                    const std::string&, const std::string&, const std::optional<Bytes>&, int>(),
           py::kw_only(), arg("width"), arg("heads"), arg("layers"), arg("ffn"), arg("eps"), arg("activation"),
           arg("head"), arg("tensors"), arg("isa"), arg("precision"), arg("packed").none(true), arg("threads"))
      .def("forward", &BoundEncoder::forward, arg("ids"), arg("positions"), arg("token_types").none(true),
           arg("cu_seqlens"), arg("rows").none(true), arg("hidden"), arg("trace").none(true),
           arg("columns") = py::none(), arg("names") = py::none())
      .def_property_readonly("isa", [](const BoundEncoder& self) { return self.encoder().kernels().isa; })
      .def_property_readonly(
          "arithmetic",
          [](const BoundEncoder& self) { return self.encoder().model().layers.front().qkv.kernels().arithmetic; })
      .def_property_readonly("attention_arithmetic",
                             [](const BoundEncoder& self) { return self.encoder().attention().arithmetic; })
      .def_property_readonly("threads", [](const BoundEncoder& self) { return self.encoder().threads(); })
      .def_property_readonly(
          "packed_bytes", [](const BoundEncoder& self) { return self.encoder().model().packed_weights.bytes().size(); })
      .def_property_readonly("packed", &packed_of)
      .def_property_readonly("scratch_bytes", [](const BoundEncoder& self) { return self.encoder().scratch_bytes(); });

  py::class_<BoundHead>(module, "Head")
      .def(py::init<int, float, const HeadArgument&, const py::object&, const std::string&, const std::string&, int>(),
           py::kw_only(), arg("width"), arg("eps"), arg("head"), arg("tensors"), arg("isa"), arg("precision"),
           arg("threads"))
      .def("forward", &BoundHead::forward, arg("x"), arg("columns") = py::none());

  py::class_<UrgentHere>(module, "Urgent")
      .def(py::init<>())
      .def("__enter__", &UrgentHere::begin)
      .def("__exit__", [](UrgentHere& self, const py::args&) { self.end(); });

  module.def("packed_layout", &packed_layout, arg("isa"), arg("precision"),
             "The id of the layout of packed weights, which with the checkpoint decides all their bytes.");
  module.def("checksum", &checksum_of, arg("block"), py::kw_only(), arg("threads") = 1,
             "A 64-bit checksum of a contiguous buffer, as fast as it can be read.");
  module.def("isas", &isa_list, "Every ISA there is, the fastest first, and why it cannot run here, or None.");
  module.def("kernel_identities", &kernel_identities,
             "{isa: {(operation, precision): identity}}: equal identities are the same functions.");
  module.def("outlier_channels", &outlier_count, arg("k"), "How many channels of K int8 keeps in fp32.");
  module.def("available_cores", &available_cores, "Cores that the affinity mask and the cgroup's CPU quota allow.");

  bind_operations(module);
}
