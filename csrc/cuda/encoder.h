// The whole forward: embeddings, the layers, the head; one graph, one wait.
//
// A batch is run in chunks of whole sequences, so that device memory is bounded by the chunk. A chunk is run in the
// bucket that its tokens fit, and the rows that the head reads in a bucket of theirs: sizes are read on the device, and
// one graph for each pair of buckets serves every batch that fits. The arithmetic of an answer is fixed by its own
// sequence and the buckets.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "cuda/model.h"

namespace distilfast::cuda {

// Called with every intermediate in the order of computation, [rows, columns].
using Trace = std::function<void(const std::string& name, const float* data, Index rows, Index columns)>;

struct ForwardInput {
  const std::int32_t* ids;          // [T]
  const std::int32_t* positions;    // [T]
  const std::int32_t* token_types;  // [T] or null
  const std::int32_t* cu_seqlens;   // [B + 1]
  Index sequences;                  // B
  const std::int32_t* rows;         // [R], strictly increasing: the rows that the head reads
  Index num_rows;                   // R
};

struct ForwardOutput {
  float* hidden;  // [T, D], or null: not wanted, and the last layer skips rows that the head does not read
  float* head;    // [R, N of the head's last linear], or null: no head is run
};

class Workspace;

class Encoder {
 public:
  // See Model for `find`. A chunk is closed before it has more than `chunk_tokens`, but for a single longer sequence.
  // `persistent`: small buckets are run by one launch instead of a graph of many.
  Encoder(const EncoderShape& shape, const std::vector<HeadLinear>& head, const FindTensor& find, Index chunk_tokens,
          bool persistent);
  ~Encoder();

  // All pointers are to host memory. Safe to call from several threads at once. With `trace` all rows are computed.
  void forward(const ForwardInput& input, const ForwardOutput& output, const Trace& trace = {}) const;

  const Model& model() const { return model_; }
  std::size_t scratch_bytes() const;  // of device memory, in all workspaces that are not lent out

 private:
  std::unique_ptr<Workspace> borrow_workspace() const;
  void return_workspace(std::unique_ptr<Workspace> workspace) const;

  Model model_;
  Index chunk_tokens_;
  bool persistent_;
  mutable std::mutex mutex_;
  mutable std::vector<std::unique_ptr<Workspace>> idle_;  // one for each caller there ever was at once
};

}  // namespace distilfast::cuda
