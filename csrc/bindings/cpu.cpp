// distilfast._cpu: numpy buffers to pointers and back, the GIL released while the encoder runs. No arithmetic.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cmath>
#include <map>

#include "cpu/checksum.h"
#include "cpu/cores.h"
#include "cpu/dispatch.h"
#include "cpu/encoder.h"
#include "cpu/naive.h"
#include "cpu/parallel.h"

namespace py = pybind11;

namespace distilfast {
namespace {

using Floats = py::array_t<float, py::array::c_style>;
using Ints = py::array_t<std::int32_t, py::array::c_style>;
using Bytes = py::array_t<std::uint8_t, py::array::c_style>;

Activation activation_named(const std::string& name) {
  static const std::map<std::string, Activation> names = {
      {"none", Activation::none}, {"gelu", Activation::gelu}, {"relu", Activation::relu}, {"tanh", Activation::tanh}};
  const auto found = names.find(name);
  if (found == names.end()) throw std::invalid_argument("Activation '" + name + "' is not known.");
  return found->second;
}

Precision precision_named(const std::string& name) {
  static const std::map<std::string, Precision> names = {
      {"fp32", Precision::fp32}, {"bf16x3", Precision::bf16x3}, {"bf16", Precision::bf16}, {"int8", Precision::int8}};
  const auto found = names.find(name);
  if (found == names.end()) throw std::invalid_argument("Precision '" + name + "' is not known.");
  return found->second;
}

void require(bool condition, const char* sentence) {
  if (!condition) throw std::invalid_argument(sentence);
}

const std::int32_t* data_or_null(const std::optional<Ints>& array) { return array ? array->data() : nullptr; }

// An encoder and the Python arrays that its embedding tables and its packed weights live in.
class BoundEncoder {
 public:
  BoundEncoder(Index width, Index heads, Index layers, Index ffn, float eps, const std::string& activation,
               const std::vector<std::tuple<Index, std::string, bool>>& head, const py::object& tensors,
               const std::string& isa, const std::string& precision, const std::optional<Bytes>& packed, int threads)
      : width_(width) {
    require(threads >= 1, "threads must be at least 1.");
    std::vector<HeadLinear> linears;
    for (const auto& [columns, name, norm] : head) linears.push_back({columns, activation_named(name), norm});
    const EncoderShape shape{width, heads, layers, ffn, eps, activation_named(activation)};
    std::span<const std::byte> packed_weights;
    if (packed) {
      packed_ = *packed;
      packed_weights = std::as_bytes(std::span(packed->data(), static_cast<std::size_t>(packed->size())));
    }
    std::vector<Floats> used;  // a tensor that was made when it was asked for lives until it is packed
    const FindTensor find = [&](const std::string& name) -> const float* {
      py::gil_scoped_acquire acquire;
      if (!tensors.contains(name)) return nullptr;
      const Floats tensor = tensors[py::str(name)].cast<Floats>();
      (name.starts_with("embed.") ? kept_ : used).push_back(tensor);
      return tensor.data();
    };
    py::gil_scoped_release release;
    encoder_ = std::make_unique<Encoder>(shape, linears, find, kernels_for(isa), precision_named(precision),
                                         packed_weights, threads);
  }

  py::tuple forward(const Ints& ids, const Ints& positions, const std::optional<Ints>& token_types,
                    const Ints& cu_seqlens, const std::optional<Ints>& rows, bool hidden,
                    const std::optional<py::dict>& trace, const std::optional<Ints>& columns) const {
    const Index tokens = ids.size();
    require(positions.size() == tokens && (!token_types || token_types->size() == tokens) && cu_seqlens.size() >= 2,
            "ids, positions, token_types and cu_seqlens do not belong together.");
    require(cu_seqlens.at(cu_seqlens.size() - 1) == tokens, "cu_seqlens does not end at the number of tokens.");
    const bool run_head = rows && !encoder_->model().head.empty();
    const Index num_rows = rows ? rows->size() : 0;
    require(!columns || (run_head && !trace && encoder_->model().head.back().norm.empty()),
            "columns need a head that ends with a linear, and no trace.");
    const ForwardInput input{ids.data(),
                             positions.data(),
                             data_or_null(token_types),
                             cu_seqlens.data(),
                             cu_seqlens.size() - 1,
                             data_or_null(rows),
                             run_head ? num_rows : 0,
                             data_or_null(columns),
                             columns ? columns->size() : 0};
    py::object hidden_out = py::none(), head_out = py::none();
    ForwardOutput output{nullptr, nullptr};
    if (hidden) {
      Floats array({tokens, width_});
      output.hidden = array.mutable_data();
      hidden_out = std::move(array);
    }
    if (run_head) {
      Floats array({num_rows, columns ? columns->size() : encoder_->model().head.back().dense.columns()});
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
  struct Intermediate {
    std::string name;
    std::vector<float> data;
    Index rows, columns;
  };
  using Intermediates = std::vector<Intermediate>;

  static Trace recorder(Intermediates& into) {
    return [&into](const std::string& name, const float* data, Index rows, Index columns) {
      into.push_back({name, std::vector<float>(data, data + rows * columns), rows, columns});
    };
  }

  static void hand_over(const Intermediates& intermediates, py::dict trace) {
    for (const Intermediate& each : intermediates) {
      const bool flat = each.name.ends_with(".probabilities");
      std::vector<Index> shape = {each.rows, each.columns};
      if (flat) shape = {each.columns};
      trace[py::str(each.name)] = Floats(shape, each.data.data());
    }
  }

  Index width_;
  std::vector<Floats> kept_;
  std::optional<Bytes> packed_;
  std::unique_ptr<Encoder> encoder_;
};

// The operations alone, for tests and benchmarks: the same functions that the encoder calls.

Floats embed_alone(const Ints& ids, const Ints& positions, const std::optional<Ints>& token_types, const Floats& word,
                   const Floats& position, const std::optional<Floats>& token_type, const Floats& weight,
                   const Floats& bias, float eps, const std::string& isa, int threads) {
  Floats out({ids.size(), weight.size()});
  Team team(threads);
  const Norm norm(weight.data(), bias.data(), weight.size(), eps);
  const Embed op{ids.data(),  positions.data(),  data_or_null(token_types),
                 word.data(), position.data(),   token_type ? token_type->data() : nullptr,
                 norm.view(), out.mutable_data()};
  parallel_embed(kernels_for(isa), op, ids.size(), team);
  return out;
}

// A linear with its weight packed once.
class BoundLinear {
 public:
  BoundLinear(const Floats& weight, const Floats& bias, const std::optional<Floats>& channel_shift,
              const std::optional<Ints>& outlier_channels, const std::string& isa, const std::string& precision,
              int threads)
      : threads_(threads) {
    require(weight.ndim() == 2 && bias.size() == weight.shape(0), "weight [N, K] and bias [N] do not belong together.");
    const Index n = weight.shape(0), k = weight.shape(1);
    const Precision operands = precision_named(precision);
    require(operands != Precision::int8 || (channel_shift && outlier_channels && channel_shift->size() == k &&
                                            outlier_channels->size() == outlier_count(k)),
            "int8 needs channel_shift [K] and outlier_channels [outlier_channels(K)].");
    Team team(threads);
    const LinearSource source{weight.data(), n, k, channel_shift ? channel_shift->data() : nullptr,
                              data_or_null(outlier_channels)};
    const LinearKernels& kernels = kernels_for(isa).linear(operands);
    packed_ = Buffer(Dense::packed_size(kernels, n, k));
    Dense::pack(kernels, source, bias.data(), packed_.data(), team);
    dense_ = std::make_unique<Dense>(kernels, n, k, packed_.data());
  }

  Floats operator()(const Floats& x, const std::string& activation) const {
    require(x.ndim() == 2 && x.shape(1) == dense_->packed().k, "x [T, K] does not have the weight's K columns.");
    Floats out({static_cast<Index>(x.shape(0)), dense_->columns()});
    Team team(threads_);
    const Buffer packed_a(static_cast<std::size_t>(dense_->kernels().packed_a_size(x.shape(0), x.shape(1))));
    parallel_linear(*dense_, x.data(), x.shape(0), activation_named(activation), out.mutable_data(), packed_a.data(),
                    false, team);
    return out;
  }

 private:
  int threads_;
  Buffer packed_;
  std::unique_ptr<Dense> dense_;
};

py::tuple attention_alone(const Floats& qkv, const Ints& cu_seqlens, Index heads, const std::string& isa,
                          const std::string& precision, int threads, bool probabilities) {
  require(qkv.ndim() == 2 && qkv.shape(1) % (3 * heads) == 0, "qkv [T, 3D] does not hold this many heads.");
  const AttentionKernels& kernels = kernels_for(isa).attention(precision_named(precision));
  const Index width = qkv.shape(1) / 3, d = width / heads, count = cu_seqlens.size() - 1;
  Index longest = 0, pairs = 0;
  for (Index b = 0; b < count; ++b) {
    const Index length = cu_seqlens.at(b + 1) - cu_seqlens.at(b);
    longest = std::max(longest, length);
    pairs += heads * length * length;
  }
  Floats out({qkv.shape(0), width}), weights(probabilities ? pairs : 0);
  Team team(threads);
  const Index stride = static_cast<Index>(Arena::padded(kernels.scratch(d, longest)));
  const Buffer scratch(static_cast<std::size_t>(stride * threads));
  const float scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(d)));
  const float* q = qkv.data();
  const Attention op{q, q + width, q + 2 * width, 3 * width, 3 * width, d, scale, out.mutable_data(), width};
  AttentionPlan plan;
  plan.cut({cu_seqlens.data(), cu_seqlens.data(), count}, heads, threads);
  parallel_attention(kernels, op, plan, {scratch.data(), stride}, probabilities ? weights.mutable_data() : nullptr,
                     team);
  return py::make_tuple(out, probabilities ? py::object(weights) : py::none());
}

Floats add_layer_norm_alone(const Floats& x, const Floats& residual, const Floats& weight, const Floats& bias,
                            float eps, const std::string& isa, int threads) {
  require(x.ndim() == 2 && x.shape(1) == weight.size() && residual.size() == x.size() && bias.size() == weight.size(),
          "x [T, D], residual [T, D], weight [D] and bias [D] do not belong together.");
  Floats out({x.shape(0), x.shape(1)});
  Team team(threads);
  const Norm norm(weight.data(), bias.data(), weight.size(), eps);
  parallel_add_layer_norm(kernels_for(isa), norm, x.data(), residual.data(), x.shape(0), out.mutable_data(), team);
  return out;
}

std::string packed_layout(const std::string& isa, const std::string& precision) {
  return packed_weights_layout(kernels_for(isa), precision_named(precision));
}

std::uint64_t checksum_of(const py::buffer& block, int threads) {
  const py::buffer_info info = block.request();
  const auto bytes = static_cast<std::size_t>(info.size * info.itemsize);
  require(PyBuffer_IsContiguous(info.view(), 'C'), "The block must be contiguous.");
  py::gil_scoped_release release;
  Team team(threads);
  return checksum({static_cast<const std::byte*>(info.ptr), bytes}, team);
}

Floats naive_matmul_of(const Floats& a, const Floats& b, Index block) {
  require(a.ndim() == 2 && b.ndim() == 2 && a.shape(1) == b.shape(1) && block >= 1,
          "a [M, K] and b [N, K] do not belong together, or the block is empty.");
  Floats out({a.shape(0), b.shape(0)});
  float* const c = out.mutable_data();
  py::gil_scoped_release release;
  naive_matmul(a.data(), b.data(), c, a.shape(0), b.shape(0), a.shape(1), block);
  return out;
}

// The packed weights where they lie, for as long as the encoder lives.
Bytes packed_of(const py::object& self) {
  const std::span<const std::byte> packed = self.cast<const BoundEncoder&>().encoder().model().packed_weights.bytes();
  Bytes view({static_cast<Index>(packed.size())}, reinterpret_cast<const std::uint8_t*>(packed.data()), self);
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
      own[py::make_tuple("linear", precision)] = identity(isa.kernels->linear(precision_named(precision)));
      own[py::make_tuple("attention", precision)] = identity(isa.kernels->attention(precision_named(precision)));
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

}  // namespace
}  // namespace distilfast

PYBIND11_MODULE(_cpu, module) {
  using namespace distilfast;
  using py::arg;
  module.doc() = "The encoder on the CPU; see distilfast.backends.cpu.";

  py::class_<BoundEncoder>(module, "Encoder")
      .def(py::init<Index, Index, Index, Index, float, const std::string&,
                    const std::vector<std::tuple<Index, std::string, bool>>&, const py::object&, const std::string&,
                    const std::string&, const std::optional<Bytes>&, int>(),
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
          "packed_bytes", [](const BoundEncoder& self) { return self.encoder().model().packed_weights.bytes().size(); })
      .def_property_readonly("packed", &packed_of)
      .def_property_readonly("scratch_bytes", [](const BoundEncoder& self) { return self.encoder().scratch_bytes(); });

  module.def("packed_layout", &packed_layout, arg("isa"), arg("precision"),
             "The id of the layout of packed weights, which with the checkpoint decides all their bytes.");
  module.def("checksum", &checksum_of, arg("block"), py::kw_only(), arg("threads") = 1,
             "A 64-bit checksum of a contiguous buffer, as fast as it can be read.");
  module.def("isas", &isa_list, "Every ISA there is, the fastest first, and why it cannot run here, or None.");
  module.def("kernel_identities", &kernel_identities,
             "{isa: {(operation, precision): identity}}: equal identities are the same functions.");
  module.def("outlier_channels", &outlier_count, arg("k"), "How many channels of K int8 keeps in fp32.");
  module.def("available_cores", &available_cores, "Cores that the affinity mask and the cgroup's CPU quota allow.");

  module.def("naive_matmul", &naive_matmul_of, arg("a"), arg("b"), arg("block"),
             "a [M, K] times b [N, K] transposed, in a fixed order of summation; see distilfast.arithmetic.");
  module.def("embed", &embed_alone, arg("ids"), arg("positions"), arg("token_types").none(true), arg("word"),
             arg("position"), arg("token_type").none(true), arg("weight"), arg("bias"), py::kw_only(), arg("eps"),
             arg("isa"), arg("threads") = 1);
  py::class_<BoundLinear>(module, "Linear")
      .def(py::init<const Floats&, const Floats&, const std::optional<Floats>&, const std::optional<Ints>&,
                    const std::string&, const std::string&, int>(),
           arg("weight"), arg("bias"), arg("channel_shift") = py::none(), arg("outlier_channels") = py::none(),
           py::kw_only(), arg("isa"), arg("precision") = "fp32", arg("threads") = 1)
      .def("__call__", &BoundLinear::operator(), arg("x"), arg("activation") = "none");
  module.def("attention", &attention_alone, arg("qkv"), arg("cu_seqlens"), arg("heads"), py::kw_only(), arg("isa"),
             arg("precision") = "fp32", arg("threads") = 1, arg("probabilities") = true);
  module.def("add_layer_norm", &add_layer_norm_alone, arg("x"), arg("residual"), arg("weight"), arg("bias"),
             py::kw_only(), arg("eps"), arg("isa"), arg("threads") = 1);
}
