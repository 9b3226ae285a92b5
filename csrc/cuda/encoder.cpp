#include "cuda/encoder.h"

#include <algorithm>
#include <map>
#include <stdexcept>
#include <utility>

#include "common/chunks.h"
#include "cuda/pass.h"

namespace distilfast::cuda {

namespace {

// Bounds a chunk's head output to 256 MB: its columns may be the vocabulary.
constexpr Index max_head_floats = Index{1} << 26;

struct TooManyTokens : std::runtime_error {
  explicit TooManyTokens(Index most)
      : std::runtime_error("At most " + std::to_string(most) + " tokens are run at once.") {}
};

Model load(const EncoderShape& shape, const std::vector<HeadLinear>& head, const FindTensor& find,
           Precision precision) {
  Stream stream;
  return Model(shape, head, find, precision, stream);
}

}  // namespace

// What forwards reuse, one at a time: a stream, and a pass for each bucket that has been run.
class Workspace {
 public:
  Stream stream;
  std::map<int, Pass> passes;
  bool in_flight = false;  // work before the stream's mark may still read its host memory

  Pass& pass_for(const Model& model, Index tokens, const Options& options) {
    const int bucket = bucket_for(tokens);
    return passes.try_emplace(bucket, model, bucket, options).first->second;
  }

  std::size_t bytes() const {
    std::size_t bytes = 0;
    for (const auto& [bucket, pass] : passes) bytes += pass.bytes();
    return bytes;
  }
};

Encoder::Encoder(const EncoderShape& shape, const std::vector<HeadLinear>& head, const FindTensor& find,
                 Precision precision, Index chunk_tokens, const Options& options)
    : device_(current_device()),
      model_(load(shape, head, find, precision)),
      chunk_tokens_(chunk_tokens),
      options_{options.persistent && has_persistent_kernel(precision),
               options.clusters && !linear_add_layer_norm_unsupported_reason(precision, shape.width)},
      workspaces_(mutex_) {
  if (options_.persistent) load_persistent(precision);
  if (options_.clusters) load_linear_add_layer_norm(precision);
}

Encoder::~Encoder() = default;

void check_reader(StreamHandle stream) {
  // The stream that this handle means depends on the thread that uses it, and any thread may drop the results last.
  if (stream == thread_default_stream)
    throw std::invalid_argument(
        "Stream 2 is the default stream of whichever thread uses it; pass a stream's own handle.");
  check_stream(stream);
}

void Encoder::forward(const ForwardInput& input, const ForwardOutput& output, const Trace& trace,
                      const ShouldContinue& should_continue) const {
  const CurrentDevice current(device_);
  std::unique_ptr<Workspace> workspace = borrow_workspace(true);
  const Index all = input.cu_seqlens[input.sequences];
  const Index limit = trace ? all : chunk_limit();  // a trace is of one chunk
  for (Chunk chunk = next_chunk(input, {}, limit); chunk.sequences > 0; chunk = next_chunk(input, chunk, limit)) {
    if (chunk.first_sequence > 0 && should_continue && !should_continue()) break;
    Pass& pass = workspace->pass_for(model_, chunk.tokens, options_);
    if (trace)
      pass.run_traced(input, chunk, output, trace, workspace->stream);
    else
      pass.run(input, chunk, output, workspace->stream);
  }
  // A trace's buffers are as large as its batch, so they are not kept.
  if (!trace) workspaces_.give_back(std::move(workspace));
}

std::unique_ptr<DeviceOutput> Encoder::forward_on_device(const ForwardInput& input, bool hidden, bool head,
                                                         StreamHandle caller) const {
  const CurrentDevice current(device_);
  check_reader(caller);
  if (input.columns) throw std::invalid_argument("Columns can only be selected on the host.");
  const Chunk chunk = next_chunk(input, {}, chunk_limit());
  if (chunk.sequences < input.sequences) throw TooManyTokens(chunk_limit());
  std::unique_ptr<Workspace> workspace = borrow_workspace(true);
  Pass& pass = workspace->pass_for(model_, chunk.tokens, options_);
  workspace->stream.follow(caller);
  const Pass::Results results = pass.start(input, chunk, hidden, head, workspace->stream);
  workspace->stream.mark();  // readers of the results follow, for which the next batch need not wait
  workspace->in_flight = true;
  return std::make_unique<DeviceOutput>(shared_from_this(), std::move(workspace), pass, results.hidden, results.head,
                                        caller);
}

std::unique_ptr<DeviceOutput> Encoder::forward_on_device(const DeviceInput& input, bool hidden,
                                                         StreamHandle caller) const {
  const CurrentDevice current(device_);
  check_reader(caller);
  for (const StreamHandle producer : input.producers) check_stream(producer);
  if (input.tokens > chunk_limit()) throw TooManyTokens(chunk_limit());
  std::unique_ptr<Workspace> workspace = borrow_workspace(false);
  Pass& pass = workspace->pass_for(model_, input.tokens, options_);
  workspace->stream.follow(caller);
  for (const StreamHandle producer : input.producers) workspace->stream.follow(producer);
  const bool head = input.num_rows > 0 && !model_.head.empty();
  const Pass::Results results = pass.start(input, hidden, head, workspace->stream);
  return std::make_unique<DeviceOutput>(shared_from_this(), std::move(workspace), pass, results.hidden, results.head,
                                        caller);
}

Index Encoder::chunk_limit() const {
  const Index by_head = max_head_floats / std::max(1, model_.head_columns());
  return std::clamp<Index>(by_head, 1, chunk_tokens_);
}

std::unique_ptr<Workspace> Encoder::borrow_workspace(bool writes_host_memory) const {
  std::unique_ptr<Workspace> workspace = workspaces_.borrow();
  if (writes_host_memory && std::exchange(workspace->in_flight, false)) workspace->stream.wait_for_mark();
  return workspace;
}

std::size_t Encoder::scratch_bytes() const { return workspaces_.bytes(); }

DeviceOutput::DeviceOutput(std::shared_ptr<const Encoder> encoder, std::unique_ptr<Workspace> workspace,
                           const Pass& pass, const float* hidden, const float* head, StreamHandle caller)
    : hidden(hidden), head(head), encoder_(std::move(encoder)), workspace_(std::move(workspace)), pass_(pass) {
  share_with(caller);
}

DeviceOutput::~DeviceOutput() {
  try {
    const CurrentDevice current(encoder_->device());
    for (const StreamHandle reader : readers_) workspace_->stream.follow(reader);
    encoder_->workspaces_.give_back(std::move(workspace_));
  } catch (const std::exception&) {
    // The device is lost: the workspace is dropped, and the next call reports the error.
  }
}

void DeviceOutput::share_with(StreamHandle stream) {
  if (std::find(readers_.begin(), readers_.end(), stream) != readers_.end()) return;
  const CurrentDevice current(encoder_->device());
  check_reader(stream);
  workspace_->stream.precede(stream);
  readers_.push_back(stream);
}

int DeviceOutput::device() const { return encoder_->device(); }

void DeviceOutput::wait() const {
  const CurrentDevice current(encoder_->device());
  const std::uint32_t faults = pass_.faults(workspace_->stream);
  const Model& model = encoder_->model();
  const auto out_of_range = [&](const char* name, const DeviceBuffer& table) {
    return std::string(name) + " holds a number outside 0 to " + std::to_string(model.rows_of(table) - 1) + ".";
  };
  if (faults & fault_cu_seqlens)
    throw std::invalid_argument("cu_seqlens must be strictly increasing from 0 to the number of tokens.");
  if (faults & fault_rows) throw std::invalid_argument("rows must be strictly increasing and lie within the tokens.");
  if (faults & fault_ids) throw std::invalid_argument(out_of_range("input_ids", model.word));
  if (faults & fault_token_types) throw std::invalid_argument(out_of_range("token_types", model.token_type));
  if (faults & fault_positions)
    throw std::invalid_argument("A sequence is longer than the model's " +
                                std::to_string(model.rows_of(model.position)) + " positions.");
}

}  // namespace distilfast::cuda
