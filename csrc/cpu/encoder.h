// The whole forward in one call: embeddings, layers, head.
//
// A batch is run in chunks of whole sequences (see common/chunks.h). The bits of an answer depend on its own sequence
// alone, not on the batch, the chunk, the rows asked for or the number of threads: every kernel fixes the order of its
// reductions by the sizes of one row or one sequence.
#pragma once

#include <memory>
#include <vector>

#include "common/workspace_pool.h"
#include "cpu/model.h"

namespace distilfast {

struct Workspace;

class Encoder {
 public:
  // See Model for `find` and `packed`.
  Encoder(const EncoderShape& shape, const std::vector<HeadLinear>& head, const FindTensor& find,
          const Kernels& kernels, Precision precision, std::span<const std::byte> packed, int threads);
  ~Encoder();

  // Safe to call from several threads at once. With `trace`, which is called for each chunk, all rows are computed.
  void forward(const ForwardInput& input, const ForwardOutput& output, const Trace& trace = {},
               const ShouldContinue& should_continue = {}) const;

  const Kernels& kernels() const { return kernels_; }
  const AttentionKernels& attention() const { return attention_; }
  int threads() const { return threads_; }
  const Model& model() const { return model_; }
  std::size_t scratch_bytes() const;  // of all workspaces that no forward is using

 private:
  const Kernels& kernels_;
  const AttentionKernels& attention_;
  int threads_;
  Model model_;
  mutable WorkspacePool<Workspace> workspaces_;
};

}  // namespace distilfast
