// The operations of distilfast._cpu alone, for tests and benchmarks: the same functions that the encoder calls.
#include <cmath>

#include "bindings/common.h"
#include "cpu/dispatch.h"
#include "cpu/naive.h"
#include "cpu/parallel.h"

namespace distilfast {
namespace {

int checked(int threads) {
  require(threads >= 1, "threads must be at least 1.");
  return threads;
}

Floats embed_alone(const Ints& ids, const Ints& positions, const std::optional<Ints>& token_types, const Floats& word,
                   const Floats& position, const std::optional<Floats>& token_type, const Floats& weight,
                   const Floats& bias, float eps, const std::string& isa, int threads) {
  const Index width = weight.size();
  const auto rows = [&](const Floats& table) {
    require(table.ndim() == 2 && table.shape(1) == width && bias.size() == width,
            "The tables [rows, D], weight [D] and bias [D] do not belong together.");
    return table.shape(0);
  };
  const TokenNumbers tokens =
      token_numbers_of(ids, positions, token_types, {rows(word), rows(position), token_type ? rows(*token_type) : 0});
  Floats out({tokens.tokens(), width});
  Team team(checked(threads));
  const Norm norm(weight.data(), bias.data(), width, eps);
  const Embed op{tokens.ids.data(), tokens.positions.data(), tokens.token_types_or_null(),
                 word.data(),       position.data(),         token_type ? token_type->data() : nullptr,
                 norm.view(),       out.mutable_data()};
  parallel_embed(kernels_for(isa), op, tokens.tokens(), team);
  return out;
}

// A linear with its weight packed once.
class BoundLinear {
 public:
  BoundLinear(const Floats& weight, const Floats& bias, const std::optional<Floats>& channel_shift,
              const std::optional<Ints>& outlier_channels, const std::string& isa, const std::string& precision,
              int threads)
      : threads_(checked(threads)) {
    require(weight.ndim() == 2 && bias.size() == weight.shape(0), "weight [N, K] and bias [N] do not belong together.");
    const Index n = weight.shape(0), k = weight.shape(1);
    require(n >= 1 && k >= 1, "weight [N, K] is empty.");
    const Precision operands = cpu_precision_named(precision);
    require(operands != Precision::int8 || (channel_shift && outlier_channels && channel_shift->size() == k &&
                                            outlier_channels->size() == outlier_count(k)),
            "int8 needs channel_shift [K] and outlier_channels [outlier_channels(K)].");
    Team team(threads);
    require(!channel_shift || channel_shift->size() == k, "channel_shift does not have K numbers.");
    Numbers channels;
    if (outlier_channels)
      channels = increasing_below(k, "outlier_channels", numbers_of("outlier_channels", *outlier_channels));
    const LinearSource source{weight.data(), n, k, channel_shift ? channel_shift->data() : nullptr,
                              outlier_channels ? channels.data() : nullptr};
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
    parallel_linear(*dense_, {x.data(), dense_->packed().k}, x.shape(0), activation_named(activation),
                    {out.mutable_data(), dense_->columns()}, packed_a.data(), false, team);
    return out;
  }

 private:
  int threads_;
  Buffer packed_;
  std::unique_ptr<Dense> dense_;
};

py::tuple attention_alone(const Floats& qkv, const Ints& cu_seqlens, Index heads, const std::string& isa,
                          const std::string& precision, int threads, bool probabilities) {
  require(qkv.ndim() == 2 && heads >= 1 && heads <= qkv.shape(1) && qkv.shape(1) % (3 * heads) == 0,
          "qkv [T, 3D] does not hold this many heads.");
  const Numbers ends = checked_cu_seqlens(numbers_of("cu_seqlens", cu_seqlens), qkv.shape(0));
  const AttentionKernels& kernels = kernels_for(isa).attention(cpu_precision_named(precision));
  const Index width = qkv.shape(1) / 3, d = width / heads, count = static_cast<Index>(ends.size()) - 1;
  Index longest = 0, pairs = 0;
  for (Index b = 0; b < count; ++b) {
    const Index length = ends[static_cast<std::size_t>(b) + 1] - ends[static_cast<std::size_t>(b)];
    longest = std::max(longest, length);
    pairs += heads * length * length;
  }
  Floats out({qkv.shape(0), width}), weights(probabilities ? pairs : 0);
  Team team(checked(threads));
  const Index stride = static_cast<Index>(Arena::padded(kernels.scratch(d, longest)));
  const Buffer scratch(static_cast<std::size_t>(stride * threads));
  const float scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(d)));
  const float* q = qkv.data();
  const Attention op{q, q + width, q + 2 * width, 3 * width, 3 * width, d, scale, out.mutable_data(), width};
  AttentionPlan plan;
  plan.cut({ends.data(), ends.data(), count}, heads, threads);
  parallel_attention(kernels, op, plan, {scratch.data(), stride}, probabilities ? weights.mutable_data() : nullptr,
                     team);
  return py::make_tuple(out, probabilities ? py::object(weights) : py::none());
}

Floats add_layer_norm_alone(const Floats& x, const Floats& residual, const Floats& weight, const Floats& bias,
                            float eps, const std::string& isa, int threads) {
  require(x.ndim() == 2 && x.shape(1) == weight.size() && residual.size() == x.size() && bias.size() == weight.size(),
          "x [T, D], residual [T, D], weight [D] and bias [D] do not belong together.");
  Floats out({x.shape(0), x.shape(1)});
  Team team(checked(threads));
  const Norm norm(weight.data(), bias.data(), weight.size(), eps);
  parallel_add_layer_norm(kernels_for(isa), norm, {x.data(), x.shape(1)}, residual.data(), x.shape(0),
                          out.mutable_data(), team);
  return out;
}

Floats naive_matmul_of(const Floats& a, const Floats& b, Index block) {
  require(a.ndim() == 2 && b.ndim() == 2 && a.shape(1) == b.shape(1) && block >= 1,
          "a [M, K] and b [N, K] do not belong together, or the block is empty.");
  Floats out({a.shape(0), b.shape(0)});
  float* const c = out.mutable_data();
  const ReleasedGil released;
  naive_matmul(a.data(), b.data(), c, a.shape(0), b.shape(0), a.shape(1), block);
  return out;
}

}  // namespace

void bind_operations(py::module_& module) {
  using py::arg;
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

}  // namespace distilfast
