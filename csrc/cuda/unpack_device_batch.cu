// The launcher of unpack_device_batch.cuh.
#include "cuda/unpack_device_batch.cuh"

namespace distilfast::cuda {
namespace {

__global__ void __launch_bounds__(unpack_threads) unpack_device_batch_kernel(UnpackDeviceBatch op) {
  unpack_device_batch_block(op);
}

}  // namespace

void unpack_device_batch(const UnpackDeviceBatch& op, Stream& stream) {
  launch("unpack_device_batch", unpack_device_batch_kernel, {1}, unpack_threads, unpack_warps * sizeof(std::uint32_t),
         stream, op);
}

void load_unpack_device_batch() { load_kernel("unpack_device_batch", unpack_device_batch_kernel); }

}  // namespace distilfast::cuda
