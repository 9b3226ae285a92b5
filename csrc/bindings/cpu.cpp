// distilfast._cpu: numpy buffers to pointers and back, the GIL released while the encoder runs. No arithmetic.
#include "bindings/common.h"
#include "cpu/checksum.h"
#include "cpu/cores.h"
#include "cpu/dispatch.h"
#include "cpu/encoder.h"

namespace distilfast {

void bind_operations(py::module_& module);  // cpu_ops.cpp

namespace {

// An encoder and the Python arrays that its embedding tables and its packed weights live in.
class BoundEncoder {
 public:
  BoundEncoder(int width, int heads, int layers, int ffn, float eps, const std::string& activation,
               const HeadArgument& head, const py::object& tensors, const std::string& isa,
               const std::string& precision, const std::optional<Floats>& packed, int threads)
      : sizes_(width, head_of(head)) {
    require(threads >= 1, "threads must be at least 1.");
    const EncoderShape shape{width, heads, layers, ffn, eps, activation_named(activation)};
    std::span<const float> image;
    if (packed) {
      kept_.push_back(*packed);
      image = {packed->data(), static_cast<std::size_t>(packed->size())};
    }
    std::vector<Floats> used;  // a tensor that was made when it was asked for lives until it is packed
    const FindTensor find = [&](const std::string& name) -> HostTensor {
      py::gil_scoped_acquire acquire;
      if (!tensors.contains(name)) return {};
      const Floats tensor = tensors[py::str(name)].cast<Floats>();
      (name.starts_with("embed.") ? kept_ : used).push_back(tensor);
      return {tensor.data(), static_cast<std::size_t>(tensor.size())};
    };
    py::gil_scoped_release release;
    encoder_ = std::make_unique<Encoder>(shape, head_of(head), find, kernels_for(isa), cpu_precision_named(precision),
                                         image, threads);
  }

  py::tuple forward(const Ints& ids, const Ints& positions, const std::optional<Ints>& token_types,
                    const Ints& cu_seqlens, const std::optional<Ints>& rows, bool hidden,
                    const std::optional<py::dict>& trace, const std::optional<Ints>& columns) const {
    return forward_on_host(*encoder_, sizes_, ids, positions, token_types, cu_seqlens, rows, hidden, trace, columns);
  }

  const Encoder& encoder() const { return *encoder_; }

 private:
  ResultSizes sizes_;
  std::vector<Floats> kept_;
  std::unique_ptr<Encoder> encoder_;
};

std::string packed_layout(const std::string& isa, const std::string& precision) {
  return image_layout(kernels_for(isa), cpu_precision_named(precision));
}

std::uint64_t checksum_of(const py::buffer& block, int threads) {
  const py::buffer_info info = block.request();
  const auto bytes = static_cast<std::size_t>(info.size * info.itemsize);
  require(PyBuffer_IsContiguous(info.view(), 'C'), "The block must be contiguous.");
  py::gil_scoped_release release;
  Team team(threads);
  return checksum({static_cast<const std::byte*>(info.ptr), bytes}, team);
}

// The packed weights where they lie, for as long as the encoder lives.
Floats packed_of(const py::object& self) {
  const std::span<const float> packed = self.cast<const BoundEncoder&>().encoder().model().image.floats();
  Floats view({static_cast<Index>(packed.size())}, packed.data(), self);
  view.attr("setflags")(py::arg("write") = false);
  return view;
}

py::list isa_list() {
  py::list all;
  for (const Isa& isa : isas()) all.append(py::make_tuple(isa.name, isa.missing));
  return all;
}

}  // namespace
}  // namespace distilfast

PYBIND11_MODULE(_cpu, module) {
  using namespace distilfast;
  using py::arg;
  module.doc() = "The encoder on the CPU; see distilfast.backends.cpu.";

  py::class_<BoundEncoder>(module, "Encoder")
      .def(py::init<int, int, int, int, float, const std::string&, const HeadArgument&, const py::object&,
                    const std::string&, const std::string&, const std::optional<Floats>&, int>(),
           py::kw_only(), arg("width"), arg("heads"), arg("layers"), arg("ffn"), arg("eps"), arg("activation"),
           arg("head"), arg("tensors"), arg("isa"), arg("precision"), arg("packed").none(true), arg("threads"))
      .def("forward", &BoundEncoder::forward, arg("ids"), arg("positions"), arg("token_types").none(true),
           arg("cu_seqlens"), arg("rows").none(true), arg("hidden"), arg("trace").none(true),
           arg("columns") = py::none())
      .def_property_readonly("isa", [](const BoundEncoder& self) { return self.encoder().kernels().isa; })
      .def_property_readonly(
          "arithmetic",
          [](const BoundEncoder& self) { return self.encoder().model().layers.front().qkv.kernels().arithmetic; })
      .def_property_readonly("attention_arithmetic",
                             [](const BoundEncoder& self) { return self.encoder().attention().arithmetic; })
      .def_property_readonly("threads", [](const BoundEncoder& self) { return self.encoder().threads(); })
      .def_property_readonly(
          "packed_bytes", [](const BoundEncoder& self) { return self.encoder().model().image.floats().size_bytes(); })
      .def_property_readonly("packed", &packed_of)
      .def_property_readonly("scratch_bytes", [](const BoundEncoder& self) { return self.encoder().scratch_bytes(); });

  module.def("packed_layout", &packed_layout, arg("isa"), arg("precision"),
             "What the bytes of packed weights depend on beside the checkpoint, in words.");
  module.def("checksum", &checksum_of, arg("block"), py::kw_only(), arg("threads") = 1,
             "A 64-bit checksum of a contiguous buffer, as fast as it can be read.");
  module.def("isas", &isa_list, "Every ISA there is, the fastest first, and why it cannot run here, or None.");
  module.def("wide_channels", &wide_channels, arg("k"), "How many channels of K int8 leaves as they are.");
  module.def("available_cores", &available_cores, "Cores that the affinity mask and the cgroup's CPU quota allow.");

  bind_operations(module);
}
