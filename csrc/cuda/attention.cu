// The launcher of attention.cuh.
#include "cuda/attention.cuh"

namespace distilfast::cuda {
namespace {

template <class T, class Head>
__global__ void __launch_bounds__(attention_threads) attention_kernel(Attention op) {
  wait_for_predecessor();
  release_dependents();
  attention_tiles<T, Head>(op, static_cast<int>(blockIdx.y), static_cast<int>(blockIdx.x), static_cast<int>(gridDim.x));
}

template <class T, int Columns>
void launch_attention(const Attention& op, int bucket_rows, Stream& stream) {
  using Traits = HeadTraits<T, Columns>;
  // One tile for each block where sequences have at least 16 tokens; with shorter ones a block loops over several.
  const Grid grid{static_cast<unsigned>((bucket_rows + 15) / 16), static_cast<unsigned>(op.heads)};
  launch("attention", attention_kernel<T, Traits>, grid, attention_threads, Traits::shared_bytes, stream, op);
}

// Calls run.operator()<T, Columns>() with the columns to which a head of this size is padded.
template <class Run>
void with_head(Precision precision, int head_size, Run run) {
  with_element(precision, [&]<class T>() {
    if (head_size <= 32) return run.template operator()<T, 32>();
    if (head_size <= 64) return run.template operator()<T, 64>();
    run.template operator()<T, 128>();
  });
}

}  // namespace

const char* attention_unsupported_reason(int head_size) {
  if (head_size % 8) return "The head size is not a multiple of 8.";
  if (head_size > 128) return "The head size is larger than 128.";
  return nullptr;
}

void attention(const Attention& op, int bucket_rows, Stream& stream) {
  with_head(op.precision, op.head_size,
            [&]<class T, int Columns>() { launch_attention<T, Columns>(op, bucket_rows, stream); });
}

void load_attention(Precision precision, int head_size) {
  with_head(precision, head_size,
            [&]<class T, int Columns>() { load_kernel("attention", attention_kernel<T, HeadTraits<T, Columns>>); });
}

}  // namespace distilfast::cuda
