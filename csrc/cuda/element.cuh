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
      return run.template operator()<BFloat16>();
  }
}

}  // namespace distilfast::cuda
