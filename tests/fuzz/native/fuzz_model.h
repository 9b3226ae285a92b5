// Small encoders of every instruction set and precision that this processor has, for the fuzz targets.
#pragma once

#include <cstdlib>
#include <map>
#include <memory>
#include <new>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "common/checks.h"
#include "common/layer_names.h"
#include "cpu/dispatch.h"
#include "cpu/encoder.h"

namespace distilfast {

class AlignedBytes {
 public:
  explicit AlignedBytes(std::size_t size)
      : data_(static_cast<std::byte*>(std::aligned_alloc(64, (size + 63) / 64 * 64))), size_(size) {
    if (!data_) throw std::bad_alloc();
  }
  ~AlignedBytes() { std::free(data_); }
  AlignedBytes(const AlignedBytes&) = delete;
  AlignedBytes& operator=(const AlignedBytes&) = delete;

  std::byte* data() { return data_; }
  std::size_t size() const { return size_; }

 private:
  std::byte* data_;
  std::size_t size_;
};

// One seeded model of width 64 with token types and a head of two linears.
class FuzzModel {
 public:
  FuzzModel(const Kernels& kernels, Precision precision) : kernels_(&kernels), precision_(precision) {
    encoder_ = over({});
  }

  TableRows tables() const { return {words, positions, types}; }
  ResultSizes sizes() const { return {width, head}; }
  const Encoder& encoder() const { return *encoder_; }

  std::unique_ptr<Encoder> over(std::span<const std::byte> packed) const {
    const EncoderShape shape{width, 2, 1, 96, 1e-12f, Activation::gelu};
    return std::make_unique<Encoder>(
        shape, head, [this](const std::string& name) { return tensor(name); }, *kernels_, precision_, packed, 1);
  }

 private:
  static constexpr Index width = 64, words = 37, positions = 20, types = 2;
  static inline const std::vector<HeadLinear> head = {{width, Activation::relu, false}, {19, Activation::none, false}};

  HostTensor tensor(const std::string& name) const {
    std::vector<float>& numbers = (*tensors_)[name];
    if (numbers.empty()) fill(name, numbers);
    return {numbers.data(), numbers.size()};
  }

  // Tables have their own size, so that a sanitiser sees every read behind them; no other tensor is larger than 19,200.
  static void fill(const std::string& name, std::vector<float>& numbers) {
    static const std::map<std::string, Index> tables = {
        {names::embed_word, words}, {names::embed_position, positions}, {names::embed_token_type, types}};
    const auto table = tables.find(name);
    numbers.resize(static_cast<std::size_t>(table == tables.end() ? 3 * 64 * 100 : table->second * width));
    std::mt19937 random(static_cast<unsigned>(std::hash<std::string>()(name)));
    std::normal_distribution<float> normal(0.0f, 0.3f);
    for (float& number : numbers) number = normal(random);
    if (name.ends_with("outlier_channels"))
      for (std::size_t i = 0; i < numbers.size(); ++i) numbers[i] = static_cast<float>(i);
  }

  const Kernels* kernels_;
  Precision precision_;
  std::shared_ptr<std::map<std::string, std::vector<float>>> tensors_ =
      std::make_shared<std::map<std::string, std::vector<float>>>();
  std::unique_ptr<Encoder> encoder_;
};

inline std::vector<FuzzModel> fuzz_models() {
  std::vector<FuzzModel> models;
  for (const Isa& isa : isas())
    for (const Precision precision : {Precision::fp32, Precision::bf16x3, Precision::bf16, Precision::int8})
      if (isa.supported()) models.emplace_back(*isa.kernels, precision);
  return models;
}

}  // namespace distilfast
