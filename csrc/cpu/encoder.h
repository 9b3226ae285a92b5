// The whole forward: embeddings, the layers, the head, in one call.
//
// A batch is run in chunks of whole sequences, so that scratch is bounded by the chunk and not by the batch. The bits
// of an answer depend on its own sequence alone: not on the batch, the chunk, the rows asked for or the threads, since
// every kernel fixes the order of its sums by the sizes of one row or one sequence.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "cpu/model.h"

namespace distilfast {

// Called with every intermediate in the order of computation, [rows, columns].
using Trace = std::function<void(const std::string& name, const float* data, Index rows, Index columns)>;

struct ForwardInput {
  const std::int32_t* ids;                // [T]
  const std::int32_t* positions;          // [T]
  const std::int32_t* token_types;        // [T] or null
  const std::int32_t* cu_seqlens;         // [B + 1]
  Index sequences;                        // B
  const std::int32_t* rows;               // [R], strictly increasing: the rows that the head reads
  Index num_rows;                         // R
  const std::int32_t* columns = nullptr;  // [C], strictly increasing: of the head's last linear, or null: all
  Index num_columns = 0;                  // C
};

struct ForwardOutput {
  float* hidden;  // [T, D], or null: not wanted, and the last layer skips rows that the head does not read
  float* head;    // [R, C, or N of the head's last linear], or null: no head is run
};

struct Workspace;

class Encoder {
 public:
  // See Model for `find` and `packed`.
  Encoder(const EncoderShape& shape, const std::vector<HeadLinear>& head, const FindTensor& find,
          const Kernels& kernels, Precision precision, std::span<const std::byte> packed, int threads);
  ~Encoder();

  // Safe to call from several threads at once. With `trace` all rows are computed.
  void forward(const ForwardInput& input, const ForwardOutput& output, const Trace& trace = {}) const;

  const Kernels& kernels() const { return kernels_; }
  const AttentionKernels& attention() const { return attention_; }
  int threads() const { return threads_; }
  const Model& model() const { return model_; }
  std::size_t scratch_bytes() const;  // of all workspaces that are not lent out

 private:
  std::unique_ptr<Workspace> borrow_workspace() const;
  void return_workspace(std::unique_ptr<Workspace> workspace) const;

  const Kernels& kernels_;
  const AttentionKernels& attention_;
  int threads_;
  Model model_;
  mutable std::vector<std::unique_ptr<Workspace>> idle_;  // one for each caller there ever was at once
};

}  // namespace distilfast
