// Each kernel of each ISA against `ref`, in buffers of exactly the size that the contract names: under the sanitizers
// an access past any of them is an error. The accuracy of the results is tested in tests/kernels.
#include <algorithm>
#include <cmath>
#include <new>
#include <numeric>
#include <span>

#include "check.h"
#include "cpu/checksum.h"
#include "cpu/naive.h"
#include "cpu/parallel.h"

using namespace distilfast;

namespace {

const Index row_counts[] = {1, 2, 7, 8, 9, 15, 16, 17, 33};

bool close(const std::vector<float>& a, const std::vector<float>& b, float tolerance) {
  for (std::size_t i = 0; i < a.size(); ++i)
    if (!(std::fabs(a[i] - b[i]) <= tolerance * (1.0f + std::fabs(b[i])))) return false;
  return true;
}

// A buffer of exactly so many bytes, aligned to a cache line: the sanitizer reports any access past them.
class Exactly {
 public:
  explicit Exactly(Index bytes)
      : data_(static_cast<std::byte*>(::operator new(static_cast<std::size_t>(bytes), line))) {}
  ~Exactly() { ::operator delete(data_, line); }
  Exactly(const Exactly&) = delete;
  std::byte* data() const { return data_; }

 private:
  static constexpr std::align_val_t line{64};
  std::byte* data_;
};

// The same operation by one ISA and by ref, compared.
template <class Run>
void against_ref(Run run, float tolerance = 1e-4f) {
  Team team(1);
  const std::vector<float> wanted = run(kernels_for("ref"), team);
  for (const Kernels* kernels : supported_kernels()) CHECK(close(run(*kernels, team), wanted, tolerance));
}

std::vector<float> linear_with(const LinearKernels& kernels, Team& team, Index rows, Index n, Index k, Activation act) {
  const auto x = numbers(rows * k, 1), w = numbers(n * k, 2), b = numbers(n, 3), channel_shift = numbers(k, 4);
  std::vector<std::int32_t> outlier_channels;
  for (Index i = 0; i < outlier_count(k); ++i) outlier_channels.push_back(static_cast<std::int32_t>(i));
  const Buffer packed(Dense::packed_size(kernels, n, k));
  Dense::pack(kernels, {w.data(), n, k, channel_shift.data(), outlier_channels.data()}, b.data(), packed.data(), team);
  const Dense dense(kernels, n, k, packed.data());
  const Exactly packed_a(kernels.packed_a_size(rows, k));
  std::vector<float> out(rows * n);
  parallel_linear(dense, {x.data(), k}, rows, act, {out.data(), n}, packed_a.data(), false, team);
  return out;
}

// Rows of x and out, some floats apart.
void strides_change_no_bit(const LinearKernels& kernels, Index rows, Index n, Index k) {
  Team team(1);
  const float unwritten = 77.0f;
  const auto w = numbers(n * k, 2), b = numbers(n, 3), channel_shift = numbers(k, 4), source = numbers(rows * k, 1);
  std::vector<std::int32_t> outlier_channels(outlier_count(k));
  std::iota(outlier_channels.begin(), outlier_channels.end(), 0);
  const Buffer packed(Dense::packed_size(kernels, n, k));
  Dense::pack(kernels, {w.data(), n, k, channel_shift.data(), outlier_channels.data()}, b.data(), packed.data(), team);
  const Dense dense(kernels, n, k, packed.data());
  std::vector<std::vector<float>> found;
  for (const Index more : {0, 5, 16}) {
    std::vector<float> x(rows * (k + more), std::nanf("")), out(rows * (n + more), unwritten);
    for (Index i = 0; i < rows; ++i) std::copy_n(source.data() + i * k, k, x.data() + i * (k + more));
    const Exactly packed_a(kernels.packed_a_size(rows, k));
    parallel_linear(dense, {x.data(), k + more}, rows, Activation::none, {out.data(), n + more}, packed_a.data(), false,
                    team);
    std::vector<float>& dense_out = found.emplace_back();
    for (Index i = 0; i < rows; ++i) {
      const auto row = out.begin() + i * (n + more);
      dense_out.insert(dense_out.end(), row, row + n);
      CHECK(std::all_of(row + n, row + n + more, [&](float value) { return value == unwritten; }));
    }
    CHECK(dense_out == found.front());
  }
}

double relative_error(const std::vector<float>& a, const std::vector<float>& b) {
  double error = 0.0, size = 0.0;
  for (std::size_t i = 0; i < a.size(); ++i) error += std::pow(a[i] - b[i], 2.0), size += std::pow(b[i], 2.0);
  return std::sqrt(error / size);
}

}  // namespace

TEST(linear_matches_ref) {
  for (const Index rows : row_counts)
    for (const auto& [n, k] : std::vector<std::pair<Index, Index>>{{1, 1}, {47, 31}, {48, 256}, {49, 257}, {100, 600}})
      for (const Activation act : {Activation::none, Activation::gelu, Activation::relu, Activation::tanh})
        for (const Precision precision : {Precision::fp32, Precision::bf16x3, Precision::bf16})
          against_ref([&](const Kernels& kernels, Team& team) {
            return linear_with(kernels.linear(precision), team, rows, n, k, act);
          });
}

TEST(a_stride_changes_no_bit_of_linear) {
  for (const Kernels* kernels : supported_kernels())
    for (const Precision precision : {Precision::fp32, Precision::bf16x3, Precision::bf16, Precision::int8})
      for (const auto& [n, k] : std::vector<std::pair<Index, Index>>{{49, 257}, {48, 768}})
        strides_change_no_bit(kernels->linear(precision), 9, n, k);
}

float to_bf16(float x) {
  const auto bits = __builtin_bit_cast(std::uint32_t, x);
  return __builtin_bit_cast(float, (bits + 0x7fffu + (bits >> 16 & 1u)) & 0xffff0000u);
}

// What is left of a value in the operands of a precision: bf16x3 is three products on tiles only, else fp32.
float as_operand(float x, Precision precision, const Kernels& kernels) {
  const bool on_tiles = std::string(kernels.isa).starts_with("amx");
  if (precision == Precision::bf16) return to_bf16(x);
  if (precision == Precision::bf16x3 && on_tiles) return to_bf16(x) + to_bf16(x - to_bf16(x));
  return x;
}

// The limits of tests/kernels, also where no Python runs: twice the error of operands that are rounded once and summed
// in float32, in blocks of 256.
TEST(linear_is_within_twice_the_naive_error) {
  Team team(1);
  const Index rows = 9, n = 100;
  const auto b = numbers(n, 3);
  for (const Index k : {257, 768}) {
    const auto run = [&](const LinearKernels& kernels) {
      return linear_with(kernels, team, rows, n, k, Activation::none);
    };
    const std::vector<float> truth = run(kernels_for("ref").linear_fp32);
    for (const Kernels* kernels : supported_kernels())
      for (const Precision precision : {Precision::fp32, Precision::bf16x3, Precision::bf16}) {
        auto x = numbers(rows * k, 1), w = numbers(n * k, 2);
        for (float& value : x) value = as_operand(value, precision, *kernels);
        for (float& value : w) value = as_operand(value, precision, *kernels);
        std::vector<float> naive(rows * n);
        naive_matmul(x.data(), w.data(), naive.data(), rows, n, k, 256);
        for (Index i = 0; i < rows * n; ++i) naive[i] += b[i % n];
        CHECK(relative_error(run(kernels->linear(precision)), truth) <= 2.0 * relative_error(naive, truth));
      }
  }
}

TEST(a_row_of_linear_has_the_same_bits_alone) {
  Team team(1);
  const Index rows = 17, n = 49;
  for (const Kernels* kernels : supported_kernels())
    for (const Precision precision : {Precision::fp32, Precision::bf16x3, Precision::bf16, Precision::int8})
      for (const Index k : {257, 768}) {
        const auto all = linear_with(kernels->linear(precision), team, rows, n, k, Activation::gelu);
        for (const Index fewer : {1, 2, 8}) {  // the first rows are the same numbers
          const auto some = linear_with(kernels->linear(precision), team, fewer, n, k, Activation::gelu);
          CHECK(std::equal(some.begin(), some.end(), all.begin()));
        }
      }
}

// Each element of C is one chain of fused multiply-adds in the order of k on every vector unit, in fp32 and in bf16
// that is widened: the width of a vector, the tile and the architecture change no bit. Two hashes for all of them.
TEST(vector_isas_have_the_same_bits_of_linear) {
  Team team(1);
  for (const Kernels* kernels : supported_kernels())
    for (const char* name : {"avx2", "avx512", "neon"})
      if (kernels->isa == std::string(name)) {
        const auto hash = [&](Precision precision) {
          const auto out = linear_with(kernels->linear(precision), team, 9, 49, 601, Activation::gelu);
          return checksum(std::as_bytes(std::span(out)), team);
        };
        CHECK(hash(Precision::fp32) == 0x7c41e222500f563e);
        CHECK(hash(Precision::bf16) == 0x73b86708dce18c82);
      }
}

// int8 products are exact in int32, so an instruction that multiplies more of them at once changes no bit.
TEST(int8_instructions_of_a_family_have_the_same_bits) {
  Team team(1);
  for (const auto& family : std::vector<std::vector<std::string>>{
           {"avx2", "avx2_vnni"}, {"avx512", "avx512_vnni", "avx512_bf16"}, {"neon", "neon_dotprod", "neon_i8mm"}})
    for (const Isa& isa : isas())
      if (isa.supported() && std::find(family.begin(), family.end(), isa.name) != family.end())
        for (const Index k : {257, 768}) {
          const auto run = [&](const Kernels& kernels) {
            return linear_with(kernels.linear_int8, team, 9, 49, k, Activation::gelu);
          };
          CHECK(run(*isa.kernels) == run(kernels_for(family.front())));
        }
}

// Each ISA quantises slightly other values, which tests/kernels/test_linear.py accounts for exactly.
TEST(int8_linear_is_near_ref) {
  Team team(1);
  for (const Index rows : row_counts)
    for (const auto& [n, k] :
         std::vector<std::pair<Index, Index>>{{1, 1}, {47, 31}, {48, 256}, {49, 257}, {100, 600}}) {
      const auto run = [&, n = n, k = k](const Kernels& kernels) {
        return linear_with(kernels.linear(Precision::int8), team, rows, n, k, Activation::none);
      };
      const std::vector<float> wanted = run(kernels_for("ref"));
      for (const Kernels* kernels : supported_kernels()) CHECK(relative_error(run(*kernels), wanted) <= 0.02);
    }
}

TEST(attention_matches_ref) {
  for (const Precision precision : {Precision::fp32, Precision::bf16})
    for (const Index d : {1, 8, 17, 32, 64, 80})
      for (const std::int32_t length : {1, 2, 15, 16, 17, 33, 130}) {
        const Index heads = 2, width = heads * d;
        const std::vector<std::int32_t> ends = {0, length, length + 3};
        const auto qkv = numbers(ends.back() * 3 * width, 4);
        AttentionPlan plan;
        plan.cut({ends.data(), ends.data(), 2}, heads, 1);
        against_ref(
            [&](const Kernels& all, Team& team) {
              const AttentionKernels& kernels = all.attention(precision);
              const Exactly scratch(kernels.scratch(d, std::max(length, 3)));
              std::vector<float> out(ends.back() * width);
              std::vector<float> probabilities(heads * (length * length + 9));
              const Attention op{qkv.data(), qkv.data() + width, qkv.data() + 2 * width,
                                 3 * width,  3 * width,          d,
                                 0.3f,       out.data(),         width};
              parallel_attention(kernels, op, plan, {scratch.data(), 0}, probabilities.data(), team);
              out.insert(out.end(), probabilities.begin(), probabilities.end());
              return out;
            },
            precision == Precision::fp32 ? 1e-4f : 2e-2f);
      }
}

TEST(embed_and_add_layer_norm_match_ref) {
  for (const Index width : {1, 7, 8, 16, 31, 32, 33, 100})
    for (const bool types : {false, true}) {
      const std::vector<std::int32_t> ids = {0, 9, 3}, positions = {4, 0, 1}, kinds = {0, 1, 1};
      const auto word = numbers(10 * width, 5), position = numbers(5 * width, 6), type = numbers(2 * width, 7);
      const auto weight = numbers(width, 8), bias = numbers(width, 9), residual = numbers(3 * width, 10);
      const Norm norm(weight.data(), bias.data(), width, 1e-6f);
      against_ref([&](const Kernels& kernels, Team& team) {
        std::vector<float> x(3 * width), y(3 * width);
        const Embed op{ids.data(),  positions.data(), types ? kinds.data() : nullptr,
                       word.data(), position.data(),  types ? type.data() : nullptr,
                       norm.view(), x.data()};
        parallel_embed(kernels, op, 3, team);
        parallel_add_layer_norm(kernels, norm, {x.data(), width}, residual.data(), 3, y.data(), team);
        parallel_add_layer_norm(kernels, norm, {y.data(), width}, nullptr, 3, y.data(), team);
        x.insert(x.end(), y.begin(), y.end());
        return x;
      });
    }
}

TEST(an_unknown_isa_is_an_error) {
  for (const char* name : {"amx2", "AVX2", "ref "}) {
    bool refused = false;
    try {
      kernels_for(name);
    } catch (const std::invalid_argument&) {
      refused = true;
    }
    CHECK(refused);
  }
  CHECK(std::string(kernels_for("ref").isa) == "ref");
  CHECK(&kernels_for(forced_isa()) == supported_kernels().front());
}

TEST(an_attention_plan_covers_every_query_once_and_begins_with_the_most_work) {
  const std::vector<std::int32_t> key_ends = {0, 16, 528, 529, 700}, all = key_ends, some = {0, 1, 2, 2, 90};
  for (const auto& query_ends : {all, some})
    for (const int threads : {1, 2, 3, 16}) {
      AttentionPlan plan;
      plan.cut({key_ends.data(), query_ends.data(), 4}, 5, threads);
      std::vector<int> covered(query_ends.back());
      Index work = plan.pieces().front().work();
      for (const AttentionPlan::Piece& piece : plan.pieces()) {
        CHECK(piece.work() <= work && piece.work() > 0);
        work = piece.work();
        for (Index row = piece.queries.begin; row < piece.queries.end; ++row) ++covered[row];
        const auto sequence = std::find(key_ends.begin(), key_ends.end(), piece.keys.begin) - key_ends.begin();
        CHECK(key_ends[sequence + 1] == piece.keys.end);
        CHECK(query_ends[sequence] <= piece.queries.begin && piece.queries.end <= query_ends[sequence + 1]);
      }
      for (const int count : covered) CHECK(count == 1);
      // Each piece copies its keys and values again: one thread splits nothing, many split the longest sequence.
      if (threads == 1) CHECK(plan.pieces().size() <= 4);
      if (threads == 16 && query_ends == all) CHECK(plan.pieces().size() > 4);
    }
}
