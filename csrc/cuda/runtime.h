// The CUDA runtime as the encoder sees it: memory, a stream, a launch, a graph. Errors are exceptions of one sentence.
//
// tests/cuda_host has a second implementation of this header, which keeps device memory on the host and runs at once
// what is enqueued here.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>

namespace distilfast::cuda {

// Errors behind which no call of this process reaches the device any more.
inline bool is_lost(cudaError_t status) {
  switch (status) {
    case cudaErrorIllegalAddress:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorIllegalInstruction:
    case cudaErrorInvalidPc:
    case cudaErrorHardwareStackError:
    case cudaErrorLaunchFailure:
    case cudaErrorLaunchTimeout:
    case cudaErrorECCUncorrectable:
      return true;
    default:
      return false;
  }
}

// Throws what `status` says, if it is an error.
inline void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // it must not be found again by the next call
  const std::string why = std::string(what) + " failed: " + cudaGetErrorString(status);
  throw std::runtime_error(
      why + (is_lost(status) ? "; this process has lost the device, and only a new one can use it." : "."));
}

// Nothing, or why no device can be used, in one sentence.
inline std::optional<std::string> unavailable() {
  int driver = 0, devices = 0, device = 0, major = 0, minor = 0;
  if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0) return "There is no NVIDIA driver.";
  if (driver < CUDART_VERSION / 1000 * 1000)
    return "The NVIDIA driver supports CUDA " + std::to_string(driver / 1000) + "." +
           std::to_string(driver % 1000 / 10) + " and CUDA " + std::to_string(CUDART_VERSION / 1000) +
           ".0 or newer is needed.";
  if (const cudaError_t status = cudaGetDeviceCount(&devices); status != cudaSuccess || devices == 0)
    return std::string("There is no CUDA device: ") + cudaGetErrorString(status) + ".";
  check(cudaGetDevice(&device), "asking for the current device");
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "asking for the architecture");
  check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device), "asking for the architecture");
  if (major < 8)
    return "The device's compute capability is " + std::to_string(major) + "." + std::to_string(minor) +
           " and 8.0 or newer is needed.";
  return std::nullopt;
}

inline std::string device_name() {
  int device = 0;
  cudaDeviceProp properties;
  check(cudaGetDevice(&device), "asking for the current device");
  check(cudaGetDeviceProperties(&properties, device), "asking for the device's name");
  return properties.name;
}

inline int multiprocessors() {
  int device = 0, count = 0;
  check(cudaGetDevice(&device), "asking for the current device");
  check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device), "counting multiprocessors");
  return count;
}

// A stream of the caller's, as the number that Python passes; 0 is the default stream.
using StreamHandle = std::uintptr_t;

// A number that DLPack has for the memory of this device.
constexpr int dlpack_device_type = 2;  // kDLCUDA
inline int current_device() {
  int device = 0;
  check(cudaGetDevice(&device), "asking for the current device");
  return device;
}

// What is enqueued on `second` from now on begins behind what `first` has now.
inline void order_streams(cudaStream_t first, cudaStream_t second) {
  cudaEvent_t event = nullptr;
  check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "making an event");
  cudaError_t status = cudaEventRecord(event, first);
  if (status == cudaSuccess) status = cudaStreamWaitEvent(second, event, 0);
  cudaEventDestroy(event);  // lives on until it has come to pass
  check(status, "waiting for another stream");
}

class Stream {
 public:
  Stream() { check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "making a stream"); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  ~Stream() { cudaStreamDestroy(stream_); }

  cudaStream_t get() const { return stream_; }
  // Behind the caller's work; and the caller's behind this.
  void follow(StreamHandle caller) { order_streams(reinterpret_cast<cudaStream_t>(caller), stream_); }
  void precede(StreamHandle caller) { order_streams(stream_, reinterpret_cast<cudaStream_t>(caller)); }
  void wait() { check(cudaStreamSynchronize(stream_), "the work on the device"); }

 private:
  cudaStream_t stream_ = nullptr;
};

class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  explicit DeviceBuffer(std::size_t bytes) : bytes_(bytes) {
    if (bytes) check(cudaMalloc(&data_, bytes), "allocating device memory");
  }
  DeviceBuffer(DeviceBuffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  DeviceBuffer& operator=(DeviceBuffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~DeviceBuffer() { cudaFree(data_); }

  char* data() const { return static_cast<char*>(data_); }
  std::size_t bytes() const { return bytes_; }

 private:
  void* data_ = nullptr;
  std::size_t bytes_ = 0;
};

// Host memory that copies reach without a detour.
class PinnedBuffer {
 public:
  explicit PinnedBuffer(std::size_t bytes) { check(cudaMallocHost(&data_, bytes), "allocating pinned host memory"); }
  PinnedBuffer(const PinnedBuffer&) = delete;
  PinnedBuffer& operator=(const PinnedBuffer&) = delete;
  ~PinnedBuffer() { cudaFreeHost(data_); }

  char* data() const { return static_cast<char*>(data_); }

 private:
  void* data_ = nullptr;
};

inline void upload(void* device, const void* host, std::size_t bytes, Stream& stream) {
  check(cudaMemcpyAsync(device, host, bytes, cudaMemcpyHostToDevice, stream.get()), "a copy to the device");
}
inline void download(void* host, const void* device, std::size_t bytes, Stream& stream) {
  check(cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, stream.get()), "a copy from the device");
}

struct Grid {
  unsigned x = 1, y = 1, z = 1;
};

// More shared memory than 48 KB is had only by asking for it.
inline void allow_shared_memory(const char* name, const void* kernel, std::size_t bytes) {
  if (bytes > 48 * 1024)
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)), name);
}

// Enqueues kernel(op), which an error calls `name`, on grid x threads, each block with `shared_bytes` of shared memory.
template <class Op>
void launch(const char* name, void (*kernel)(Op), Grid grid, unsigned threads, std::size_t shared_bytes, Stream& stream,
            Op op) {
  allow_shared_memory(name, reinterpret_cast<const void*>(kernel), shared_bytes);
  void* arguments[] = {&op};
  check(cudaLaunchKernel(reinterpret_cast<const void*>(kernel), dim3(grid.x, grid.y, grid.z), dim3(threads), arguments,
                         shared_bytes, stream.get()),
        name);
}

// Blocks of a cooperative launch, all of which must be there at once: one for each multiprocessor.
inline unsigned cooperative_blocks() { return static_cast<unsigned>(multiprocessors()); }

// The same for a kernel whose blocks wait for each other.
template <class Op>
void launch_cooperative(const char* name, void (*kernel)(Op), unsigned threads, std::size_t shared_bytes,
                        Stream& stream, Op op) {
  allow_shared_memory(name, reinterpret_cast<const void*>(kernel), shared_bytes);
  void* arguments[] = {&op};
  check(cudaLaunchCooperativeKernel(reinterpret_cast<const void*>(kernel), dim3(cooperative_blocks()), dim3(threads),
                                    arguments, shared_bytes, stream.get()),
        name);
}

// What `enqueue` puts on the stream, recorded once and then started with one call.
class Graph {
 public:
  Graph(Stream& stream, const std::function<void()>& enqueue) {
    // Thread-local: other threads of the process go on using the device meanwhile.
    check(cudaStreamBeginCapture(stream.get(), cudaStreamCaptureModeThreadLocal), "beginning a graph");
    cudaGraph_t graph = nullptr;
    try {
      enqueue();
    } catch (...) {
      cudaStreamEndCapture(stream.get(), &graph);
      cudaGraphDestroy(graph);
      throw;
    }
    check(cudaStreamEndCapture(stream.get(), &graph), "ending a graph");
    const cudaError_t status = cudaGraphInstantiate(&executable_, graph, 0);
    cudaGraphDestroy(graph);
    check(status, "making a graph ready");
  }
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;
  ~Graph() { cudaGraphExecDestroy(executable_); }

  void run(Stream& stream) { check(cudaGraphLaunch(executable_, stream.get()), "starting a graph"); }

 private:
  cudaGraphExec_t executable_ = nullptr;
};

}  // namespace distilfast::cuda
