// From a precision to the type of its elements.
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
    case Precision::bf16x3:  // the CPU's; see common/types.h
    case Precision::int8:
      break;
  }
  return run.template operator()<BFloat16>();
}

// The same for the two 16-bit precisions.
template <class Run>
void with_short_element(Precision precision, Run run) {
  precision == Precision::fp16 ? run.template operator()<Half>() : run.template operator()<BFloat16>();
}

}  // namespace distilfast::cuda
