// A forward as a list of operations, for the persistent kernel.
#pragma once

#include "cuda/kernels.h"

namespace distilfast::cuda {

struct Op {
  enum class Kind { embed, linear, attention, add_layer_norm };

  Kind kind;
  int bucket_rows;
  union {
    Embed embed;
    Linear linear;
    Attention attention;
    AddLayerNorm add_layer_norm;
  };
};

constexpr int max_ops = 128;  // a model of 17 layers with its head
constexpr int max_persistent_rows = 64, max_persistent_head = 64;

// Passed as the kernel's argument, which may have 32 KB.
struct OpList {
  int count;
  Op ops[max_ops];
};

// Launches each operation at once or, given a list, appends it.
class OpRecorder {
 public:
  OpRecorder(Stream& stream, OpList* op_list) : stream_(stream), op_list_(op_list) {}

  // Always launched: it is for more rows than a persistent kernel runs.
  void add(const LinearAddLayerNorm& op, int bucket_rows) { linear_add_layer_norm(op, bucket_rows, stream_); }
  void add(const Embed& op, int bucket_rows) {
    if (Op* recorded = record(Op::Kind::embed, bucket_rows))
      recorded->embed = op;
    else
      embed(op, bucket_rows, stream_);
  }
  void add(const Linear& op, int bucket_rows) {
    if (Op* recorded = record(Op::Kind::linear, bucket_rows))
      recorded->linear = op;
    else
      linear(op, bucket_rows, stream_);
  }
  void add(const Attention& op, int bucket_rows) {
    if (Op* recorded = record(Op::Kind::attention, bucket_rows))
      recorded->attention = op;
    else
      attention(op, bucket_rows, stream_);
  }
  void add(const AddLayerNorm& op, int bucket_rows) {
    if (Op* recorded = record(Op::Kind::add_layer_norm, bucket_rows))
      recorded->add_layer_norm = op;
    else
      add_layer_norm(op, bucket_rows, stream_);
  }
  // Always launched: W8A8 is for more rows than a persistent kernel runs.
  void add(const QuantizeActivations& op, int bucket_rows) { quantize_activations(op, bucket_rows, stream_); }

 private:
  Op* record(Op::Kind kind, int bucket_rows) {
    if (!op_list_) return nullptr;
    Op& op = op_list_->ops[op_list_->count++];
    op.kind = kind, op.bucket_rows = bucket_rows;
    return &op;
  }

  Stream& stream_;
  OpList* op_list_;
};

static_assert(max_w8a16_rows >= max_persistent_rows);

inline bool has_persistent_kernel(Precision precision) { return precision != Precision::fp32; }

// Enqueues one cooperative launch, in a precision that has the kernel, for operations with at most max_persistent_rows
// rows and heads of at most max_persistent_head columns.
void run_persistent(Precision precision, const OpList& op_list, Stream& stream);
void load_persistent(Precision precision);

}  // namespace distilfast::cuda
