// Dispatch from a precision to its element type.
#pragma once

#include "cuda/device.cuh"
#include "cuda/kernels.h"

namespace distilfast::cuda {

// Calls run.operator()<T>().
template <class Run>
void with_element(Precision precision, Run run) {
  switch (precision) {
    case Precision::fp32:
      return run.template operator()<float>();
    case Precision::fp16:
      return run.template operator()<Half>();
    case Precision::bf16:
    case Precision::bf16x3:  // CPU only, see common/types.h
    case Precision::int8:
      break;
  }
  return run.template operator()<BFloat16>();
}

// The same where the elements have 16 bits, for which int8 counts as bf16.
template <class Run>
void with_16_bit_element(Precision precision, Run run) {
  precision == Precision::fp16 ? run.template operator()<Half>() : run.template operator()<BFloat16>();
}

// Adjacent elements, which are loaded or stored at once.
template <class T, int Count>
struct alignas(Count * sizeof(T)) Vector {
  T element[Count];
};

}  // namespace distilfast::cuda
