#include "cpu/encoder.h"

#include <algorithm>
#include <cmath>

#include "cpu/parallel.h"

namespace distilfast {

namespace {

// Tokens after which a chunk is closed. A pass over the weights costs what some 16 tokens cost, so it is small beside a
// chunk of this size. In one twice as large int8 took 5 % longer, bf16 3 %: activations then leave the caches.
constexpr Index chunk_tokens = 512;

// Whole sequences of a batch and their share of the rows that the head reads; offsets are relative to the chunk.
struct Chunk {
  Index first_token = 0, tokens = 0, longest = 0;
  Index first_row = 0;
  std::vector<std::int32_t> ends;      // [sequences + 1], tokens
  std::vector<std::int32_t> rows;      // tokens that the head reads
  std::vector<std::int32_t> row_ends;  // [sequences + 1], into rows

  Index sequences() const { return static_cast<Index>(ends.size()) - 1; }
  Index num_rows() const { return static_cast<Index>(rows.size()); }

  // Takes sequences from `sequence` on until the chunk is full; moves `sequence` and `row` behind what it took.
  void fill(const ForwardInput& input, Index limit, Index& sequence, Index& row) {
    first_token = input.cu_seqlens[sequence], first_row = row, tokens = longest = 0;
    ends.assign(1, 0), rows.clear(), row_ends.assign(1, 0);
    do {
      const Index end = input.cu_seqlens[sequence + 1], length = end - input.cu_seqlens[sequence];
      tokens += length;
      longest = std::max(longest, length);
      ends.push_back(static_cast<std::int32_t>(tokens));
      for (; row < input.num_rows && input.rows[row] < end; ++row)
        rows.push_back(static_cast<std::int32_t>(input.rows[row] - first_token));
      row_ends.push_back(static_cast<std::int32_t>(num_rows()));
      ++sequence;
    } while (sequence < input.sequences && tokens < limit);
  }
};

}  // namespace

// What one forward needs and the next one uses again.
struct Workspace {
  Arena arena;
  Chunk chunk;
  AttentionPlan plan;
};

namespace {

void gather(const float* from, const std::vector<std::int32_t>& rows, Index width, float* to) {
  for (const std::int32_t row : rows) to = std::copy_n(from + row * width, width, to);
}

// One chunk on its way through the model.
class Pass {
 public:
  Pass(const Kernels& kernels, const AttentionKernels& attention, const Model& model, Workspace& workspace, Team& team,
       const Trace& trace)
      : kernels_(kernels),
        attention_(attention),
        model_(model),
        chunk_(workspace.chunk),
        plan_(workspace.plan),
        team_(team),
        trace_(trace),
        width_(model.shape.width) {
    Arena& arena = workspace.arena;
    const Index t = chunk_.tokens, r = chunk_.num_rows();
    for (const HeadLayer& layer : model.head) head_width_ = std::max(head_width_, layer.dense.columns());
    const Index scratch = attention.scratch(width_ / model.shape.heads, chunk_.longest);
    scratch_.stride = static_cast<Index>(Arena::padded(scratch));
    const Index all_probabilities = trace ? probabilities_size() : 0;
    const Piece pieces[] = {
        {&x_, t * width_},
        {&y_, t * width_},
        {&context_, t * width_},
        {&qkv_, t * 3 * width_},
        {&wide_, std::max(t * model.shape.ffn, 2 * r * head_width_)},
        {&rows_x_, r * width_},
        {&rows_q_, r * 3 * width_},
        {&probabilities_, all_probabilities},
    };
    const Index packed_a = model.packed_a_size(t, r), all_scratch = scratch_.stride * team.threads();
    std::size_t bytes = Arena::padded(packed_a) + Arena::padded(all_scratch);
    for (const Piece& piece : pieces) bytes += Arena::padded(piece.bytes());
    arena.reset(bytes);
    for (const Piece& piece : pieces) *piece.pointer = view<float>(arena.take(piece.bytes()));
    packed_a_ = arena.take(packed_a), scratch_.data = arena.take(all_scratch);
    if (!all_probabilities) probabilities_ = nullptr;
  }

  void run(const ForwardInput& input, const ForwardOutput& output) {
    embed(input);
    plan(chunk_.ends);
    const bool skip = !output.hidden && !trace_ && chunk_.num_rows() < chunk_.tokens;
    for (Index i = 0; i < model_.shape.layers; ++i) {
      if (skip && i + 1 == model_.shape.layers)
        layer_for_rows(model_.layers[i]);
      else
        layer(model_.layers[i], i);
    }
    if (output.hidden) std::copy_n(x_, chunk_.tokens * width_, output.hidden + chunk_.first_token * width_);
    if (!output.head || chunk_.num_rows() == 0) return;
    if (!skip) gather(x_, chunk_.rows, width_, rows_x_);
    const Columns columns{input.columns, input.num_columns};
    const Index width = columns.numbers ? columns.count : model_.head.back().dense.columns();
    head(output.head + chunk_.first_row * width, columns);
  }

 private:
  struct Piece {
    float** pointer;
    Index floats;

    Index bytes() const { return floats * Index{sizeof(float)}; }
  };

  Index probabilities_size() const {
    Index size = 0;
    for (Index b = 0; b < chunk_.sequences(); ++b) {
      const Index length = chunk_.ends[b + 1] - chunk_.ends[b];
      size += model_.shape.heads * length * length;
    }
    return size;
  }

  // An intermediate's name is only spelled out when someone wants it.
  void record(Index layer, const char* name, const float* data, Index rows, Index columns) const {
    if (trace_) trace_("layer." + std::to_string(layer) + "." + name, data, rows, columns);
  }

  void embed(const ForwardInput& input) {
    const Index at = chunk_.first_token;
    const Embed op{input.ids + at,
                   input.positions + at,
                   input.token_types ? input.token_types + at : nullptr,
                   model_.word,
                   model_.position,
                   model_.token_type,
                   model_.embed_norm.view(),
                   x_};
    parallel_embed(kernels_, op, chunk_.tokens, team_, operands_of(0));
    if (trace_) trace_("embed", x_, chunk_.tokens, width_);
  }

  // A layer's first linear reads what the stage before it has written.
  Next operands_of(Index layer) const {
    return layer < model_.shape.layers ? Next{&model_.layers[layer].qkv, packed_a_} : Next{};
  }

  // x_ -> x_, all rows.
  void layer(const Layer& layer, Index i) {
    const Index t = chunk_.tokens;
    parallel_linear(layer.qkv, x_, t, Activation::none, qkv_, packed_a_, true, team_);
    record(i, "qkv", qkv_, t, 3 * width_);
    attention(qkv_, 3 * width_);
    record(i, "probabilities", probabilities_, 1, trace_ ? probabilities_size() : 0);
    record(i, "context", context_, t, width_);
    behind_attention(layer, i, x_, t);
  }

  // The last layer where only some rows are read: keys and values of all rows, the rest of these rows; into rows_x_.
  void layer_for_rows(const Layer& layer) {
    const Index r = chunk_.num_rows(), columns = 3 * width_, panel = layer.qkv.kernels().panel;
    // A panel that straddles q and k is computed in both calls.
    const Range keys_values{width_ / panel, layer.qkv.panels()}, queries{0, (width_ + panel - 1) / panel};
    parallel_linear(layer.qkv, keys_values, x_, chunk_.tokens, Activation::none, qkv_, columns, packed_a_, true, team_);
    gather(x_, chunk_.rows, width_, rows_x_);
    parallel_linear(layer.qkv, queries, rows_x_, r, Activation::none, rows_q_, columns, packed_a_, false, team_);
    plan(chunk_.row_ends);
    attention(rows_q_, columns);
    behind_attention(layer, model_.shape.layers - 1, rows_x_, r);
  }

  void plan(const std::vector<std::int32_t>& query_ends) {
    const Sequences sequences{chunk_.ends.data(), query_ends.data(), chunk_.sequences()};
    plan_.cut(sequences, model_.shape.heads, team_.threads());
  }

  // Of the queries that the plan was made for.
  void attention(const float* q, Index q_stride) {
    const Index d = width_ / model_.shape.heads;
    const Attention op{q,
                       qkv_ + width_,
                       qkv_ + 2 * width_,
                       q_stride,
                       3 * width_,
                       d,
                       static_cast<float>(1.0 / std::sqrt(static_cast<double>(d))),
                       context_,
                       width_};
    parallel_attention(attention_, op, plan_, scratch_, probabilities_, team_);
  }

  // The rest of a layer: context_ and the layer's input x [rows, D] -> x.
  void behind_attention(const Layer& layer, Index i, float* x, Index rows) {
    parallel_linear(layer.attention_out, context_, rows, Activation::none, y_, packed_a_, false, team_);
    record(i, "attention_out", y_, rows, width_);
    parallel_add_layer_norm(kernels_, layer.attention_norm, y_, x, rows, x, team_, {&layer.ffn_in, packed_a_});
    record(i, "attention_norm", x, rows, width_);
    parallel_linear(layer.ffn_in, x, rows, model_.shape.activation, wide_, packed_a_, true, team_);
    record(i, "ffn_in", wide_, rows, model_.shape.ffn);
    parallel_linear(layer.ffn_out, wide_, rows, Activation::none, y_, packed_a_, false, team_);
    record(i, "ffn_out", y_, rows, width_);
    parallel_add_layer_norm(kernels_, layer.output_norm, y_, x, rows, x, team_, operands_of(i + 1));
    record(i, "output", x, rows, width_);
  }

  struct Columns {
    const std::int32_t* numbers;  // null: all
    Index count;
  };

  // rows_x_ -> out, the last linear straight into it unless only some of its columns are asked for.
  void head(float* out, const Columns& columns) {
    const Index r = chunk_.num_rows();
    const float* x = rows_x_;
    for (std::size_t i = 0; i < model_.head.size(); ++i) {
      const HeadLayer& layer = model_.head[i];
      const bool last = i + 1 == model_.head.size();
      float* const between = wide_ + (i % 2) * r * head_width_;
      if (last && columns.numbers) return some_columns(layer, x, columns, between, out);
      float* y = last ? out : between;
      parallel_linear(layer.dense, x, r, layer.activation, y, packed_a_, false, team_);
      for (const Norm& norm : layer.norm) parallel_add_layer_norm(kernels_, norm, y, nullptr, r, y, team_);
      if (trace_) trace_("head." + std::to_string(i), y, r, layer.dense.columns());
      x = y;
    }
  }

  // The panels that hold the columns, into y [R, N], and from there the columns into out [R, C].
  void some_columns(const HeadLayer& layer, const float* x, const Columns& columns, float* y, float* out) {
    const Index r = chunk_.num_rows(), n = layer.dense.columns(), panel = layer.dense.kernels().panel;
    for (Index begin = 0, end; begin < columns.count; begin = end) {
      const Index first = columns.numbers[begin] / panel;
      Index panels = 1;
      for (end = begin + 1; end < columns.count && columns.numbers[end] / panel <= first + panels; ++end)
        panels = columns.numbers[end] / panel - first + 1;
      parallel_linear(layer.dense, {first, first + panels}, x, r, layer.activation, y, n, packed_a_, begin > 0, team_);
    }
    for (Index row = 0; row < r; ++row)
      for (Index i = 0; i < columns.count; ++i) *out++ = y[row * n + columns.numbers[i]];
  }

  const Kernels& kernels_;
  const AttentionKernels& attention_;
  const Model& model_;
  const Chunk& chunk_;
  AttentionPlan& plan_;
  Team& team_;
  const Trace& trace_;
  const Index width_;
  Index head_width_ = 0;
  Scratch scratch_;
  // Scratch: the hidden state, a linear's output, attention's output, [T, 3D], [T, F] or two of the head's outputs, and
  // of the rows that the head reads the hidden state and the queries; what linears make of their input.
  float *x_, *y_, *context_, *qkv_, *wide_, *rows_x_, *rows_q_, *probabilities_;
  std::byte* packed_a_;
};

Model load(const EncoderShape& shape, const std::vector<HeadLinear>& head, const FindTensor& find,
           const Kernels& kernels, Precision precision, std::span<const std::byte> packed, int threads) {
  Team team(threads);
  return Model(shape, head, find, kernels, precision, packed, team);
}

}  // namespace

Encoder::Encoder(const EncoderShape& shape, const std::vector<HeadLinear>& head, const FindTensor& find,
                 const Kernels& kernels, Precision precision, std::span<const std::byte> packed, int threads)
    : kernels_(kernels),
      attention_(kernels.attention(precision)),
      threads_(threads),
      model_(load(shape, head, find, kernels, precision, packed, threads)) {}

Encoder::~Encoder() = default;

void Encoder::forward(const ForwardInput& input, const ForwardOutput& output, const Trace& trace) const {
  Team team(threads_);
  std::unique_ptr<Workspace> workspace = borrow_workspace();
  const Index limit = trace ? input.cu_seqlens[input.sequences] : chunk_tokens;  // a trace is one piece
  for (Index sequence = 0, row = 0; sequence < input.sequences;) {
    workspace->chunk.fill(input, limit, sequence, row);
    Pass(kernels_, attention_, model_, *workspace, team, trace).run(input, output);
  }
  // A trace's workspace is as large as its batch: it is not kept.
  if (!trace) return_workspace(std::move(workspace));
}

std::unique_ptr<Workspace> Encoder::borrow_workspace() const {
  std::lock_guard guard(process_mutex());
  if (idle_.empty()) return std::make_unique<Workspace>();
  std::unique_ptr<Workspace> workspace = std::move(idle_.back());
  idle_.pop_back();
  return workspace;
}

void Encoder::return_workspace(std::unique_ptr<Workspace> workspace) const {
  std::lock_guard guard(process_mutex());
  idle_.push_back(std::move(workspace));
}

std::size_t Encoder::scratch_bytes() const {
  std::lock_guard guard(process_mutex());
  std::size_t bytes = 0;
  for (const auto& workspace : idle_) bytes += workspace->arena.bytes();
  return bytes;
}

}  // namespace distilfast
