// One chunk's way through the model, in the buffers of one bucket.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "common/chunks.h"
#include "cuda/encoder.h"
#include "cuda/program.h"

namespace distilfast::cuda {

// The smallest bucket that holds `count` tokens or rows: a power of two, at least 16.
int bucket_for(Index count);

// What a graph was made for.
struct Wish {
  int most_rows;  // the bucket of the rows that the head reads
  bool hidden, head;
  bool from_host;  // begins with a copy of the inputs

  auto operator<=>(const Wish&) const = default;
};

class Tracer;

class Pass {
 public:
  // `options`: those that the device and the model's precision and width allow.
  Pass(const Model& model, int most_tokens, const Options& options);

  // Where a forward leaves its numbers, on the device.
  struct Results {
    const float *hidden, *head;  // [T, D] and [R, N], null where they are not wanted
  };
  // Enqueues a forward and does not wait.
  Results start(const ForwardInput& input, const Chunk& chunk, bool hidden, bool head, Stream& stream);
  Results start(const DeviceInput& input, bool hidden, bool head, Stream& stream);
  // What the device has found wrong with a DeviceInput, when it is done.
  std::uint32_t faults(Stream& stream) const;
  void run(const ForwardInput& input, const Chunk& chunk, const ForwardOutput& output, Stream& stream);
  // Without a graph and with all rows computed; hands over every intermediate.
  void run_traced(const ForwardInput& input, const Chunk& chunk, const ForwardOutput& output, const Trace& trace,
                  Stream& stream);

  std::size_t bytes() const { return arena_.bytes(); }

 private:
  // Rows on their way through the layers: the residual stream, and what the linears read of it.
  struct Rows {
    const std::int32_t* count;
    int most;
    float* x;     // [most, D]
    char* x_low;  // T [most, row_stride(D)]
  };
  // What a linear reads: T [*, row_stride(K)] or operands, and which of its rows (null: one after the other).
  struct Source {
    const char* x;
    const std::int32_t* gather;
  };

  // One after the other, so that a batch of the host's is one copy.
  char* place_inputs(char* at, BatchInputs& inputs) const;
  char* place_buffers(char* at);
  std::size_t row_bytes(int columns) const;
  std::size_t most_operand_bytes() const;
  Results run_graph(const Wish& wish, Stream& stream);
  void fill_inputs(const ForwardInput& input, const Chunk& chunk);
  void fetch(const ForwardInput& input, const Chunk& chunk, const ForwardOutput& output, Stream& stream) const;

  // A tracer, where there is one, looks at what they leave.
  void enqueue(const Wish& wish, Stream& stream, Tracer* tracer);
  void add_operations(const Wish& wish, Queue& queue, Tracer* tracer);
  bool can_persist() const;
  void embed_tokens(Queue& queue, Tracer* tracer);
  void attend(const Layer& layer, Index i, Queue& queue, Tracer* tracer);
  void behind_attention(const Layer& layer, Index i, const float* residual, const std::int32_t* gather,
                        const Rows& rows, Queue& queue, Tracer* tracer);
  // What the linear reads of `source`: itself, or the operands that are made of it.
  Source operands_for(const Dense& dense, Source source, const Rows& rows, Queue& queue) const;
  void run_head(const Rows& rows, Source source, Queue& queue, Tracer* tracer);
  void run_linear(const Dense& dense, Source source, const Rows& rows, Activation activation, float* out, char* out_low,
                  Queue& queue) const;
  // LN(x Wt + b + residual) into rows.x and rows.x_low; the sum before the residual goes to the tracer as `name`.
  void linear_add_layer_norm(const Dense& dense, const Norm& norm, Source source, Activation activation,
                             const float* residual, const std::int32_t* gather, const Rows& rows,
                             const std::string& name, Queue& queue, Tracer* tracer) const;

  const Model& model_;
  int most_tokens_;
  bool persistent_, clusters_;
  std::size_t input_bytes_;
  PinnedBuffer host_memory_;
  BatchInputs host_, device_;
  DeviceBuffer arena_;
  Rows tokens_, rows_;  // all of them; those that the head reads
  char *qkv_, *context_, *wide_, *operands_, *head_low_[2];
  float *parts_, *head_out_;
  std::map<Wish, std::unique_ptr<Graph>> graphs_;
};

}  // namespace distilfast::cuda
