// A forward as a list of operations, for one launch that runs them all.
#pragma once

#include "cuda/kernels.h"

namespace distilfast::cuda {

struct Stage {
  enum class Kind { embed, linear, attention, add_layer_norm };

  Kind kind;
  int most_rows;
  union {
    Embed embed;
    Linear linear;
    Attention attention;
    AddLayerNorm add_layer_norm;
  };
};

constexpr int most_stages = 128;  // a model of 17 layers with its head
constexpr int most_persistent_rows = 64, most_persistent_head = 64;

// A kernel's argument: 32 KB of them there can be.
struct Program {
  int count;
  Stage stages[most_stages];
};

// Takes operations: starts each at once, or keeps it for a program.
class Queue {
 public:
  Queue(Stream& stream, Program* program) : stream_(stream), program_(program) {}

  // Never a program's: it is for more rows than a program has.
  void add(const LinearAddLayerNorm& op, int most_rows) { linear_add_layer_norm(op, most_rows, stream_); }
  void add(const Embed& op, int most_rows) {
    if (Stage* stage = keep(Stage::Kind::embed, most_rows))
      stage->embed = op;
    else
      embed(op, most_rows, stream_);
  }
  void add(const Linear& op, int most_rows) {
    if (Stage* stage = keep(Stage::Kind::linear, most_rows))
      stage->linear = op;
    else
      linear(op, most_rows, stream_);
  }
  void add(const Attention& op, int most_rows) {
    if (Stage* stage = keep(Stage::Kind::attention, most_rows))
      stage->attention = op;
    else
      attention(op, most_rows, stream_);
  }
  void add(const AddLayerNorm& op, int most_rows) {
    if (Stage* stage = keep(Stage::Kind::add_layer_norm, most_rows))
      stage->add_layer_norm = op;
    else
      add_layer_norm(op, most_rows, stream_);
  }
  // Never a program's: more rows have operands than a program can have.
  void add(const MakeOperands& op, int most_rows) { make_operands(op, most_rows, stream_); }

 private:
  Stage* keep(Stage::Kind kind, int most_rows) {
    if (!program_) return nullptr;
    Stage& stage = program_->stages[program_->count++];
    stage.kind = kind, stage.most_rows = most_rows;
    return &stage;
  }

  Stream& stream_;
  Program* program_;
};

static_assert(most_weight_only_rows >= most_persistent_rows);

inline bool can_persist(Precision precision) { return precision != Precision::fp32; }

// Enqueues one cooperative launch. Only where it can persist, for stages with at most most_persistent_rows rows and
// heads of at most most_persistent_head columns.
void run_persistent(Precision precision, const Program& program, Stream& stream);
void load_persistent(Precision precision);

}  // namespace distilfast::cuda
