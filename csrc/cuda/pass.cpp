#include "cuda/pass.h"

#include <algorithm>
#include <cstring>

#include "cuda/tracer.h"

namespace distilfast::cuda {

namespace {

constexpr int min_bucket = 16;
// Up to here split-K fills the device; clusters, which hold whole rows, would be too few to.
constexpr int max_rows_without_clusters = 256;
// Results up to this size are copied through pinned memory: the last hidden state of 42 tokens of 768 columns. A copy
// to pageable memory synchronises with the device each time; for larger results that wait is negligible.
constexpr std::size_t staged_bytes = 128 * 1024;
constexpr std::size_t alignment = 256;  // of every buffer in the arena, as of device memory

template <class T>
T* take(char*& at, std::size_t bytes) {
  char* buffer = at;
  at += (bytes + alignment - 1) / alignment * alignment;
  return reinterpret_cast<T*>(buffer);
}

// The most floats that a linear's partial sums take in any bucket up to `bucket_rows`.
std::size_t split_sum_floats(const Dense& dense, int bucket_rows) {
  std::size_t floats = 0;
  for (int rows = min_bucket; rows <= bucket_rows; rows *= 2)
    floats = std::max(floats, static_cast<std::size_t>(linear_split_k(dense.precision, dense.n, dense.k, rows)) *
                                  static_cast<std::size_t>(rows) * static_cast<std::size_t>(dense.n));
  return floats;
}

}  // namespace

int bucket_for(Index count) {
  int bucket = min_bucket;
  while (bucket < count) bucket *= 2;
  return bucket;
}

// ---- buffers

Pass::Pass(const Model& model, int bucket_tokens, const Options& options)
    : model_(model),
      bucket_tokens_(bucket_tokens),
      persistent_(options.persistent && fits_persistent_kernel()),
      clusters_(options.clusters),
      input_bytes_(static_cast<std::size_t>(place_inputs(nullptr, host_) - static_cast<char*>(nullptr))),
      host_memory_(input_bytes_ + staged_bytes),
      arena_(static_cast<std::size_t>(place_buffers(nullptr) - static_cast<char*>(nullptr))) {
  place_inputs(host_memory_.data(), host_);
  std::fill_n(host_memory_.data(), input_bytes_, 0);
  place_buffers(arena_.data());
}

bool Pass::fits_persistent_kernel() const {
  const EncoderShape& shape = model_.shape;
  const std::size_t ops = 1 + 7 * model_.layers.size() + 2 * model_.head.size();
  return bucket_tokens_ <= max_persistent_rows && shape.width / shape.heads <= max_persistent_head && ops <= max_ops;
}

std::size_t Pass::row_bytes(int columns) const {
  return static_cast<std::size_t>(row_stride(columns)) * element_size(model_.precision);
}

std::size_t Pass::max_packed_a_bytes() const {
  std::size_t bytes = 0;
  for (const Layer& layer : model_.layers)
    for (const Dense* dense : {&layer.qkv, &layer.attention_out, &layer.ffn_in, &layer.ffn_out})
      if (dense->reads_packed_a(bucket_tokens_)) bytes = std::max(bytes, packed_a_bytes(dense->k, bucket_tokens_));
  return bytes;
}

// Returns the end of the inputs.
char* Pass::place_inputs(char* at, BatchInputs& inputs) const {
  const std::size_t bytes = static_cast<std::size_t>(bucket_tokens_) * sizeof(std::int32_t);
  inputs.tokens = take<std::int32_t>(at, 4 * sizeof(std::int32_t));
  inputs.sequences = inputs.tokens + 1;
  inputs.rows = inputs.tokens + 2;
  inputs.faults = inputs.tokens + 3;
  inputs.ids = take<std::int32_t>(at, bytes);
  inputs.positions = take<std::int32_t>(at, bytes);
  inputs.token_types = take<std::int32_t>(at, bytes);
  inputs.cu_seqlens = take<std::int32_t>(at, bytes + sizeof(std::int32_t));
  inputs.gather = take<std::int32_t>(at, bytes);
  return at;
}

char* Pass::place_buffers(char* at) {
  const EncoderShape& shape = model_.shape;
  const std::size_t rows = static_cast<std::size_t>(bucket_tokens_);
  std::size_t split_sums = 0, head_out = 0, head_cast = 0;
  for (const Layer& layer : model_.layers)
    for (const Dense* dense : {&layer.attention_out, &layer.ffn_out})
      split_sums = std::max(split_sums, split_sum_floats(*dense, bucket_tokens_));
  for (const HeadLayer& layer : model_.head) {
    if (layer.norm) split_sums = std::max(split_sums, split_sum_floats(layer.dense, bucket_tokens_));
    if (&layer != &model_.head.back()) head_cast = std::max(head_cast, rows * row_bytes(layer.dense.n));
    head_out = std::max(head_out, rows * static_cast<std::size_t>(layer.dense.n) * sizeof(float));
  }
  at = place_inputs(at, device_);
  const std::size_t x = rows * static_cast<std::size_t>(shape.width) * sizeof(float),
                    x_cast = rows * row_bytes(shape.width);
  tokens_ = {device_.tokens, bucket_tokens_, take<float>(at, x), take<char>(at, x_cast)};
  rows_ = {device_.rows, 0, take<float>(at, x), take<char>(at, x_cast)};
  qkv_ = take<char>(at, rows * row_bytes(3 * shape.width));
  context_ = take<char>(at, x_cast);
  ffn_ = take<char>(at, rows * row_bytes(shape.ffn));
  packed_a_ = take<char>(at, max_packed_a_bytes());
  split_sums_ = take<float>(at, split_sums * sizeof(float));
  head_out_ = take<float>(at, head_out);
  for (char*& cast : head_cast_) cast = take<char>(at, head_cast);
  return at;
}

void Pass::fill_inputs(const ForwardInput& input, const Chunk& chunk) {
  *host_.tokens = static_cast<std::int32_t>(chunk.tokens);
  *host_.sequences = static_cast<std::int32_t>(chunk.sequences);
  *host_.rows = static_cast<std::int32_t>(chunk.rows);
  std::copy_n(input.ids + chunk.first_token, chunk.tokens, host_.ids);
  std::copy_n(input.positions + chunk.first_token, chunk.tokens, host_.positions);
  if (input.token_types)
    std::copy_n(input.token_types + chunk.first_token, chunk.tokens, host_.token_types);
  else
    std::fill_n(host_.token_types, chunk.tokens, 0);
  copy_cu_seqlens(input, chunk, host_.cu_seqlens);
  copy_rows(input, chunk, host_.gather);
}

// ---- running

Pass::Results Pass::start(const ForwardInput& input, const Chunk& chunk, bool hidden, bool head, Stream& stream) {
  fill_inputs(input, chunk);
  return run_graph({bucket_for(chunk.rows), hidden, head && chunk.rows > 0, true}, stream);
}

Pass::Results Pass::start(const DeviceInput& input, bool hidden, bool head, Stream& stream) {
  unpack_device_batch(
      {input.ids, input.cu_seqlens, input.token_types, input.rows, input.row_selection, static_cast<int>(input.tokens),
       static_cast<int>(input.sequences), static_cast<int>(input.num_rows), model_.rows_of(model_.word),
       model_.rows_of(model_.position), model_.rows_of(model_.token_type), device_},
      stream);
  return run_graph({bucket_for(input.num_rows), hidden, head && input.num_rows > 0, false}, stream);
}

Pass::Results Pass::run_graph(const GraphKey& key, Stream& stream) {
  std::unique_ptr<Graph>& graph = graphs_[key];
  if (!graph) graph = std::make_unique<Graph>(stream, [&] { enqueue(key, stream, nullptr); });
  graph->run(stream);
  return {key.hidden ? tokens_.x : nullptr, key.head ? head_out_ : nullptr};
}

std::uint32_t Pass::faults(Stream& stream) const {
  std::int32_t faults = 0;
  download(&faults, device_.faults, sizeof(faults), stream);
  stream.wait();
  return static_cast<std::uint32_t>(faults);
}

void Pass::run(const ForwardInput& input, const Chunk& chunk, const ForwardOutput& output, Stream& stream) {
  start(input, chunk, output.hidden != nullptr, output.head != nullptr, stream);
  fetch(input, chunk, output, stream);
}

void Pass::run_traced(const ForwardInput& input, const Chunk& chunk, const ForwardOutput& output, const Trace& trace,
                      Stream& stream) {
  fill_inputs(input, chunk);
  Tracer tracer(trace, model_.precision, stream);
  tracer.num_tokens = chunk.tokens, tracer.num_rows = chunk.rows;
  std::vector<std::int64_t> begins;
  for (Index b = 0; b < chunk.sequences; ++b) {
    begins.push_back(tracer.num_probabilities);
    const Index length = host_.cu_seqlens[b + 1] - host_.cu_seqlens[b];
    tracer.num_probabilities += model_.shape.heads * length * length;
  }
  int widest = model_.shape.width;
  for (const HeadLayer& layer : model_.head) widest = std::max(widest, layer.dense.n);
  tracer.sum =
      DeviceBuffer(static_cast<std::size_t>(bucket_tokens_) * static_cast<std::size_t>(widest) * sizeof(float));
  tracer.probabilities = DeviceBuffer(static_cast<std::size_t>(tracer.num_probabilities) * sizeof(float));
  tracer.probability_begins = DeviceBuffer(begins.size() * sizeof(std::int64_t));
  upload(tracer.probability_begins.data(), begins.data(), tracer.probability_begins.bytes(), stream);
  enqueue({bucket_for(chunk.rows), true, output.head != nullptr && chunk.rows > 0, true}, stream, &tracer);
  fetch(input, chunk, output, stream);
}

// Copies the results to the host; columns of the logits are selected there, out of all of them.
void Pass::fetch(const ForwardInput& input, const Chunk& chunk, const ForwardOutput& output, Stream& stream) const {
  const Index width = model_.shape.width, columns = model_.head_columns();
  const std::size_t hidden_bytes = output.hidden ? static_cast<std::size_t>(chunk.tokens * width) * sizeof(float) : 0,
                    head_bytes = output.head ? static_cast<std::size_t>(chunk.rows * columns) * sizeof(float) : 0;
  float *hidden = output.hidden ? output.hidden + chunk.first_token * width : nullptr,
        *head = output.head ? output.head + chunk.first_row * (input.columns ? input.num_columns : columns) : nullptr;
  const bool is_staged = hidden_bytes + head_bytes <= staged_bytes;
  char* staged = host_memory_.data() + input_bytes_;
  std::vector<float> logits(input.columns ? head_bytes / sizeof(float) : 0);  // [R, N], of which head gets [R, C]
  float* const all_columns = input.columns ? logits.data() : head;
  download(is_staged ? staged : reinterpret_cast<char*>(hidden), tokens_.x, hidden_bytes, stream);
  download(is_staged ? staged + hidden_bytes : reinterpret_cast<char*>(all_columns), head_out_, head_bytes, stream);
  stream.wait();
  if (is_staged && hidden_bytes > 0) std::memcpy(hidden, staged, hidden_bytes);
  if (is_staged && head_bytes > 0) std::memcpy(all_columns, staged + hidden_bytes, head_bytes);
  if (input.columns && head_bytes > 0) select_columns(input, all_columns, chunk.rows, columns, head);
}

// ---- layers

void Pass::enqueue(const GraphKey& key, Stream& stream, Tracer* tracer) {
  if (key.from_host) upload(arena_.data(), host_memory_.data(), input_bytes_, stream);
  OpList op_list;
  op_list.count = 0;
  OpRecorder recorder(stream, persistent_ && !tracer ? &op_list : nullptr);
  add_operations(key, recorder, tracer);
  if (op_list.count > 0) run_persistent(model_.precision, op_list, stream);
}

void Pass::add_operations(const GraphKey& key, OpRecorder& recorder, Tracer* tracer) {
  rows_.bucket = key.bucket_rows;
  embed_tokens(recorder, tracer);
  const bool skip = !key.hidden;  // the last layer computes only the rows that the head reads
  for (std::size_t i = 0; i < model_.layers.size(); ++i) {
    const Layer& layer = model_.layers[i];
    const auto at_layer = static_cast<Index>(i);
    attend(layer, at_layer, recorder, tracer);
    if (skip && i + 1 == model_.layers.size())
      finish_layer(layer, at_layer, tokens_.x, device_.gather, rows_, recorder, tracer);
    else
      finish_layer(layer, at_layer, tokens_.x, nullptr, tokens_, recorder, tracer);
  }
  if (!key.head) return;
  const bool gathered = skip && !model_.layers.empty();
  run_head(rows_, gathered ? Source{rows_.x_cast, nullptr} : Source{tokens_.x_cast, device_.gather}, recorder, tracer);
}

void Pass::embed_tokens(OpRecorder& recorder, Tracer* tracer) {
  const auto table = [](const DeviceBuffer& buffer) { return reinterpret_cast<const float*>(buffer.data()); };
  const Embed op{model_.precision,
                 device_.tokens,
                 device_.ids,
                 device_.positions,
                 device_.token_types,
                 table(model_.word),
                 table(model_.position),
                 table(model_.token_type),
                 model_.embed_norm->view(),
                 tokens_.x,
                 tokens_.x_cast};
  recorder.add(op, bucket_tokens_);
  if (tracer) tracer->record(names::embed, tokens_.x, tracer->num_tokens, model_.shape.width);
}

// tokens_ -> context_.
void Pass::attend(const Layer& layer, Index i, OpRecorder& recorder, Tracer* tracer) {
  const EncoderShape& shape = model_.shape;
  run_linear(layer.qkv, {tokens_.x_cast, nullptr}, tokens_, Activation::none, nullptr, qkv_, recorder);
  if (tracer) tracer->record(layer_name(i, names::qkv), qkv_, tracer->num_tokens, 3 * shape.width);
  Attention op{model_.precision, device_.sequences,         device_.cu_seqlens, qkv_,
               shape.heads,      shape.width / shape.heads, context_,           nullptr,
               nullptr};
  if (tracer) {
    op.probability_begins = reinterpret_cast<const std::int64_t*>(tracer->probability_begins.data());
    op.probabilities = reinterpret_cast<float*>(tracer->probabilities.data());
  }
  recorder.add(op, bucket_tokens_);
  if (!tracer) return;
  tracer->record(layer_name(i, names::probabilities), op.probabilities, 1, tracer->num_probabilities);
  tracer->record(layer_name(i, names::context), context_, tracer->num_tokens, shape.width);
}

// context_ and residual, the layer's input -> rows, the layer's output.
void Pass::finish_layer(const Layer& layer, Index i, const float* residual, const std::int32_t* gather,
                        const Rows& rows, OpRecorder& recorder, Tracer* tracer) {
  const EncoderShape& shape = model_.shape;
  linear_add_layer_norm(layer.attention_out, layer.attention_norm, {context_, gather}, Activation::none, residual,
                        gather, rows, layer_name(i, names::attention_out), recorder, tracer);
  if (tracer) tracer->record(layer_name(i, names::attention_norm), rows.x, tracer->num_tokens, shape.width);
  run_linear(layer.ffn_in, {rows.x_cast, nullptr}, rows, shape.activation, nullptr, ffn_, recorder);
  if (tracer) tracer->record(layer_name(i, names::ffn_in), ffn_, tracer->num_tokens, shape.ffn);
  linear_add_layer_norm(layer.ffn_out, layer.output_norm, {ffn_, nullptr}, Activation::none, rows.x, nullptr, rows,
                        layer_name(i, names::ffn_out), recorder, tracer);
  if (tracer) tracer->record(layer_name(i, names::output), rows.x, tracer->num_tokens, shape.width);
}

// source -> head_out_.
void Pass::run_head(const Rows& rows, Source source, OpRecorder& recorder, Tracer* tracer) {
  for (std::size_t i = 0; i < model_.head.size(); ++i) {
    const HeadLayer& layer = model_.head[i];
    const bool last = i + 1 == model_.head.size();
    const std::string name = head_name(i);
    char* cast = last ? nullptr : head_cast_[i % 2];
    if (layer.norm)
      linear_add_layer_norm(layer.dense, *layer.norm, source, layer.activation, nullptr, nullptr,
                            {rows.count, rows.bucket, head_out_, cast}, "", recorder, nullptr);
    else
      run_linear(layer.dense, source, rows, layer.activation, last ? head_out_ : nullptr, cast, recorder);
    if (tracer && (last || layer.norm)) tracer->record(name, head_out_, tracer->num_rows, layer.dense.n);
    if (tracer && !last && !layer.norm) tracer->record(name, cast, tracer->num_rows, layer.dense.n);
    source = {cast, nullptr};
  }
}

Pass::Source Pass::packed_a_for(const Dense& dense, Source source, const Rows& rows, OpRecorder& recorder) const {
  if (!dense.reads_packed_a(rows.bucket)) return source;
  recorder.add(QuantizeActivations{rows.count, source.gather, source.x, dense.packed(rows.bucket), packed_a_},
               rows.bucket);
  return {packed_a_, nullptr};
}

void Pass::run_linear(const Dense& dense, Source source, const Rows& rows, Activation activation, float* out,
                      char* out_cast, OpRecorder& recorder) const {
  source = packed_a_for(dense, source, rows, recorder);
  recorder.add(Linear{dense.precision, rows.count, source.gather, source.x, dense.packed(rows.bucket), activation, 1, 0,
                      out, out_cast},
               rows.bucket);
}

void Pass::linear_add_layer_norm(const Dense& dense, const Norm& norm, Source source, Activation activation,
                                 const float* residual, const std::int32_t* gather, const Rows& rows,
                                 const std::string& name, OpRecorder& recorder, Tracer* tracer) const {
  float* sum = tracer ? reinterpret_cast<float*>(tracer->sum.data()) : nullptr;
  if (clusters_ && residual && rows.bucket > max_rows_without_clusters) {  // in a head there is no residual
    recorder.add(LinearAddLayerNorm{{dense.precision, rows.count, source.gather, source.x, dense.packed(rows.bucket),
                                     activation, 1, 0, nullptr, nullptr},
                                    {dense.precision, rows.count, gather, nullptr, 1, 0, nullptr, residual, norm.view(),
                                     sum, rows.x, rows.x_cast}},
                 rows.bucket);
    if (tracer) tracer->record(name, sum, tracer->num_tokens, dense.n);
    return;
  }
  // add_layer_norm adds the partial sums, and an activation does not distribute over a sum.
  const int split_k =
      activation == Activation::none ? linear_split_k(dense.precision, dense.n, dense.k, rows.bucket) : 1;
  const Index split_stride = static_cast<Index>(rows.bucket) * dense.n;
  source = packed_a_for(dense, source, rows, recorder);
  recorder.add(Linear{dense.precision, rows.count, source.gather, source.x, dense.packed(rows.bucket), activation,
                      split_k, split_stride, split_sums_, nullptr},
               rows.bucket);
  recorder.add(AddLayerNorm{model_.precision, rows.count, gather, split_sums_, split_k, split_stride,
                            split_k > 1 ? dense.packed(rows.bucket).bias : nullptr, residual, norm.view(), sum, rows.x,
                            rows.x_cast},
               rows.bucket);
  if (tracer) tracer->record(name, sum, tracer->num_tokens, dense.n);
}

}  // namespace distilfast::cuda
