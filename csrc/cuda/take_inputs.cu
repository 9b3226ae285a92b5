// The launch of take_inputs.cuh.
#include "cuda/take_inputs.cuh"

namespace distilfast::cuda {
namespace {

__global__ void __launch_bounds__(take_threads) take_inputs_kernel(TakeInputs op) { take_inputs_block(op); }

}  // namespace

void take_inputs(const TakeInputs& op, Stream& stream) {
  launch("take_inputs", take_inputs_kernel, {1}, take_threads, take_warps * sizeof(std::uint32_t), stream, op);
}

void load_take_inputs() { load_kernel("take_inputs", take_inputs_kernel); }

}  // namespace distilfast::cuda
