// The whole forward: embeddings, the layers, the head; one graph, one synchronisation.
//
// A batch is run in chunks of whole sequences, see common/chunks.h. A chunk has a bucket for its tokens and one for the
// rows that the head reads. Sizes are read on the device, so one graph for each pair of buckets serves every chunk that
// fits. The result for a sequence depends on that sequence and the buckets alone.
#pragma once

#include <memory>
#include <mutex>
#include <vector>

#include "common/workspace_pool.h"
#include "cuda/model.h"

namespace distilfast::cuda {

// A batch in device memory, of which the host knows only the sizes. It must not change before the work enqueued on the
// caller's stream at the time of the call has finished.
struct DeviceInput {
  Integers ids;                           // [T]
  Integers cu_seqlens;                    // [B + 1]
  Integers token_types;                   // [T], or null
  Integers rows;                          // [R], for RowSelection::given
  RowSelection row_selection;             // which rows the head reads
  Index tokens, sequences, num_rows;      // T, B, R; without rows no head is run
  std::vector<StreamHandle> producers{};  // other streams whose work writes it
};

// Variants not yet measured to be faster; each is used where device, precision, sizes and bucket allow it.
struct Options {
  bool persistent;  // small buckets run in one persistent kernel instead of a graph of many
  bool clusters;    // in large buckets linear_add_layer_norm replaces two kernels
};

class Workspace;
class Pass;
class Encoder;

// Throws std::invalid_argument where results cannot be ordered with a caller's stream.
void check_reader(StreamHandle stream);

// The results of a forward, on the device. It owns the workspace that holds them, so nothing overwrites them.
class DeviceOutput {
 public:
  DeviceOutput(std::shared_ptr<const Encoder> encoder, std::unique_ptr<Workspace> workspace, const Pass& pass,
               const float* hidden, const float* head, StreamHandle caller);
  ~DeviceOutput();

  // Lets a stream read the results: work enqueued there from now on waits for them, and the workspace is not reused
  // before the work that is enqueued there when this object is destroyed. The constructor does it for `caller`.
  void share_with(StreamHandle stream);
  int device() const;
  StreamHandle caller() const { return readers_.front(); }
  // Waits for the results. Throws std::invalid_argument where the device found a DeviceInput to be wrong; the results
  // of the sequences concerned are NaN.
  void wait() const;

  const float* const hidden;  // [T, D], or null
  const float* const head;    // [R, N], or null

 private:
  std::shared_ptr<const Encoder> encoder_;
  std::unique_ptr<Workspace> workspace_;
  const Pass& pass_;  // of the workspace
  std::vector<StreamHandle> readers_;
};

class Encoder : public std::enable_shared_from_this<Encoder> {
 public:
  // See Model for `find` and common/chunks.h for `chunk_tokens`. The encoder belongs to the device that is current
  // here: every call runs there, whatever the calling thread's device is.
  Encoder(const EncoderShape& shape, const std::vector<HeadLinear>& head, const FindTensor& find, Precision precision,
          Index chunk_tokens, const Options& options);
  ~Encoder();

  // All pointers are to host memory. Safe to call from several threads at once. With `trace` all rows are computed.
  void forward(const ForwardInput& input, const ForwardOutput& output, const Trace& trace = {},
               const ShouldContinue& should_continue = {}) const;

  // Only enqueues, after the work now on the caller's stream and before what is enqueued there next.
  // Throws std::runtime_error for a batch of more than one chunk, std::invalid_argument for a stream of another device
  // and for `columns`, which are selected on the host.
  std::unique_ptr<DeviceOutput> forward_on_device(const ForwardInput& input, bool hidden, bool head,
                                                  StreamHandle caller) const;

  // The same for a batch that is on the device already.
  std::unique_ptr<DeviceOutput> forward_on_device(const DeviceInput& input, bool hidden, StreamHandle caller) const;

  const Model& model() const { return model_; }
  int device() const { return device_; }
  std::size_t scratch_bytes() const;  // of device memory, in all workspaces that no forward is using

 private:
  friend class DeviceOutput;

  Index chunk_limit() const;  // tokens
  // `writes_host_memory`: the caller will write its host memory, so copies from there must have finished.
  std::unique_ptr<Workspace> borrow_workspace(bool writes_host_memory) const;

  int device_;
  Model model_;
  Index chunk_tokens_;
  Options options_;
  mutable std::mutex mutex_;
  mutable WorkspacePool<Workspace> workspaces_;
};

}  // namespace distilfast::cuda
