// The launcher of add_layer_norm.cuh.
#include "cuda/add_layer_norm.cuh"

namespace distilfast::cuda {
namespace {

template <class T>
__global__ void __launch_bounds__(row_threads) add_layer_norm_kernel(AddLayerNorm op) {
  wait_for_predecessor();
  release_dependents();
  add_layer_norm_row<T>(op, blockIdx.x);
}

}  // namespace

const char* layer_norm_unsupported_reason(int width) {
  return layer_norm_shared_bytes(width) > max_shared_bytes() ? "A row does not fit the shared memory of a block."
                                                             : nullptr;
}

void add_layer_norm(const AddLayerNorm& op, int bucket_rows, Stream& stream) {
  with_element(op.precision, [&]<class T>() {
    launch("add_layer_norm", add_layer_norm_kernel<T>, {static_cast<unsigned>(bucket_rows)}, row_threads,
           layer_norm_shared_bytes(op.norm.width), stream, op);
  });
}

void load_add_layer_norm(Precision precision) {
  with_element(precision, [&]<class T>() { load_kernel("add_layer_norm", add_layer_norm_kernel<T>); });
}

}  // namespace distilfast::cuda
