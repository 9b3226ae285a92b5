// The launches of attention.cuh.
#include "cuda/attention.cuh"

namespace distilfast::cuda {
namespace {

template <class T, class Head>
__global__ void __launch_bounds__(attention_threads) attention_kernel(Attention op) {
  attention_tiles<T, Head>(op, static_cast<int>(blockIdx.y), static_cast<int>(blockIdx.x), static_cast<int>(gridDim.x));
}

template <class T, int Columns>
void launch_attention(const Attention& op, int most_rows, Stream& stream) {
  using Sizes = Head<T, Columns>;
  // Enough for sequences of 16 tokens; blocks that more and shorter ones need are walked over.
  const Grid grid{static_cast<unsigned>((most_rows + 15) / 16), static_cast<unsigned>(op.heads)};
  launch("attention", attention_kernel<T, Sizes>, grid, attention_threads, Sizes::shared_bytes, stream, op);
}

}  // namespace

const char* attention_misfit(int head_size) {
  if (head_size % 8) return "The head size is not a multiple of 8.";
  if (head_size > 128) return "The head size is larger than 128.";
  return nullptr;
}

void attention(const Attention& op, int most_rows, Stream& stream) {
  with_element(op.precision, [&]<class T>() {
    if (op.head_size <= 32) return launch_attention<T, 32>(op, most_rows, stream);
    if (op.head_size <= 64) return launch_attention<T, 64>(op, most_rows, stream);
    launch_attention<T, 128>(op, most_rows, stream);
  });
}

}  // namespace distilfast::cuda
