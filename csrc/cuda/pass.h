// One chunk through the whole model, in the buffers and graphs of one bucket.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "common/chunks.h"
#include "cuda/encoder.h"
#include "cuda/op_list.h"

namespace distilfast::cuda {

// The smallest bucket that holds `count` tokens or rows: a power of two, at least 16.
int bucket_for(Index count);

// What a graph depends on.
struct GraphKey {
  int bucket_rows;  // the bucket of the rows that the head reads
  bool hidden, head;
  bool from_host;  // begins with a copy of the inputs

  auto operator<=>(const GraphKey&) const = default;
};

class Tracer;

class Pass {
 public:
  // `options`: those that the device and the model's precision and width allow.
  Pass(const Model& model, int bucket_tokens, const Options& options);

  // The results of a forward, on the device.
  struct Results {
    const float *hidden, *head;  // [T, D] and [R, N], null where not asked for
  };
  // Enqueues a forward and does not wait.
  Results start(const ForwardInput& input, const Chunk& chunk, bool hidden, bool head, Stream& stream);
  Results start(const DeviceInput& input, bool hidden, bool head, Stream& stream);
  // Errors that the device found in a DeviceInput; waits.
  std::uint32_t faults(Stream& stream) const;
  void run(const ForwardInput& input, const Chunk& chunk, const ForwardOutput& output, Stream& stream);
  // Without a graph and with all rows computed; records every intermediate.
  void run_traced(const ForwardInput& input, const Chunk& chunk, const ForwardOutput& output, const Trace& trace,
                  Stream& stream);

  std::size_t bytes() const { return arena_.bytes(); }

 private:
  // A layer's rows: the fp32 residual stream, and its copy in T, which linears read.
  struct Rows {
    const std::int32_t* count;
    int bucket;
    float* x;      // [bucket_tokens, D]
    char* x_cast;  // T [bucket_tokens, row_stride(D)]
  };
  // What a linear reads: T [*, row_stride(K)] or packed A, and which of its rows (null: all, in order).
  struct Source {
    const char* x;
    const std::int32_t* gather;
  };

  // Lays out the inputs contiguously, so that a batch from the host is one copy.
  char* place_inputs(char* at, BatchInputs& inputs) const;
  char* place_buffers(char* at);
  std::size_t row_bytes(int columns) const;
  std::size_t max_packed_a_bytes() const;
  Results run_graph(const GraphKey& key, Stream& stream);
  void fill_inputs(const ForwardInput& input, const Chunk& chunk);
  void fetch(const ForwardInput& input, const Chunk& chunk, const ForwardOutput& output, Stream& stream) const;

  // The tracer may be null.
  void enqueue(const GraphKey& key, Stream& stream, Tracer* tracer);
  void add_operations(const GraphKey& key, OpRecorder& recorder, Tracer* tracer);
  bool fits_persistent_kernel() const;
  void embed_tokens(OpRecorder& recorder, Tracer* tracer);
  void attend(const Layer& layer, Index i, OpRecorder& recorder, Tracer* tracer);
  void finish_layer(const Layer& layer, Index i, const float* residual, const std::int32_t* gather, const Rows& rows,
                    OpRecorder& recorder, Tracer* tracer);
  // What the linear reads: `source` itself, or packed A, into which it is quantised.
  Source packed_a_for(const Dense& dense, Source source, const Rows& rows, OpRecorder& recorder) const;
  void run_head(const Rows& rows, Source source, OpRecorder& recorder, Tracer* tracer);
  void run_linear(const Dense& dense, Source source, const Rows& rows, Activation activation, float* out,
                  char* out_cast, OpRecorder& recorder) const;
  // LN(x Wt + b + residual) into rows.x and rows.x_cast; the sum before the residual goes to the tracer as `name`.
  void linear_add_layer_norm(const Dense& dense, const Norm& norm, Source source, Activation activation,
                             const float* residual, const std::int32_t* gather, const Rows& rows,
                             const std::string& name, OpRecorder& recorder, Tracer* tracer) const;

  const Model& model_;
  int bucket_tokens_;
  bool persistent_, clusters_;
  std::size_t input_bytes_;
  PinnedBuffer host_memory_;
  BatchInputs host_, device_;
  DeviceBuffer arena_;
  Rows tokens_, rows_;  // all tokens; the rows that the head reads
  char *qkv_, *context_, *ffn_, *packed_a_, *head_cast_[2];
  float *split_sums_, *head_out_;
  std::map<GraphKey, std::unique_ptr<Graph>> graphs_;
};

}  // namespace distilfast::cuda
