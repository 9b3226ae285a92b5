// The CUDA runtime as the encoder needs it: memory, a stream, a launch, a graph. Errors are exceptions of one sentence.
//
// tests/cuda_host has a second cuda_runtime_api.h, which simulates the calls that are made here and their rules.
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

// Errors after which this process cannot use the device any more.
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

// Throws if `status` is an error.
inline void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // clears the error, which the next call would report again
  const std::string why = std::string(what) + " failed: " + cudaGetErrorString(status);
  throw std::runtime_error(why +
                           (is_lost(status) ? "; this process can no longer use the device, a new process can." : "."));
}

// Nullopt, or why no device can be used, in one sentence.
inline std::optional<std::string> unavailable() {
  int driver = 0, devices = 0, device = 0, major = 0, minor = 0;
  if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0) return "There is no NVIDIA driver.";
  if (driver < CUDART_VERSION / 1000 * 1000)
    return "The NVIDIA driver supports CUDA " + std::to_string(driver / 1000) + "." +
           std::to_string(driver % 1000 / 10) + "; CUDA " + std::to_string(CUDART_VERSION / 1000) +
           ".0 or newer is needed.";
  if (const cudaError_t status = cudaGetDeviceCount(&devices); status != cudaSuccess || devices == 0)
    return std::string("There is no CUDA device: ") + cudaGetErrorString(status) + ".";
  cudaError_t status = cudaGetDevice(&device);
  if (status == cudaSuccess) status = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  if (status == cudaSuccess) status = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  if (status != cudaSuccess)
    return std::string("The CUDA device cannot be queried: ") + cudaGetErrorString(status) + ".";
  if (major < 8)
    return "The device's compute capability is " + std::to_string(major) + "." + std::to_string(minor) +
           "; 8.0 or newer is needed.";
  return std::nullopt;
}

inline int current_device() {
  int device = 0;
  check(cudaGetDevice(&device), "querying the current device");
  return device;
}

inline std::string device_name() {
  cudaDeviceProp properties;
  check(cudaGetDeviceProperties(&properties, current_device()), "querying the device's name");
  return properties.name;
}

inline int device_attribute(cudaDeviceAttr attribute) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, attribute, current_device()), "querying a device attribute");
  return value;
}
inline int multiprocessors() { return device_attribute(cudaDevAttrMultiProcessorCount); }
// The compute capability, as 80 or 90.
inline int architecture() {
  return 10 * device_attribute(cudaDevAttrComputeCapabilityMajor) + device_attribute(cudaDevAttrComputeCapabilityMinor);
}
// Whether a kernel can start before the kernel before it has ended.
inline bool has_dependent_launch() { return architecture() >= 90; }
// Bytes of shared memory that one block can have.
inline std::size_t max_shared_bytes() {
  return static_cast<std::size_t>(device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin));
}
// Bytes of device memory in use, by all processes.
inline std::size_t used_memory() {
  std::size_t free = 0, total = 0;
  check(cudaMemGetInfo(&free, &total), "querying the device's memory");
  return total - free;
}

// Makes `device` the thread's current one for a scope; new streams, memory and graphs belong to the current device.
class CurrentDevice {
 public:
  explicit CurrentDevice(int device) : before_(current_device()), device_(device) {
    if (device_ != before_) check(cudaSetDevice(device_), "selecting the device");
  }
  CurrentDevice(const CurrentDevice&) = delete;
  CurrentDevice& operator=(const CurrentDevice&) = delete;
  ~CurrentDevice() {
    if (device_ != before_) cudaSetDevice(before_);
  }

 private:
  int before_, device_;
};

// A caller's stream, as an integer from Python; 0 and 1 are the legacy default stream, 2 the per-thread default one.
using StreamHandle = std::uintptr_t;
constexpr StreamHandle thread_default_stream = 2;

// Throws std::invalid_argument where work on the current device cannot be ordered with the caller's stream.
inline void check_stream(StreamHandle caller) {
  const auto stream = reinterpret_cast<cudaStream_t>(caller);
  int device = 0;
  if (caller > thread_default_stream) {  // a default stream is the current device's
    check(cudaStreamGetDevice(stream, &device), "querying the stream's device");
    if (device != current_device())
      throw std::invalid_argument("The stream belongs to device " + std::to_string(device) +
                                  " and the model to device " + std::to_string(current_device()) + ".");
  }
  cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
  check(cudaStreamIsCapturing(stream, &capture), "querying the stream's capture status");
  if (capture != cudaStreamCaptureStatusNone)
    throw std::invalid_argument("The stream is being captured, and a forward cannot be part of another graph.");
}

// DLPack's number for this kind of device memory, kDLCUDA. The simulated device's memory is the host's.
#ifndef DISTILFAST_DLPACK_DEVICE_TYPE
#define DISTILFAST_DLPACK_DEVICE_TYPE 2
#endif
constexpr int dlpack_device_type = DISTILFAST_DLPACK_DEVICE_TYPE;

// The device that the memory belongs to; nullopt for host memory.
inline std::optional<int> device_of(const void* memory) {
  cudaPointerAttributes attributes;
  check(cudaPointerGetAttributes(&attributes, memory), "querying an array's device");
  if (attributes.type != cudaMemoryTypeDevice && attributes.type != cudaMemoryTypeManaged) return std::nullopt;
  return attributes.device;
}

class Graph;

class Stream {
 public:
  Stream() {
    check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "creating a stream");
    cudaError_t status = cudaEventCreateWithFlags(&event_, cudaEventDisableTiming);
    if (status == cudaSuccess) status = cudaEventCreateWithFlags(&mark_, cudaEventDisableTiming);
    if (status != cudaSuccess) {
      destroy();
      check(status, "creating an event");
    }
  }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  ~Stream() { destroy(); }

  Graph* building = nullptr;  // where it is not null, what is enqueued becomes part of it and is not run

  cudaStream_t get() const { return stream_; }
  // `follow`: this stream's next work waits for the caller's work so far; `precede`: the reverse.
  void follow(StreamHandle caller) { order(reinterpret_cast<cudaStream_t>(caller), stream_); }
  void precede(StreamHandle caller) { order(stream_, reinterpret_cast<cudaStream_t>(caller)); }
  void wait() { check(cudaStreamSynchronize(stream_), "the work on the device"); }
  // `wait_for_mark` waits for what was enqueued before the last `mark`, and not for what came later.
  void mark() { check(cudaEventRecord(mark_, stream_), "marking a stream"); }
  void wait_for_mark() { check(cudaEventSynchronize(mark_), "the work on the device"); }

 private:
  void destroy() {
    if (mark_) cudaEventDestroy(mark_);
    if (event_) cudaEventDestroy(event_);
    cudaStreamDestroy(stream_);
  }
  // Work enqueued on `second` from now on waits for the work now on `first`. The event can be recorded again at once: a
  // wait refers to what was recorded when the wait was enqueued.
  void order(cudaStream_t first, cudaStream_t second) {
    check(cudaEventRecord(event_, first), "ordering two streams");
    check(cudaStreamWaitEvent(second, event_, 0), "ordering two streams");
  }

  cudaStream_t stream_ = nullptr;
  cudaEvent_t event_ = nullptr, mark_ = nullptr;
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

// Page-locked host memory, for asynchronous copies.
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

// A CUDA graph: a line of kernels and copies, each after the one before, launched with one call. It is built node by
// node and not captured: while any stream is captured, no thread may wait for the device, whoever else's it is. Where
// the device can, a kernel starts before the kernel before it has ended, and waits for it itself; see device.cuh.
class Graph {
 public:
  // What `enqueue` puts on the stream becomes the graph and is not run. It neither allocates nor frees nor waits.
  Graph(Stream& stream, const std::function<void()>& enqueue);
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;
  ~Graph() {
    if (executable_) cudaGraphExecDestroy(executable_);
    if (graph_) cudaGraphDestroy(graph_);
  }

  void run(Stream& stream) { check(cudaGraphLaunch(executable_, stream.get()), "launching a graph"); }

  void add_kernel(const char* name, const cudaLaunchConfig_t& config, const void* kernel, void** arguments) {
    cudaKernelNodeParams node{};
    node.func = const_cast<void*>(kernel), node.gridDim = config.gridDim, node.blockDim = config.blockDim;
    node.sharedMemBytes = static_cast<unsigned>(config.dynamicSmemBytes), node.kernelParams = arguments;
    const bool overlaps = after_kernel_ && has_dependent_launch() && !is_cooperative(config);
    cudaGraphNode_t added = nullptr;
    check(cudaGraphAddKernelNode(&added, graph_, &last_, last_ && !overlaps ? 1 : 0, &node), name);
    for (unsigned i = 0; i < config.numAttrs; ++i)
      check(cudaGraphKernelNodeSetAttribute(added, config.attrs[i].id, &config.attrs[i].val), name);
    if (overlaps) {
      cudaGraphEdgeData edge{};
      edge.type = cudaGraphDependencyTypeProgrammatic, edge.from_port = cudaGraphKernelNodePortProgrammatic;
      check(cudaGraphAddDependencies(graph_, &last_, &added, &edge, 1), name);
    }
    last_ = added, after_kernel_ = true;
  }
  // `host` is pinned memory that outlives the graph.
  void add_copy(const char* name, void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind) {
    cudaGraphNode_t added = nullptr;
    check(cudaGraphAddMemcpyNode1D(&added, graph_, &last_, last_ ? 1 : 0, to, from, bytes, kind), name);
    last_ = added, after_kernel_ = false;
  }

 private:
  // Its grid barriers need all blocks at once, so it starts when the device is free.
  static bool is_cooperative(const cudaLaunchConfig_t& config) {
    for (unsigned i = 0; i < config.numAttrs; ++i)
      if (config.attrs[i].id == cudaLaunchAttributeCooperative) return true;
    return false;
  }

  cudaGraph_t graph_ = nullptr;
  cudaGraphNode_t last_ = nullptr;
  bool after_kernel_ = false;  // `last_` is a kernel
  cudaGraphExec_t executable_ = nullptr;
};

inline Graph::Graph(Stream& stream, const std::function<void()>& enqueue) {
  struct Building {
    Stream& stream;
    Building(Stream& stream, Graph* graph) : stream(stream) { stream.building = graph; }
    ~Building() { stream.building = nullptr; }
  };
  check(cudaGraphCreate(&graph_, 0), "creating a graph");
  try {
    const Building building(stream, this);
    enqueue();
    check(cudaGraphInstantiate(&executable_, graph_, 0), "instantiating a graph");
  } catch (...) {
    cudaGraphDestroy(graph_);
    throw;
  }
}

inline void copy(const char* name, void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind, Stream& stream) {
  if (bytes == 0) return;
  if (stream.building)
    stream.building->add_copy(name, to, from, bytes, kind);
  else
    check(cudaMemcpyAsync(to, from, bytes, kind, stream.get()), name);
}
// In a graph, `host` must be pinned memory that outlives it.
inline void upload(void* device, const void* host, std::size_t bytes, Stream& stream) {
  copy("a copy to the device", device, host, bytes, cudaMemcpyHostToDevice, stream);
}
inline void download(void* host, const void* device, std::size_t bytes, Stream& stream) {
  copy("a copy from the device", host, device, bytes, cudaMemcpyDeviceToHost, stream);
}

struct Grid {
  unsigned x = 1, y = 1, z = 1;
};

// Loads a kernel and allows it all the dynamic shared memory that a block can have (more than 48 KB must be requested),
// with the same division between shared memory and L1 for every kernel: changing it would drain the multiprocessor.
// CUDA loads a kernel when it is first used, which may wait for the whole device: models do it when they are loaded.
// Always request the maximum: lowering it invalidates graphs.
template <class Op>
void load_kernel(const char* name, void (*kernel)(Op)) {
  cudaFuncAttributes attributes;
  check(cudaFuncGetAttributes(&attributes, kernel), name);
  const std::size_t dynamic = max_shared_bytes() - attributes.sharedSizeBytes;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(dynamic)), name);
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared),
        name);
}

// Enqueues kernel(op) on `grid` blocks of `threads`, each with `shared_bytes` of shared memory; errors say `name`.
// `attribute` may be null.
template <class Op>
void launch_with(cudaLaunchAttribute* attribute, const char* name, void (*kernel)(Op), Grid grid, unsigned threads,
                 std::size_t shared_bytes, Stream& stream, Op op) {
  load_kernel(name, kernel);
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(grid.x, grid.y, grid.z);
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream.get();
  config.attrs = attribute;
  config.numAttrs = attribute ? 1 : 0;
  void* arguments[] = {&op};
  const void* function = reinterpret_cast<const void*>(kernel);
  if (stream.building)
    stream.building->add_kernel(name, config, function, arguments);
  else
    check(cudaLaunchKernelExC(&config, function, arguments), name);
}

template <class Op>
void launch(const char* name, void (*kernel)(Op), Grid grid, unsigned threads, std::size_t shared_bytes, Stream& stream,
            Op op) {
  launch_with(nullptr, name, kernel, grid, threads, shared_bytes, stream, op);
}

// The most blocks of a cluster: eight on every device that has clusters.
inline int max_cluster_blocks() { return device_attribute(cudaDevAttrClusterLaunch) ? 8 : 1; }

// Like `launch`, in clusters of `cluster` consecutive blocks along x; grid.x is a multiple of it.
template <class Op>
void launch_clusters(const char* name, void (*kernel)(Op), unsigned cluster, Grid grid, unsigned threads,
                     std::size_t shared_bytes, Stream& stream, Op op) {
  cudaLaunchAttribute dimension{};
  dimension.id = cudaLaunchAttributeClusterDimension;
  dimension.val.clusterDim.x = cluster, dimension.val.clusterDim.y = 1, dimension.val.clusterDim.z = 1;
  // A device without clusters refuses the attribute.
  launch_with(cluster > 1 ? &dimension : nullptr, name, kernel, grid, threads, shared_bytes, stream, op);
}

// A cooperative launch, for a kernel with grid barriers: all blocks are resident together, at most two on each
// multiprocessor. At few tokens an operation of a base model has 48 to 192 parts, of which 132 blocks, one on each of
// an H100's multiprocessors, would take some in a second round.
template <class Op>
void launch_cooperative(const char* name, void (*kernel)(Op), unsigned threads, std::size_t shared_bytes,
                        Stream& stream, Op op) {
  cudaLaunchAttribute together{};
  together.id = cudaLaunchAttributeCooperative, together.val.cooperative = 1;
  load_kernel(name, kernel);  // without it more than 48 KB of shared memory do not fit
  int resident = 0;
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, reinterpret_cast<const void*>(kernel),
                                                      static_cast<int>(threads), shared_bytes),
        name);
  const int blocks = multiprocessors() * (resident < 2 ? resident : 2);
  launch_with(&together, name, kernel, {static_cast<unsigned>(blocks)}, threads, shared_bytes, stream, op);
}

}  // namespace distilfast::cuda
