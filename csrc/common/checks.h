// Checks of what comes from outside: every number that a kernel uses as an address lies inside its table. Each throws
// std::invalid_argument with one sentence.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "common/types.h"

namespace distilfast {

inline void require(bool condition, const char* sentence) {
  if (!condition) throw std::invalid_argument(sentence);
}

// Numbers of a caller, and checked copies of them: another thread can write to the caller's while a forward runs.
using GivenNumbers = std::span<const std::int32_t>;
using Numbers = std::vector<std::int32_t>;

// Each from 0 to `limit` - 1.
inline Numbers numbers_below(Index limit, const std::string& name, GivenNumbers given) {
  Numbers numbers(given.begin(), given.end());
  for (const std::int32_t number : numbers)
    if (number < 0 || number >= limit)
      throw std::invalid_argument(name + " has " + std::to_string(number) + ", which is not among the " +
                                  std::to_string(limit) + " from 0.");
  return numbers;
}

inline Numbers increasing_below(Index limit, const std::string& name, GivenNumbers given) {
  Numbers numbers = numbers_below(limit, name, given);
  if (std::adjacent_find(numbers.begin(), numbers.end(), std::greater_equal<>()) != numbers.end())
    throw std::invalid_argument(name + " must be strictly increasing.");
  return numbers;
}

// [B + 1], B sequences of one token or more.
inline Numbers checked_cu_seqlens(GivenNumbers given, Index tokens) {
  Numbers numbers = increasing_below(tokens + 1, "cu_seqlens", given);
  require(numbers.size() >= 2 && numbers.front() == 0 && numbers.back() == tokens,
          "cu_seqlens must be strictly increasing from 0 to the number of tokens.");
  return numbers;
}

// Rows of the embedding tables; no token types where the model has no such table.
struct TableRows {
  Index words = 0, positions = 0, token_types = 0;
};

struct TokenNumbers {
  Numbers ids, positions;
  std::optional<Numbers> token_types;

  TokenNumbers(GivenNumbers ids, GivenNumbers positions, std::optional<GivenNumbers> token_types,
               const TableRows& tables)
      : ids(numbers_below(tables.words, "ids", ids)),
        positions(numbers_below(tables.positions, "positions", positions)) {
    if (token_types) this->token_types = numbers_below(tables.token_types, "token_types", *token_types);
    require(positions.size() == ids.size() && (!token_types || token_types->size() == ids.size()),
            "ids, positions and token_types are not of the same length.");
  }

  Index tokens() const { return static_cast<Index>(ids.size()); }
  const std::int32_t* token_types_or_null() const { return token_types ? token_types->data() : nullptr; }
};

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

// A batch of which every number has been checked, so that no kernel reads outside its tables.
class HostBatch {
 public:
  HostBatch(TokenNumbers tokens, GivenNumbers cu_seqlens, std::optional<GivenNumbers> rows,
            std::optional<GivenNumbers> columns, const ResultSizes& sizes)
      : tokens_(std::move(tokens)),
        cu_seqlens_(checked_cu_seqlens(cu_seqlens, tokens_.tokens())),
        has_head_(rows && sizes.head_columns > 0) {
    if (rows) rows_ = increasing_below(tokens_.tokens(), "rows", *rows);
    if (columns) columns_ = increasing_below(sizes.head_columns, "columns", *columns);
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

}  // namespace distilfast
