// The kernels that tests/ptx runs: the smallest instance of each, compiled in one go, with plain names.
#include "cuda/add_layer_norm.cuh"
#include "cuda/attention.cuh"
#include "cuda/embed.cuh"
#include "cuda/linear/linear.cuh"
#include "cuda/linear/packing.cu"

using namespace distilfast::cuda;

#define KERNELS(precision, T)                                                                                       \
  extern "C" __global__ void embed_##precision(Embed op) { embed_row<T>(op, blockIdx.x); }                          \
  extern "C" __global__ void add_layer_norm_##precision(AddLayerNorm op) { add_layer_norm_row<T>(op, blockIdx.x); } \
  extern "C" __global__ void attention_##precision(Attention op) {                                                  \
    attention_tiles<T, HeadTraits<T, 32>>(op, static_cast<int>(blockIdx.y), static_cast<int>(blockIdx.x),           \
                                          static_cast<int>(gridDim.x));                                             \
  }

#define LINEAR(precision, T, W)                                                                     \
  extern "C" __global__ void linear_##precision(Linear op) {                                        \
    linear_tile<T, W, CtaTile16x16>(op, static_cast<int>(blockIdx.x), static_cast<int>(blockIdx.y), \
                                    static_cast<int>(blockIdx.z), [] {});                           \
  }

KERNELS(fp32, float)
KERNELS(fp16, Half)
KERNELS(bf16, BFloat16)
LINEAR(fp32, float, float)
LINEAR(fp16, Half, Half)
LINEAR(bf16, BFloat16, BFloat16)
LINEAR(int8, BFloat16, W8A16)
