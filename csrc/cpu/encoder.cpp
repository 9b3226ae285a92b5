#include "cpu/encoder.h"

#include <algorithm>
#include <cmath>

#include "common/chunks.h"
#include "cpu/head.h"
#include "cpu/parallel.h"

namespace distilfast {

namespace {

// Tokens of a chunk. A pass over the weights costs as much as some 16 tokens, so it is small beside a chunk of this
// size. With chunks of 1,024 tokens int8 took 5 % longer and bf16 3 %: the activations no longer fit the caches.
constexpr Index chunk_tokens = 512;

// A chunk with its offsets counted from its first token.
struct LocalChunk : Chunk {
  Index longest = 0;                         // tokens of its longest sequence
  std::vector<std::int32_t> cu_seqlens;      // [sequences + 1]
  std::vector<std::int32_t> gather;          // [rows], the tokens that the head reads
  std::vector<std::int32_t> row_cu_seqlens;  // [sequences + 1], into `gather`

  void assign(const ForwardInput& input, const Chunk& chunk) {
    Chunk::operator=(chunk);
    cu_seqlens.resize(static_cast<std::size_t>(sequences) + 1), gather.resize(static_cast<std::size_t>(rows));
    copy_cu_seqlens(input, chunk, cu_seqlens.data());
    copy_rows(input, chunk, gather.data());
    row_cu_seqlens.clear(), longest = 0;
    for (std::size_t i = 0; i < cu_seqlens.size(); ++i) {
      const auto rows_before = std::lower_bound(gather.begin(), gather.end(), cu_seqlens[i]) - gather.begin();
      row_cu_seqlens.push_back(static_cast<std::int32_t>(rows_before));
      if (i > 0) longest = std::max<Index>(longest, cu_seqlens[i] - cu_seqlens[i - 1]);
    }
  }
};

}  // namespace

// What one forward needs and a later one uses again.
struct Workspace {
  Arena arena;
  LocalChunk chunk;
  AttentionPlan plan;

  std::size_t bytes() const { return arena.bytes(); }
};

namespace {

// From one row of a linear's output to the next: an odd number of cache lines. Else rows of DistilBERT's widths meet in
// a few sets of the caches (with 3,072 columns, 256 rows fill all ways of theirs), and the rows of two consecutive
// tiles are a multiple of 4 KB apart, where a load can be taken to depend on the stores of the tile before.
Index out_stride(Index columns) { return ((columns + 15) / 16 | 1) * 16; }

void gather(const float* from, const std::vector<std::int32_t>& rows, Index width, float* to) {
  for (const std::int32_t row : rows) to = std::copy_n(from + row * width, width, to);
}

// One chunk through the whole model.
class Pass {
 public:
  Pass(const Kernels& kernels, const AttentionKernels& attention, const Model& model, const ForwardInput& input,
       Workspace& workspace, Team& team, const Trace& trace)
      : kernels_(kernels),
        attention_(attention),
        model_(model),
        input_(input),
        chunk_(workspace.chunk),
        plan_(workspace.plan),
        team_(team),
        trace_(trace),
        width_(model.shape.width),
        head_width_(widest_intermediate(model.head, input.columns)),
        y_{nullptr, stride_of(width_)},
        qkv_{nullptr, stride_of(3 * width_)},
        ffn_{nullptr, stride_of(model.shape.ffn)},
        rows_q_{nullptr, qkv_.stride} {
    Arena& arena = workspace.arena;
    const Index t = chunk_.tokens, r = chunk_.rows;
    const Index scratch = attention.scratch(width_ / model.shape.heads, chunk_.longest);
    scratch_.stride = static_cast<Index>(Arena::padded(scratch));
    const Index all_probabilities = trace ? probabilities_size() : 0;
    const Piece pieces[] = {
        {&x_, t * width_},
        {&y_.data, t * y_.stride},
        {&context_, t * width_},
        {&qkv_.data, t * qkv_.stride},
        {&ffn_.data, std::max(t * ffn_.stride, 2 * r * head_width_)},
        {&rows_x_, r * width_},
        {&rows_q_.data, r * rows_q_.stride},
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

  void run(const ForwardOutput& output) {
    embed();
    plan(chunk_.cu_seqlens);
    const bool skip = !output.hidden && !trace_ && chunk_.rows < chunk_.tokens;
    for (Index i = 0; i < model_.shape.layers; ++i) {
      if (skip && i + 1 == model_.shape.layers)
        layer_for_rows(model_.layers[i]);
      else
        layer(model_.layers[i], i);
    }
    if (output.hidden) std::copy_n(x_, chunk_.tokens * width_, output.hidden + chunk_.first_token * width_);
    if (!output.head || chunk_.rows == 0) return;
    if (!skip) gather(x_, chunk_.gather, width_, rows_x_);
    const Index columns = input_.columns ? input_.num_columns : model_.head.back().dense.columns();
    const HeadOutput out{input_, output.head + chunk_.first_row * columns};
    run_head(kernels_, model_.head, rows_x_, chunk_.rows, out, {ffn_.data, head_width_, packed_a_}, team_, trace_);
  }

 private:
  struct Piece {
    float** pointer;
    Index floats;

    Index bytes() const { return floats * Index{sizeof(float)}; }
  };

  // A trace gets rows that are contiguous.
  Index stride_of(Index columns) const { return trace_ ? columns : out_stride(columns); }

  Index probabilities_size() const {
    Index size = 0;
    for (Index b = 0; b < chunk_.sequences; ++b) {
      const Index length = chunk_.cu_seqlens[b + 1] - chunk_.cu_seqlens[b];
      size += model_.shape.heads * length * length;
    }
    return size;
  }

  // An intermediate's name is made only where there is a trace.
  void record(Index layer, const char* name, const float* data, Index rows, Index columns) const {
    if (trace_) trace_(layer_name(layer, name), data, rows, columns);
  }

  void embed() {
    const Index at = chunk_.first_token;
    const Embed op{input_.ids + at,
                   input_.positions + at,
                   input_.token_types ? input_.token_types + at : nullptr,
                   model_.word,
                   model_.position,
                   model_.token_type,
                   model_.embed_norm.view(),
                   x_};
    parallel_embed(kernels_, op, chunk_.tokens, team_, packed_a_of(0));
    if (trace_) trace_(names::embed, x_, chunk_.tokens, width_);
  }

  // A layer's first linear reads what the operation before it writes.
  Next packed_a_of(Index layer) const {
    return layer < model_.shape.layers ? Next{&model_.layers[layer].qkv, packed_a_} : Next{};
  }

  // x_ -> x_, all rows.
  void layer(const Layer& layer, Index i) {
    const Index t = chunk_.tokens;
    parallel_linear(layer.qkv, {x_, width_}, t, Activation::none, qkv_, packed_a_, true, team_);
    record(i, names::qkv, qkv_.data, t, 3 * width_);
    attention(qkv_);
    record(i, names::probabilities, probabilities_, 1, trace_ ? probabilities_size() : 0);
    record(i, names::context, context_, t, width_);
    finish_layer(layer, i, x_, t);
  }

  // The last layer where the head reads only some rows: keys and values of all rows, everything else of these rows
  // alone; into rows_x_.
  void layer_for_rows(const Layer& layer) {
    const Index r = chunk_.rows, panel = layer.qkv.kernels().panel;
    // A panel that straddles q and k is computed in both calls.
    const Range keys_values{width_ / panel, layer.qkv.panels()}, queries{0, (width_ + panel - 1) / panel};
    parallel_linear(layer.qkv, keys_values, {x_, width_}, chunk_.tokens, Activation::none, qkv_, packed_a_, true,
                    team_);
    gather(x_, chunk_.gather, width_, rows_x_);
    parallel_linear(layer.qkv, queries, {rows_x_, width_}, r, Activation::none, rows_q_, packed_a_, false, team_);
    plan(chunk_.row_cu_seqlens);
    attention(rows_q_);
    finish_layer(layer, model_.shape.layers - 1, rows_x_, r);
  }

  void plan(const std::vector<std::int32_t>& query_ends) {
    const Sequences sequences{chunk_.cu_seqlens.data(), query_ends.data(), chunk_.sequences};
    plan_.cut(sequences, model_.shape.heads, team_.threads());
  }

  // q: the queries that the plan was made for.
  void attention(ConstRows q) {
    const Index d = width_ / model_.shape.heads;
    const Attention op{q.data,
                       qkv_.data + width_,
                       qkv_.data + 2 * width_,
                       q.stride,
                       qkv_.stride,
                       d,
                       static_cast<float>(1.0 / std::sqrt(static_cast<double>(d))),
                       context_,
                       width_};
    parallel_attention(attention_, op, plan_, scratch_, probabilities_, team_);
  }

  // The rest of a layer: context_ and the layer's input x [rows, D] -> x.
  void finish_layer(const Layer& layer, Index i, float* x, Index rows) {
    parallel_linear(layer.attention_out, {context_, width_}, rows, Activation::none, y_, packed_a_, false, team_);
    record(i, names::attention_out, y_.data, rows, width_);
    parallel_add_layer_norm(kernels_, layer.attention_norm, y_, x, rows, x, team_, {&layer.ffn_in, packed_a_});
    record(i, names::attention_norm, x, rows, width_);
    parallel_linear(layer.ffn_in, {x, width_}, rows, model_.shape.activation, ffn_, packed_a_, true, team_);
    record(i, names::ffn_in, ffn_.data, rows, model_.shape.ffn);
    parallel_linear(layer.ffn_out, ffn_, rows, Activation::none, y_, packed_a_, false, team_);
    record(i, names::ffn_out, y_.data, rows, width_);
    parallel_add_layer_norm(kernels_, layer.output_norm, y_, x, rows, x, team_, packed_a_of(i + 1));
    record(i, names::output, x, rows, width_);
  }

  const Kernels& kernels_;
  const AttentionKernels& attention_;
  const Model& model_;
  const ForwardInput& input_;
  const LocalChunk& chunk_;
  AttentionPlan& plan_;
  Team& team_;
  const Trace& trace_;
  const Index width_, head_width_;
  Scratch scratch_;
  // Scratch: a linear's output [T, D], [T, 3D], [T, F] or two of the head's outputs, the queries [R, 3D] of the rows
  // that the head reads; the hidden state [T, D], attention's output [T, D], the hidden state [R, D] of these rows; a
  // linear's packed A.
  Rows y_, qkv_, ffn_, rows_q_;
  float *x_, *context_, *rows_x_, *probabilities_;
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
      model_(load(shape, head, find, kernels, precision, packed, threads)),
      workspaces_(process_mutex()) {}

Encoder::~Encoder() = default;

void Encoder::forward(const ForwardInput& input, const ForwardOutput& output, const Trace& trace,
                      const ShouldContinue& should_continue) const {
  Team team(threads_);
  std::unique_ptr<Workspace> workspace = workspaces_.borrow();
  for (Chunk chunk = next_chunk(input, {}, chunk_tokens); chunk.sequences > 0;
       chunk = next_chunk(input, chunk, chunk_tokens)) {
    if (chunk.first_sequence > 0 && should_continue && !should_continue()) break;
    workspace->chunk.assign(input, chunk);
    Pass(kernels_, attention_, model_, input, *workspace, team, trace).run(output);
  }
  // A trace's workspace has room for probabilities: it is not kept.
  if (!trace) workspaces_.give_back(std::move(workspace));
}

std::size_t Encoder::scratch_bytes() const { return workspaces_.bytes(); }

}  // namespace distilfast
