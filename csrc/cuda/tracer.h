// Copies each intermediate of a pass to the host, in fp32, and passes it to the trace.
#pragma once

#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "cuda/encoder.h"

namespace distilfast::cuda {

class Tracer {
 public:
  Tracer(const Trace& trace, Precision precision, Stream& stream)
      : trace_(trace), precision_(precision), stream_(stream) {}

  // fp32 [rows, columns].
  void record(const std::string& name, const float* device, Index rows, Index columns) {
    std::vector<float> values(static_cast<std::size_t>(rows * columns));
    download(values.data(), device, values.size() * sizeof(float), stream_);
    stream_.wait();
    trace_(name, values.data(), rows, columns);
  }
  // T [rows, row_stride(columns)].
  void record(const std::string& name, const char* device, Index rows, Index columns) {
    const std::size_t size = element_size(precision_), stride = row_stride(static_cast<int>(columns)) * size;
    const std::size_t used = static_cast<std::size_t>(columns) * size;
    std::vector<char> row(used);
    std::vector<float> values;
    for (Index i = 0; i < rows; ++i) {
      download(row.data(), device + static_cast<std::size_t>(i) * stride, used, stream_);
      stream_.wait();
      for (std::size_t at = 0; at < used; at += size) values.push_back(value_at(row.data() + at));
    }
    trace_(name, values.data(), rows, columns);
  }

  // Buffers that only a trace needs; every layer reuses them.
  DeviceBuffer sum, probabilities, probability_begins;
  Index num_tokens = 0, num_rows = 0, num_probabilities = 0;

 private:
  float value_at(const char* at) const {
    if (precision_ == Precision::fp32) {
      float value;
      std::memcpy(&value, at, sizeof(value));
      return value;
    }
    std::uint16_t bits;
    std::memcpy(&bits, at, sizeof(bits));
    return precision_ == Precision::fp16 ? from_fp16(bits) : from_bf16(bits);
  }
  static float from_bf16(std::uint16_t bits) {
    const std::uint32_t word = std::uint32_t{bits} << 16;
    float value;
    std::memcpy(&value, &word, sizeof(value));
    return value;
  }
  static float from_fp16(std::uint16_t bits) {
    const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
    float value = exponent ? std::ldexp(static_cast<float>(mantissa + 1024), exponent - 25)
                           : std::ldexp(static_cast<float>(mantissa), -24);
    if (exponent == 31) value = mantissa ? NAN : INFINITY;
    return bits >> 15 ? -value : value;
  }

  const Trace& trace_;
  Precision precision_;
  Stream& stream_;
};

}  // namespace distilfast::cuda
