// The kernels of this process: their names, what a launch may ask for, and how many blocks are resident together.
//
// A device of compute capability 9.0, an H100. nvcc alone knows how many registers a kernel takes, so the most that its
// threads can have are assumed: 255, or as many as let one block be resident (see __launch_bounds__).
#pragma once

#include <cuda_runtime_api.h>

#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "simulator.h"

namespace cuda_host {

// An error of the API: what cudaGetErrorString says of it, or the usual text where `sentence` is empty.
struct Refusal : std::runtime_error {
  cudaError_t status;
  explicit Refusal(cudaError_t status, const std::string& sentence = "")
      : std::runtime_error(sentence), status(status) {}
};

constexpr int multiprocessors = 132;
constexpr int registers_per_multiprocessor = 65536, threads_per_multiprocessor = 2048, blocks_per_multiprocessor = 32;
constexpr std::size_t shared_per_multiprocessor = 228 * 1024, shared_reserved_per_block = 1024,
                      max_shared_per_block = shared_per_multiprocessor - shared_reserved_per_block,
                      shared_without_request = 48 * 1024;
constexpr unsigned max_cluster = 8;  // that every device with clusters has
// Of a kernel's parameters, as of CUDA 12.1 and compute capability 7.0; it was 4,096 before.
constexpr std::size_t max_parameter_bytes = 32764;

struct Kernel {
  const void* function;
  std::string name;
  std::size_t parameter_bytes;
  CallKernel call;
  bool is_loaded = false;
  std::size_t max_dynamic_shared = shared_without_request;
};

int registers(unsigned threads);
int resident_blocks(unsigned threads, std::size_t shared_bytes);  // on one multiprocessor

// A launch with its parameter, as it was when it was enqueued.
class KernelLaunch {
 public:
  KernelLaunch(const Kernel& kernel, const dim3& grid, const dim3& block, std::size_t shared_bytes, int device,
               void** arguments);

  void set(cudaLaunchAttributeID id, const cudaLaunchAttributeValue& value);
  // Throws a Refusal where the device cannot run it.
  void check() const;
  // `unfinished`: launches that may still be running.
  Ran run(const std::vector<Eras>& unfinished) const;

  bool overlaps_predecessor = false;  // programmatic stream serialization

 private:
  const Kernel& kernel_;
  Launch launch_;
  unsigned block_y_, block_z_, cluster_y_ = 1, cluster_z_ = 1;
  std::vector<char> parameter_;
};

class Kernels {
 public:
  void declare(const void* function, std::size_t parameter_bytes, CallKernel call);
  Kernel& find(const void* function);

 private:
  std::map<const void*, Kernel> kernels_;
};

}  // namespace cuda_host
