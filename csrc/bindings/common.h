// What both modules share: array types, names of enums, the arguments of an encoder, and a forward on numpy arrays.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <tuple>
#include <vector>

#include "bindings/gil.h"
#include "common/types.h"

namespace distilfast {

using Floats = py::array_t<float, py::array::c_style>;
using Ints = py::array_t<std::int32_t, py::array::c_style>;
// Raw bytes: packed weights; on the GPU rows of the precision's elements, [rows, row_stride(columns) * element size].
using Bytes = py::array_t<std::uint8_t, py::array::c_style>;

inline void require(bool condition, const char* sentence) {
  if (!condition) throw std::invalid_argument(sentence);
}

// ---- numbers that kernels use as addresses

// Checked copies: another thread can write to an array while the GIL is released.
using Numbers = std::vector<std::int32_t>;

// One row of numbers, each from 0 to `limit` - 1.
inline Numbers numbers_below(Index limit, const std::string& name, const Ints& array) {
  if (array.ndim() != 1)
    throw std::invalid_argument(name + " has " + std::to_string(array.ndim()) + " dimensions; one is needed.");
  Numbers numbers(array.data(), array.data() + array.size());
  for (const std::int32_t number : numbers)
    if (number < 0 || number >= limit)
      throw std::invalid_argument(name + " has " + std::to_string(number) + ", which is not among the " +
                                  std::to_string(limit) + " from 0.");
  return numbers;
}

inline Numbers rising_below(Index limit, const std::string& name, const Ints& array) {
  Numbers numbers = numbers_below(limit, name, array);
  if (std::adjacent_find(numbers.begin(), numbers.end(), std::greater_equal<>()) != numbers.end())
    throw std::invalid_argument(name + " must rise strictly.");
  return numbers;
}

// [B + 1], B sequences of one token or more.
inline Numbers checked_cu_seqlens(const Ints& array, Index tokens) {
  Numbers numbers = rising_below(tokens + 1, "cu_seqlens", array);
  require(numbers.size() >= 2 && numbers.front() == 0 && numbers.back() == tokens,
          "cu_seqlens must rise from 0 to the number of tokens.");
  return numbers;
}

// Rows of the embedding tables; no token types where the model has no such table.
struct TableRows {
  Index words = 0, positions = 0, token_types = 0;
};

struct TokenNumbers {
  Numbers ids, positions;
  std::optional<Numbers> token_types;

  TokenNumbers(const Ints& ids, const Ints& positions, const std::optional<Ints>& token_types, const TableRows& tables)
      : ids(numbers_below(tables.words, "ids", ids)),
        positions(numbers_below(tables.positions, "positions", positions)) {
    if (token_types) this->token_types = numbers_below(tables.token_types, "token_types", *token_types);
    require(positions.size() == tokens() && (!token_types || token_types->size() == tokens()),
            "ids, positions and token_types are not of the same length.");
  }

  Index tokens() const { return static_cast<Index>(ids.size()); }
  const std::int32_t* token_types_or_null() const { return token_types ? token_types->data() : nullptr; }
};

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

// What the results of a forward depend on.
struct ResultSizes {
  Index width;
  Index head_columns;  // of the last linear; 0 without a head
  bool ends_with_norm;

  ResultSizes(Index width, const std::vector<HeadLinear>& head)
      : width(width),
        head_columns(head.empty() ? 0 : head.back().columns),
        ends_with_norm(!head.empty() && head.back().norm) {}
};

// ---- a forward

// A batch of which every number has been checked, so that no kernel reads outside its tables.
class HostBatch {
 public:
  HostBatch(const Ints& ids, const Ints& positions, const std::optional<Ints>& token_types, const Ints& cu_seqlens,
            const std::optional<Ints>& rows, const std::optional<Ints>& columns, const ResultSizes& sizes,
            const TableRows& tables)
      : tokens_(ids, positions, token_types, tables),
        cu_seqlens_(checked_cu_seqlens(cu_seqlens, tokens_.tokens())),
        has_head_(rows && sizes.head_columns > 0) {
    if (rows) rows_ = rising_below(tokens_.tokens(), "rows", *rows);
    if (columns) columns_ = rising_below(sizes.head_columns, "columns", *columns);
    if (!has_head_) rows_.clear();  // nothing reads them
  }

  Index tokens() const { return tokens_.tokens(); }
  bool has_head() const { return has_head_; }

  ForwardInput input() const {
    ForwardInput input{tokens_.ids.data(),
                       tokens_.positions.data(),
                       tokens_.token_types_or_null(),
                       cu_seqlens_.data(),
                       static_cast<Index>(cu_seqlens_.size()) - 1,
                       rows_.data(),
                       static_cast<Index>(rows_.size())};
    if (columns_) input.columns = columns_->data(), input.num_columns = static_cast<Index>(columns_->size());
    return input;
  }

 private:
  TokenNumbers tokens_;
  Numbers cu_seqlens_, rows_;
  std::optional<Numbers> columns_;
  bool has_head_;
};

// The intermediates of a forward, copied while the GIL is released and given to Python afterwards.
class Recorder {
 public:
  Trace trace() {
    return [this](const std::string& name, const float* data, Index rows, Index columns) {
      recorded_.push_back({name, std::vector<float>(data, data + rows * columns), rows, columns});
    };
  }

  void move_to(py::dict trace) const {
    for (const Intermediate& each : recorded_) {
      std::vector<Index> shape = {each.rows, each.columns};
      if (each.name.ends_with(".probabilities")) shape = {each.columns};  // [H, L, L] of each sequence
      trace[py::str(each.name)] = Floats(shape, each.data.data());
    }
  }

 private:
  struct Intermediate {
    std::string name;
    std::vector<float> data;
    Index rows, columns;
  };
  std::vector<Intermediate> recorded_;
};

// (hidden [T, D] or None, head [R, C] or None), both in host memory.
template <class Encoder>
py::tuple forward_on_host(const Encoder& encoder, const ResultSizes& sizes, const TableRows& tables, const Ints& ids,
                          const Ints& positions, const std::optional<Ints>& token_types, const Ints& cu_seqlens,
                          const std::optional<Ints>& rows, bool hidden, const std::optional<py::dict>& trace,
                          const std::optional<Ints>& columns) {
  const HostBatch batch(ids, positions, token_types, cu_seqlens, rows, columns, sizes, tables);
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
  Recorder recorder;
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
