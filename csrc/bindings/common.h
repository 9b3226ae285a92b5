// What both modules share: array types, names of enums, the arguments of an encoder, and a forward on numpy arrays.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <tuple>
#include <vector>

#include "bindings/gil.h"
#include "common/checks.h"
#include "common/types.h"

namespace distilfast {

using Floats = py::array_t<float, py::array::c_style>;
using Ints = py::array_t<std::int32_t, py::array::c_style>;
// Raw bytes: packed weights; on the GPU rows of the precision's elements, [rows, row_stride(columns) * element size].
using Bytes = py::array_t<std::uint8_t, py::array::c_style>;

// The numbers of an array of one dimension, where they lie; checks.h copies them.
inline GivenNumbers numbers_of(const char* name, const Ints& array) {
  if (array.ndim() != 1)
    throw std::invalid_argument(std::string(name) + " has " + std::to_string(array.ndim()) +
                                " dimensions; one is needed.");
  return {array.data(), static_cast<std::size_t>(array.size())};
}

inline std::optional<GivenNumbers> numbers_of(const char* name, const std::optional<Ints>& array) {
  if (!array) return std::nullopt;
  return numbers_of(name, *array);
}

inline TokenNumbers token_numbers_of(const Ints& ids, const Ints& positions, const std::optional<Ints>& token_types,
                                     const TableRows& tables) {
  return {numbers_of("ids", ids), numbers_of("positions", positions), numbers_of("token_types", token_types), tables};
}

inline HostBatch batch_of(const Ints& ids, const Ints& positions, const std::optional<Ints>& token_types,
                          const Ints& cu_seqlens, const std::optional<Ints>& rows, const std::optional<Ints>& columns,
                          const ResultSizes& sizes, const TableRows& tables) {
  return {token_numbers_of(ids, positions, token_types, tables), numbers_of("cu_seqlens", cu_seqlens),
          numbers_of("rows", rows), numbers_of("columns", columns), sizes};
}

// ---- enums by name

template <class Value>
Value named(const std::map<std::string, Value>& values, const std::string& name, const char* kind) {
  const auto found = values.find(name);
  if (found == values.end()) throw std::invalid_argument(std::string(kind) + " '" + name + "' is not known.");
  return found->second;
}

inline Activation activation_named(const std::string& name) {
  static const std::map<std::string, Activation> names = {
      {"none", Activation::none}, {"gelu", Activation::gelu}, {"relu", Activation::relu}, {"tanh", Activation::tanh}};
  return named(names, name, "Activation");
}

inline Precision cpu_precision_named(const std::string& name) {
  static const std::map<std::string, Precision> names = {
      {"fp32", Precision::fp32}, {"bf16x3", Precision::bf16x3}, {"bf16", Precision::bf16}, {"int8", Precision::int8}};
  return named(names, name, "Precision");
}

inline Precision gpu_precision_named(const std::string& name) {
  static const std::map<std::string, Precision> names = {
      {"fp32", Precision::fp32}, {"fp16", Precision::fp16}, {"bf16", Precision::bf16}, {"int8", Precision::int8}};
  return named(names, name, "Precision");
}

// ---- an encoder's arguments

// Columns, activation and "is it followed by a LayerNorm?" of each linear.
using HeadArgument = std::vector<std::tuple<int, std::string, bool>>;

inline std::vector<HeadLinear> head_of(const HeadArgument& head) {
  std::vector<HeadLinear> linears;
  for (const auto& [columns, activation, norm] : head) linears.push_back({columns, activation_named(activation), norm});
  return linears;
}

// ---- a forward

// The intermediates of a forward, copied chunk by chunk while the GIL is released and given to Python afterwards.
class Recorder {
 public:
  // `names`: the intermediates to keep, or null: all.
  explicit Recorder(const std::set<std::string>* names) : names_(names) {}

  Trace trace() {
    return [this](const std::string& name, const float* data, Index rows, Index columns) {
      if (names_ && !names_->contains(name)) return;
      const auto [at, is_new] = places_.emplace(name, recorded_.size());
      if (is_new) recorded_.push_back({name, columns, {}});
      recorded_[at->second].chunks.emplace_back(data, data + rows * columns);
    };
  }

  // Each is freed when it has been given.
  void move_to(py::dict trace) {
    for (Intermediate& each : recorded_) {
      Index size = 0;
      for (const std::vector<float>& chunk : each.chunks) size += static_cast<Index>(chunk.size());
      const bool flat = each.name.ends_with(".probabilities");  // [H, L, L] of each sequence
      Floats array(flat ? std::vector<Index>{size} : std::vector<Index>{size / each.columns, each.columns});
      float* to = array.mutable_data();
      for (const std::vector<float>& chunk : each.chunks) to = std::copy(chunk.begin(), chunk.end(), to);
      each.chunks.clear();
      trace[py::str(each.name)] = std::move(array);
    }
  }

 private:
  struct Intermediate {
    std::string name;
    Index columns;
    std::vector<std::vector<float>> chunks;  // [rows, columns] each
  };

  const std::set<std::string>* names_;
  std::vector<Intermediate> recorded_;  // in the order of computation
  std::map<std::string, std::size_t> places_;
};

// (hidden [T, D] or None, head [R, C] or None), both in host memory.
template <class Encoder>
py::tuple forward_on_host(const Encoder& encoder, const ResultSizes& sizes, const TableRows& tables, const Ints& ids,
                          const Ints& positions, const std::optional<Ints>& token_types, const Ints& cu_seqlens,
                          const std::optional<Ints>& rows, bool hidden, const std::optional<py::dict>& trace,
                          const std::optional<Ints>& columns, const std::optional<std::set<std::string>>& names) {
  const HostBatch batch = batch_of(ids, positions, token_types, cu_seqlens, rows, columns, sizes, tables);
  const ForwardInput input = batch.input();
  require(!columns || (batch.has_head() && !trace && !sizes.ends_with_norm),
          "columns need a head that ends with a linear, and no trace.");
  py::object hidden_out = py::none(), head_out = py::none();
  ForwardOutput output{nullptr, nullptr};
  if (hidden) {
    Floats array({batch.tokens(), sizes.width});
    output.hidden = array.mutable_data();
    hidden_out = std::move(array);
  }
  if (batch.has_head()) {
    Floats array({input.num_rows, columns ? input.num_columns : sizes.head_columns});
    output.head = array.mutable_data();
    head_out = std::move(array);
  }
  Recorder recorder(names ? &*names : nullptr);
  Interruption interruption;
  {
    const ReleasedGil released;
    encoder.forward(input, output, trace ? recorder.trace() : Trace{}, [&] { return !interruption.check(released); });
  }
  interruption.raise();
  if (trace) recorder.move_to(*trace);
  return py::make_tuple(hidden_out, head_out);
}

}  // namespace distilfast
