// The launcher of embed.cuh.
#include "cuda/embed.cuh"

namespace distilfast::cuda {
namespace {

template <class T>
__global__ void __launch_bounds__(row_threads) embed_kernel(Embed op) {
  wait_for_predecessor();
  release_dependents();
  embed_row<T>(op, blockIdx.x);
}

}  // namespace

void embed(const Embed& op, int bucket_rows, Stream& stream) {
  with_element(op.precision, [&]<class T>() {
    launch("embed", embed_kernel<T>, {static_cast<unsigned>(bucket_rows)}, row_threads,
           layer_norm_shared_bytes(op.norm.width), stream, op);
  });
}

void load_embed(Precision precision) {
  with_element(precision, [&]<class T>() { load_kernel("embed", embed_kernel<T>); });
}

}  // namespace distilfast::cuda
