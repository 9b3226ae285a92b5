// The names of a model's tensors and of its intermediates, and which linears it consists of.
//
// A linear `layer.0.qkv` has the tensors `layer.0.qkv.weight` and `.bias`, and its output is recorded in a trace as
// `layer.0.qkv`. distilfast/weights.py maps a checkpoint's tensors to these names.
#pragma once

#include <array>
#include <string>
#include <vector>

#include "common/types.h"

namespace distilfast {

namespace names {

// The embedding tables, and their LayerNorm.
inline constexpr char embed_word[] = "embed.word", embed_position[] = "embed.position",
                      embed_token_type[] = "embed.token_type", embed_norm[] = "embed.norm";
// Of a layer, in the order of computation; `probabilities` and `context` are attention's and have no weights.
inline constexpr char qkv[] = "qkv", probabilities[] = "probabilities", context[] = "context",
                      attention_out[] = "attention_out", attention_norm[] = "attention_norm", ffn_in[] = "ffn_in",
                      ffn_out[] = "ffn_out", output_norm[] = "output_norm";
// Only in a trace: the embedding, and a layer's output.
inline constexpr char embed[] = "embed", output[] = "output";

}  // namespace names

inline std::string layer_name(Index layer, const char* name) { return "layer." + std::to_string(layer) + "." + name; }

inline std::string head_name(std::size_t linear) { return "head." + std::to_string(linear); }

inline std::string head_norm_name(std::size_t linear) { return head_name(linear) + ".norm"; }

// A head's linears run on few rows, where int8 would gain nothing.
inline Precision head_precision(Precision precision) {
  return precision == Precision::int8 ? Precision::bf16 : precision;
}

// A linear with the weight [N, K].
struct LinearShape {
  std::string name;
  int n, k;
  Precision precision;
};

// Of one layer, in the order of computation: qkv, attention_out, ffn_in, ffn_out.
inline std::array<LinearShape, 4> layer_linears(const EncoderShape& shape, Index layer, Precision precision) {
  const int d = shape.width, f = shape.ffn;
  return {{{layer_name(layer, names::qkv), 3 * d, d, precision},
           {layer_name(layer, names::attention_out), d, d, precision},
           {layer_name(layer, names::ffn_in), f, d, precision},
           {layer_name(layer, names::ffn_out), d, f, precision}}};
}

// Of a head on hidden states of so many columns.
inline std::vector<LinearShape> head_linears(int width, const std::vector<HeadLinear>& head, Precision precision) {
  std::vector<LinearShape> linears;
  for (std::size_t i = 0; i < head.size(); ++i) {
    linears.push_back({head_name(i), head[i].columns, width, head_precision(precision)});
    width = head[i].columns;
  }
  return linears;
}

}  // namespace distilfast
