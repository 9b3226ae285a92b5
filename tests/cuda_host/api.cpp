// The calls of cuda_runtime_api.h, and the rules that they keep.
//
//   * Work is deferred, see streams.h. A copy between pinned and device memory reads when it runs; one from pageable
//     memory has read when the call returns, and one to it has run.
//   * cudaFree waits for the device, as a real one does; cudaFreeHost does not.
//   * While any stream of a device is captured, nothing may wait for the device, allocate or free: the call fails, and
//     so does the capture. Work on a captured stream would become part of a graph and is always an error here.
//   * Our own rule: while a thread builds a graph, from cudaGraphCreate to cudaGraphInstantiate, it neither allocates,
//     frees, waits nor loads a kernel, since each of these may wait for the whole device.
//   * Handles are never used twice, so a use after destruction is found.
//   * A kernel's error is reported by the call that runs it, or by the next one whose status is read.
//
// Calls whose status nobody reads, those that free or destroy, keep their errors for `simulated_complaints`.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <thread>
#include <utility>

#include "kernels.h"
#include "streams.h"

namespace cuda_host {

namespace {

constexpr int devices = 2;

struct Event {
  int device;
  Point point{};
};

// A copy between host and device memory, or within device memory.
struct Copy1D {
  void* to;
  const void* from;
  std::size_t bytes;
  cudaMemcpyKind kind;
};

struct Node {
  struct Edge {
    std::shared_ptr<Node> from;
    bool is_programmatic;
  };
  std::unique_ptr<KernelLaunch> kernel{};  // or a copy
  Copy1D copy{};
  std::vector<Edge> after{};
};

struct Graph {
  std::vector<std::shared_ptr<Node>> nodes{};
  bool is_built = false;
  std::thread::id builder = std::this_thread::get_id();
};

// Objects by their handles.
template <class Object>
class Handles {
 public:
  explicit Handles(const char* what) : what_(what) {}

  std::uintptr_t add(std::shared_ptr<Object> object) {
    static std::uintptr_t last = 0x1000;
    objects_[last += 16] = std::move(object);
    return last;
  }
  template <class Handle>
  const std::shared_ptr<Object>& get(Handle handle) const {
    const auto found = objects_.find(reinterpret_cast<std::uintptr_t>(handle));
    if (found == objects_.end())
      throw Refusal(cudaErrorInvalidResourceHandle, "there is no such " + what_ + " (any more)");
    return found->second;
  }
  template <class Handle>
  std::shared_ptr<Object> remove(Handle handle) {
    std::shared_ptr<Object> object = get(handle);
    objects_.erase(reinterpret_cast<std::uintptr_t>(handle));
    return object;
  }
  std::size_t size() const { return objects_.size(); }

 private:
  std::string what_;
  std::map<std::uintptr_t, std::shared_ptr<Object>> objects_;
};

struct State {
  std::mutex mutex;  // of everything below, and of what runs
  Streams streams;
  Kernels kernels;
  Handles<Stream> stream_handles{"stream"};
  Handles<Event> events{"event"};
  Handles<Graph> graphs{"graph"}, executables{"executable graph"};
  Handles<Node> nodes{"node"};
  std::map<int, std::shared_ptr<Stream>> legacy;
  std::map<std::pair<int, std::thread::id>, std::shared_ptr<Stream>> per_thread;
  std::map<const char*, std::size_t> pinned;  // address and size
  std::map<std::thread::id, int> building;    // graphs
  std::string device_error, complaints;

  State() {
    for (int device = 0; device < devices; ++device) legacy[device] = streams.create(device, false);
  }
};

State& state() {
  static State* const all = new State;  // for as long as the process
  return *all;
}

thread_local int current_device = 0;
thread_local cudaError_t last_error = cudaSuccess;
// What cudaGetErrorString says of a status, where it is more than the usual.
thread_local cudaError_t described = cudaSuccess;
thread_local std::string sentence;

cudaError_t report(cudaError_t status, const std::string& why) {
  last_error = described = status;
  sentence = why.substr(0, why.size() - why.ends_with('.'));
  return status;
}

// Runs the body of a call whose status is read.
template <class Body>
cudaError_t call(Body body) {
  State& all = state();
  const std::lock_guard guard(all.mutex);
  if (!all.device_error.empty()) return report(cudaErrorLaunchFailure, std::exchange(all.device_error, ""));
  try {
    body(all);
    return cudaSuccess;
  } catch (const Refusal& refusal) {
    return report(refusal.status, refusal.what());
  } catch (const std::exception& error) {
    return report(cudaErrorLaunchFailure, error.what());
  }
}

// The same for a call that frees or destroys.
template <class Body>
cudaError_t release(const char* name, Body body) {
  State& all = state();
  const std::lock_guard guard(all.mutex);
  try {
    body(all);
    return cudaSuccess;
  } catch (const Refusal& refusal) {
    report(refusal.status, refusal.what());
    all.complaints += std::string(name) + ": " + cudaGetErrorString(refusal.status) + ".\n";
    return refusal.status;
  } catch (const std::exception& error) {
    all.device_error = error.what();
    return cudaErrorLaunchFailure;
  }
}

// ---- rules

void outside_graphs(State& all, const std::string& what) {
  if (all.building[std::this_thread::get_id()] > 0)
    throw Refusal(cudaErrorStreamCaptureUnsupported, what + " while a graph is built");
}

// `what` may wait for the whole device.
void outside_captures(State& all, int device, const std::string& what) {
  bool captured = false;
  for (const auto& stream : all.streams.all())
    if (stream->device == device && stream->capture != Capture::none) {
      stream->capture = Capture::invalidated;
      captured = true;
    }
  if (captured) throw Refusal(cudaErrorStreamCaptureUnsupported, what + " while a stream of the device is captured");
  outside_graphs(all, what);
}

bool is_legacy(cudaStream_t handle) { return reinterpret_cast<std::uintptr_t>(handle) <= 1; }

std::shared_ptr<Stream> stream_of(State& all, cudaStream_t handle) {
  if (is_legacy(handle)) return all.legacy[current_device];
  if (reinterpret_cast<std::uintptr_t>(handle) > 2) return all.stream_handles.get(handle);
  auto& own = all.per_thread[{current_device, std::this_thread::get_id()}];
  if (!own) own = all.streams.create(current_device, true);
  return own;
}

bool is_captured_implicitly(State& all, int device) {
  return std::any_of(all.streams.all().begin(), all.streams.all().end(), [&](const auto& stream) {
    return stream->device == device && stream->is_blocking && stream->capture != Capture::none;
  });
}

void enqueue(State& all, const std::shared_ptr<Stream>& stream, Item item) {
  if (stream->capture != Capture::none)
    throw Refusal(cudaErrorStreamCaptureUnsupported, "work on a stream that is being captured");
  const std::shared_ptr<Stream>& legacy = all.legacy[stream->device];
  if (stream == legacy) {
    if (is_captured_implicitly(all, stream->device)) throw Refusal(cudaErrorStreamCaptureImplicit);
    for (const auto& other : all.streams.all())
      if (other->device == stream->device && other->is_blocking) item.after.push_back(Streams::end_of(other));
  } else if (stream->is_blocking) {
    item.after.push_back(Streams::end_of(legacy));
  }
  all.streams.enqueue(stream, std::move(item));
}

void wait(State& all, const Point& point) {
  outside_graphs(all, "a wait");
  if (point.stream && point.stream->capture != Capture::none) {
    point.stream->capture = Capture::invalidated;
    throw Refusal(cudaErrorStreamCaptureUnsupported, "a wait for a stream that is being captured");
  }
  all.streams.wait(point);
}

// ---- copies

bool is_pinned(State& all, const void* memory, std::size_t bytes) {
  const char* const begin = static_cast<const char*>(memory);
  const auto above = all.pinned.upper_bound(begin);
  if (above == all.pinned.begin()) return false;
  const auto& [first, size] = *std::prev(above);
  return begin + bytes <= first + size;
}

const void* host_side(const Copy1D& copy) {
  return copy.kind == cudaMemcpyHostToDevice ? copy.from : copy.kind == cudaMemcpyDeviceToHost ? copy.to : nullptr;
}

void run_copy(const Copy1D& copy) {
  if (copy.kind != cudaMemcpyHostToDevice) device().host_access(copy.from, copy.bytes, false);
  if (copy.kind != cudaMemcpyDeviceToHost) device().host_access(copy.to, copy.bytes, true);
  std::memcpy(copy.to, copy.from, copy.bytes);
}

void run_pinned_copy(const Copy1D& copy) {
  const void* host = host_side(copy);
  if (host && !is_pinned(state(), host, copy.bytes)) throw Error("A copy runs after its pinned memory was freed.");
  run_copy(copy);
}

void enqueue_copy(State& all, const std::shared_ptr<Stream>& stream, const Copy1D& copy) {
  const void* host = host_side(copy);
  if (!host || is_pinned(all, host, copy.bytes)) return enqueue(all, stream, {[copy] { run_pinned_copy(copy); }});
  if (copy.kind == cudaMemcpyDeviceToHost) {
    outside_graphs(all, "a copy to memory that is not pinned, which waits,");
    enqueue(all, stream, {[copy] { run_copy(copy); }});
    return wait(all, Streams::end_of(stream));
  }
  const auto* bytes = static_cast<const char*>(copy.from);
  const auto staged = std::make_shared<std::vector<char>>(bytes, bytes + copy.bytes);
  enqueue(all, stream, {[copy, staged] { run_copy({copy.to, staged->data(), copy.bytes, copy.kind}); }});
}

// ---- kernels

void load(State& all, Kernel& kernel) {
  if (kernel.is_loaded) return;
  outside_graphs(all, kernel.name + " is first used");
  kernel.is_loaded = true;
}

using Runs = std::vector<std::shared_ptr<const KernelRun>>;

// Enqueues a kernel that may begin before `predecessors` have ended, or have seen the end of those before them.
std::shared_ptr<KernelRun> enqueue_kernel(State& all, const std::shared_ptr<Stream>& stream,
                                          std::shared_ptr<const KernelLaunch> launch, Runs predecessors) {
  const auto run = std::make_shared<KernelRun>();
  enqueue(all, stream, {[launch = std::move(launch), run, predecessors = std::move(predecessors)] {
            for (const auto& predecessor : predecessors) {
              run->unfinished.push_back(predecessor->ran.eras);
              if (predecessor->ran.released_early)
                run->unfinished.insert(run->unfinished.end(), predecessor->unfinished.begin(),
                                       predecessor->unfinished.end());
            }
            run->ran = launch->run(run->unfinished);
          }});
  stream->last_kernel = run;
  return run;
}

// ---- graphs

void add_edge(const std::shared_ptr<Node>& from, const std::shared_ptr<Node>& to, const cudaGraphEdgeData* data) {
  const cudaGraphEdgeData edge = data ? *data : cudaGraphEdgeData{};
  const bool is_programmatic = edge.type == cudaGraphDependencyTypeProgrammatic;
  const bool has_port = edge.from_port == cudaGraphKernelNodePortProgrammatic ||
                        edge.from_port == cudaGraphKernelNodePortLaunchCompletion;
  if (edge.to_port != 0 || is_programmatic != has_port)
    throw Refusal(cudaErrorInvalidValue, "an edge's type and ports do not belong together");
  if (is_programmatic && (!from->kernel || !to->kernel))
    throw Refusal(cudaErrorInvalidValue, "a programmatic edge joins nodes that are not both kernels");
  for (const Node::Edge& other : to->after)
    if (other.from == from) throw Refusal(cudaErrorInvalidValue, "there is an edge between these nodes already");
  to->after.push_back({from, is_programmatic});
}

std::shared_ptr<Graph> graph_being_built(State& all, cudaGraph_t handle) {
  std::shared_ptr<Graph> graph = all.graphs.get(handle);
  if (graph->is_built) throw Refusal(cudaErrorNotSupported, "a graph is changed after it was instantiated");
  return graph;
}

void add_node(State& all, cudaGraphNode_t* handle, const std::shared_ptr<Graph>& graph, std::shared_ptr<Node> node,
              const cudaGraphNode_t* dependencies, const cudaGraphEdgeData* edges, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) add_edge(all.nodes.get(dependencies[i]), node, edges ? edges + i : nullptr);
  graph->nodes.push_back(node);
  *handle = reinterpret_cast<cudaGraphNode_t>(all.nodes.add(std::move(node)));
}

std::shared_ptr<Node> kernel_node(State& all, const cudaKernelNodeParams& of) {
  Kernel& kernel = all.kernels.find(of.func);
  load(all, kernel);
  auto node = std::make_shared<Node>();
  node->kernel = std::make_unique<KernelLaunch>(kernel, of.gridDim, of.blockDim, of.sharedMemBytes, current_device,
                                                of.kernelParams);
  return node;
}

void end_building(State& all, Graph& graph) {
  if (!std::exchange(graph.is_built, true)) --all.building[graph.builder];
}

// The nodes in some order that their edges allow.
std::vector<std::shared_ptr<Node>> in_some_order(State& all, const Graph& graph) {
  std::vector<std::shared_ptr<Node>> order;
  std::set<const Node*> placed;
  while (order.size() < graph.nodes.size()) {
    std::vector<std::shared_ptr<Node>> ready;
    for (const auto& node : graph.nodes)
      if (!placed.contains(node.get()) &&
          std::all_of(node->after.begin(), node->after.end(),
                      [&](const Node::Edge& edge) { return placed.contains(edge.from.get()); }))
        ready.push_back(node);
    if (ready.empty()) throw Refusal(cudaErrorInvalidValue, "the graph's nodes wait for each other");
    order.push_back(ready[ready.size() == 1 ? 0 : all.streams.choose(ready.size())]);
    placed.insert(order.back().get());
  }
  return order;
}

void launch_graph(State& all, const Graph& graph, const std::shared_ptr<Stream>& stream) {
  for (const auto& node : graph.nodes)
    if (node->kernel) node->kernel->check();  // an attribute of its kernel may have changed
  std::map<const Node*, std::shared_ptr<KernelRun>> runs;
  for (const auto& node : in_some_order(all, graph)) {
    if (!node->kernel) {
      enqueue(all, stream, {[copy = node->copy] { run_pinned_copy(copy); }});
      continue;
    }
    Runs predecessors;
    for (const Node::Edge& edge : node->after)
      if (edge.is_programmatic) predecessors.push_back(runs.at(edge.from.get()));
    runs[node.get()] = enqueue_kernel(all, stream, {node, node->kernel.get()}, std::move(predecessors));
  }
}

template <class Handle>
Handle handle_of(std::uintptr_t number) {
  return reinterpret_cast<Handle>(number);
}

void check_device(int device) {
  if (device < 0 || device >= devices) throw Refusal(cudaErrorInvalidDevice);
}

}  // namespace

void declare_kernel(const void* function, std::size_t parameter_bytes, CallKernel call) {
  State& all = state();
  const std::lock_guard guard(all.mutex);
  all.kernels.declare(function, parameter_bytes, call);
}

}  // namespace cuda_host

using namespace cuda_host;

// ---- errors

const char* cudaGetErrorString(cudaError_t error) {
  if (error == described && !sentence.empty()) return sentence.c_str();
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorInvalidDeviceFunction:
      return "invalid device function";
    case cudaErrorInvalidDevice:
      return "invalid device ordinal";
    case cudaErrorInvalidResourceHandle:
      return "invalid resource handle";
    case cudaErrorStreamCaptureInvalidated:
      return "operation failed due to a previous error during capture";
    case cudaErrorStreamCaptureImplicit:
      return "operation would make the legacy stream depend on a capturing blocking stream";
    default:
      return "unknown error";
  }
}

cudaError_t cudaGetLastError() { return std::exchange(last_error, cudaSuccess); }

// ---- devices

cudaError_t cudaDriverGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}

cudaError_t cudaGetDeviceCount(int* count) {
  *count = devices;
  return cudaSuccess;
}

cudaError_t cudaGetDevice(int* device) {
  *device = current_device;
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
  return call([&](State&) {
    check_device(device);
    current_device = device;
  });
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  return call([&](State&) {
    check_device(device);
    switch (attribute) {
      case cudaDevAttrMultiProcessorCount:
        *value = multiprocessors;
        return;
      case cudaDevAttrComputeCapabilityMajor:
        *value = 9;
        return;
      case cudaDevAttrComputeCapabilityMinor:
        *value = 0;
        return;
      case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
        *value = static_cast<int>(shared_per_multiprocessor);
        return;
      case cudaDevAttrMaxRegistersPerMultiprocessor:
        *value = registers_per_multiprocessor;
        return;
      case cudaDevAttrMaxSharedMemoryPerBlockOptin:
        *value = static_cast<int>(max_shared_per_block);
        return;
      case cudaDevAttrCooperativeLaunch:
      case cudaDevAttrClusterLaunch:
        *value = 1;
        return;
    }
    throw Refusal(cudaErrorInvalidValue);
  });
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  return call([&](State&) {
    check_device(device);
    *properties = {"a simulated device", Device::memory_bytes, max_shared_per_block, 9, 0, multiprocessors};
  });
}

cudaError_t cudaDeviceSynchronize() {
  return call([](State& all) {
    outside_captures(all, current_device, "a wait for the device");
    all.streams.wait_for_device(current_device);
  });
}

cudaError_t cudaMemGetInfo(std::size_t* free, std::size_t* total) {
  return call([&](State&) {
    *total = Device::memory_bytes;
    *free = *total - device().used_bytes(current_device);
  });
}

// ---- streams and events

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  return call([&](State& all) {
    outside_graphs(all, "a stream is created");
    *stream = handle_of<cudaStream_t>(
        all.stream_handles.add(all.streams.create(current_device, flags != cudaStreamNonBlocking)));
  });
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  return release("cudaStreamDestroy", [&](State& all) { all.stream_handles.remove(stream)->capture = Capture::none; });
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  return call([&](State& all) {
    if (is_legacy(stream) && is_captured_implicitly(all, current_device)) throw Refusal(cudaErrorStreamCaptureImplicit);
    wait(all, Streams::end_of(stream_of(all, stream)));
  });
}

// Something else may have run meanwhile.
cudaError_t cudaStreamQuery(cudaStream_t stream) {
  return call([&](State& all) {
    const std::shared_ptr<Stream> of = stream_of(all, stream);
    all.streams.run_one();
    if (!of->items.empty()) throw Refusal(cudaErrorNotReady);
  });
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  return call([&](State& all) {
    const Point point = all.events.get(event)->point;
    if (!point.is_reached()) enqueue(all, stream_of(all, stream), {{}, {point}});
  });
}

cudaError_t cudaStreamGetDevice(cudaStream_t stream, int* device) {
  return call([&](State& all) { *device = stream_of(all, stream)->device; });
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  return call([&](State& all) {
    if (is_legacy(stream) && is_captured_implicitly(all, current_device)) throw Refusal(cudaErrorStreamCaptureImplicit);
    *status = static_cast<cudaStreamCaptureStatus>(stream_of(all, stream)->capture);
  });
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  return call([&](State& all) {
    if (is_legacy(stream)) throw Refusal(cudaErrorStreamCaptureUnsupported);
    stream_of(all, stream)->capture = Capture::active;
  });
}

// What would be captured is an error on this device, so the graph is empty.
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  return call([&](State& all) {
    *graph = nullptr;
    const Capture was = std::exchange(stream_of(all, stream)->capture, Capture::none);
    if (was == Capture::none) throw Refusal(cudaErrorInvalidValue, "the stream is not being captured");
    if (was == Capture::invalidated) throw Refusal(cudaErrorStreamCaptureInvalidated);
    *graph = handle_of<cudaGraph_t>(all.graphs.add(std::make_shared<Graph>(Graph{{}, true})));
  });
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  return call([&](State& all) {
    *event = handle_of<cudaEvent_t>(all.events.add(std::make_shared<Event>(Event{current_device})));
  });
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  return release("cudaEventDestroy", [&](State& all) { all.events.remove(event); });
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  return call([&](State& all) {
    const std::shared_ptr<Event>& recorded = all.events.get(event);
    const std::shared_ptr<Stream> of = stream_of(all, stream);
    if (recorded->device != of->device)
      throw Refusal(cudaErrorInvalidResourceHandle, "the event and the stream belong to different devices");
    enqueue(all, of, {});
    recorded->point = Streams::end_of(of);
  });
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  return call([&](State& all) { wait(all, all.events.get(event)->point); });
}

cudaError_t cudaEventQuery(cudaEvent_t event) {
  return call([&](State& all) {
    const std::shared_ptr<Event> recorded = all.events.get(event);
    all.streams.run_one();
    if (!recorded->point.is_reached()) throw Refusal(cudaErrorNotReady);
  });
}

// ---- memory

cudaError_t cudaMalloc(void** memory, std::size_t bytes) {
  return call([&](State& all) {
    outside_captures(all, current_device, "memory is allocated");
    *memory = bytes ? device().allocate(bytes, current_device) : nullptr;
    if (bytes && !*memory) throw Refusal(cudaErrorMemoryAllocation);
  });
}

cudaError_t cudaFree(void* memory) {
  return release("cudaFree", [&](State& all) {
    if (!memory) return;
    const std::optional<int> owner = device().owner(memory);
    if (!owner) throw Refusal(cudaErrorInvalidValue, "memory is freed that is not allocated (any more)");
    outside_captures(all, *owner, "memory is freed");
    try {
      all.streams.wait_for_device(*owner);
    } catch (const std::exception& error) {
      all.device_error = error.what();
    }
    if (!device().free(memory)) throw Refusal(cudaErrorInvalidValue, "memory is freed that is not an allocation");
  });
}

cudaError_t cudaMallocHost(void** memory, std::size_t bytes) {
  return cudaHostAlloc(memory, bytes, cudaHostAllocDefault);
}

cudaError_t cudaHostAlloc(void** memory, std::size_t bytes, unsigned) {
  return call([&](State& all) {
    outside_captures(all, current_device, "pinned memory is allocated");
    *memory = device().allocate_on_host(bytes);
    all.pinned[static_cast<const char*>(*memory)] = bytes;
  });
}

// With unified addressing, which every device here has, it is the same address.
cudaError_t cudaHostGetDevicePointer(void** on_device, void* on_host, unsigned flags) {
  return call([&](State& all) {
    if (flags != 0 || !is_pinned(all, on_host, 1)) throw Refusal(cudaErrorInvalidValue);
    *on_device = on_host;
  });
}

cudaError_t cudaFreeHost(void* memory) {
  return release("cudaFreeHost", [&](State& all) {
    if (!memory) return;
    outside_captures(all, current_device, "pinned memory is freed");
    if (all.pinned.erase(static_cast<const char*>(memory)) == 0)
      throw Refusal(cudaErrorInvalidValue, "pinned memory is freed that is not allocated (any more)");
    device().free(memory);
  });
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
  return call([&](State& all) {
    if (bytes > 0) enqueue_copy(all, stream_of(all, stream), {to, from, bytes, kind});
  });
}

cudaError_t cudaMemsetAsync(void* memory, int value, std::size_t bytes, cudaStream_t stream) {
  return call([&](State& all) {
    enqueue(all, stream_of(all, stream), {[=] {
              device().host_access(memory, bytes, true);
              std::memset(memory, value, bytes);
            }});
  });
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* memory) {
  return call([&](State& all) {
    void* const at = const_cast<void*>(memory);
    if (const std::optional<int> owner = device().owner(memory))
      *attributes = {cudaMemoryTypeDevice, *owner, at, nullptr};
    else if (is_pinned(all, memory, 1))
      *attributes = {cudaMemoryTypeHost, current_device, at, at};
    else
      *attributes = {cudaMemoryTypeUnregistered, -2, nullptr, at};
  });
}

// ---- kernels

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* function) {
  return call([&](State& all) {
    Kernel& kernel = all.kernels.find(function);
    load(all, kernel);
    *attributes = {0, 0, 0, 1024, registers(128), 90, 90, static_cast<int>(kernel.max_dynamic_shared), -1};
  });
}

cudaError_t cudaFuncSetAttribute(const void* function, cudaFuncAttribute attribute, int value) {
  return call([&](State& all) {
    Kernel& kernel = all.kernels.find(function);
    load(all, kernel);
    if (attribute == cudaFuncAttributePreferredSharedMemoryCarveout) {
      if (value < -1 || value > 100) throw Refusal(cudaErrorInvalidValue);
      return;
    }
    if (value < 0 || static_cast<std::size_t>(value) > max_shared_per_block)
      throw Refusal(cudaErrorInvalidValue, kernel.name + " asks for more shared memory than a block can have");
    kernel.max_dynamic_shared = static_cast<std::size_t>(value);
  });
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void* function, int threads,
                                                          std::size_t shared_bytes) {
  return call([&](State& all) {
    const Kernel& kernel = all.kernels.find(function);
    if (threads <= 0) throw Refusal(cudaErrorInvalidValue);
    const bool fits = threads <= 1024 && shared_bytes <= kernel.max_dynamic_shared;
    *blocks = fits ? resident_blocks(static_cast<unsigned>(threads), shared_bytes) : 0;
  });
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* function, void** arguments) {
  return call([&](State& all) {
    Kernel& kernel = all.kernels.find(function);
    load(all, kernel);
    const std::shared_ptr<Stream> stream = stream_of(all, config->stream);
    if (stream->device != current_device)
      throw Refusal(cudaErrorInvalidResourceHandle, "a kernel is launched on a stream of another device");
    const auto launch = std::make_shared<KernelLaunch>(kernel, config->gridDim, config->blockDim,
                                                       config->dynamicSmemBytes, current_device, arguments);
    for (unsigned i = 0; i < config->numAttrs; ++i) launch->set(config->attrs[i].id, config->attrs[i].val);
    launch->check();
    Runs predecessors;
    if (launch->overlaps_predecessor && stream->last_kernel) predecessors.push_back(stream->last_kernel);
    enqueue_kernel(all, stream, launch, std::move(predecessors));
  });
}

// ---- graphs

cudaError_t cudaGraphCreate(cudaGraph_t* graph, unsigned) {
  return call([&](State& all) {
    *graph = handle_of<cudaGraph_t>(all.graphs.add(std::make_shared<Graph>()));
    ++all.building[std::this_thread::get_id()];
  });
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  return release("cudaGraphDestroy", [&](State& all) { end_building(all, *all.graphs.remove(graph)); });
}

cudaError_t cudaGraphAddKernelNode(cudaGraphNode_t* node, cudaGraph_t graph, const cudaGraphNode_t* dependencies,
                                   std::size_t count, const cudaKernelNodeParams* parameters) {
  return call([&](State& all) {
    const std::shared_ptr<Graph> to = graph_being_built(all, graph);
    add_node(all, node, to, kernel_node(all, *parameters), dependencies, nullptr, count);
  });
}

cudaError_t cudaGraphAddMemcpyNode1D(cudaGraphNode_t* node, cudaGraph_t graph, const cudaGraphNode_t* dependencies,
                                     std::size_t count, void* to, const void* from, std::size_t bytes,
                                     cudaMemcpyKind kind) {
  return call([&](State& all) {
    auto copy = std::make_shared<Node>();
    copy->copy = {to, from, bytes, kind};
    const void* host = host_side(copy->copy);
    if (host && !is_pinned(all, host, bytes))
      throw Refusal(cudaErrorInvalidValue, "a graph copies host memory that is not pinned");
    add_node(all, node, graph_being_built(all, graph), std::move(copy), dependencies, nullptr, count);
  });
}

cudaError_t cudaGraphAddNode(cudaGraphNode_t* node, cudaGraph_t graph, const cudaGraphNode_t* dependencies,
                             const cudaGraphEdgeData* edges, std::size_t count, cudaGraphNodeParams* parameters) {
  return call([&](State& all) {
    if (parameters->type != cudaGraphNodeTypeKernel)
      throw Refusal(cudaErrorNotSupported, "the simulated device adds other nodes by their own functions");
    const std::shared_ptr<Graph> to = graph_being_built(all, graph);
    add_node(all, node, to, kernel_node(all, parameters->kernel), dependencies, edges, count);
  });
}

cudaError_t cudaGraphAddDependencies(cudaGraph_t graph, const cudaGraphNode_t* from, const cudaGraphNode_t* to,
                                     const cudaGraphEdgeData* edges, std::size_t count) {
  return call([&](State& all) {
    graph_being_built(all, graph);
    for (std::size_t i = 0; i < count; ++i)
      add_edge(all.nodes.get(from[i]), all.nodes.get(to[i]), edges ? edges + i : nullptr);
  });
}

cudaError_t cudaGraphKernelNodeSetAttribute(cudaGraphNode_t node, cudaLaunchAttributeID id,
                                            const cudaLaunchAttributeValue* value) {
  return call([&](State& all) {
    const std::shared_ptr<Node>& of = all.nodes.get(node);
    if (!of->kernel) throw Refusal(cudaErrorInvalidValue, "the node is not a kernel");
    if (id == cudaLaunchAttributeProgrammaticStreamSerialization)
      throw Refusal(cudaErrorInvalidValue, "a graph has programmatic edges and no programmatic stream serialization");
    of->kernel->set(id, *value);
  });
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long) {
  return call([&](State& all) {
    const std::shared_ptr<Graph>& of = all.graphs.get(graph);
    for (const auto& node : of->nodes)
      if (node->kernel) node->kernel->check();
    in_some_order(all, *of);
    end_building(all, *of);
    *executable = handle_of<cudaGraphExec_t>(all.executables.add(of));
  });
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
  return call([&](State& all) { launch_graph(all, *all.executables.get(executable), stream_of(all, stream)); });
}

// What is enqueued still runs.
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  return release("cudaGraphExecDestroy", [&](State& all) { all.executables.remove(executable); });
}

// ---- for tests that use ctypes

namespace {

const char* kept(const std::string& text) {
  thread_local std::string last;
  last = text;
  return last.c_str();
}

std::string live_objects(State& all) {
  std::string found;
  const auto count = [&](std::size_t number, const char* what) {
    if (number) found += (found.empty() ? "" : ", ") + std::to_string(number) + " " + what;
  };
  count(device().allocations(), "allocations");
  count(all.pinned.size(), "pinned allocations");
  count(all.stream_handles.size(), "streams");
  count(all.events.size(), "events");
  count(all.graphs.size(), "graphs");
  count(all.executables.size(), "executable graphs");
  return found;
}

// CUDA_HOST_LEAKS=1 has a process say at its end what it has not freed.
__attribute__((destructor)) void report_leaks() {
  if (!std::getenv("CUDA_HOST_LEAKS")) return;
  if (const std::string found = live_objects(state()); !found.empty())
    std::fprintf(stderr, "Left on the simulated device: %s.\n", found.c_str());
}

}  // namespace

extern "C" {
#define FOR_TESTS __attribute__((visibility("default")))

// Memory that another library allocates, on device 0.
FOR_TESTS void* simulated_allocate(std::size_t bytes) { return device().allocate(bytes, 0); }
FOR_TESTS void simulated_write(void* to, const void* from, std::size_t bytes) {
  device().host_access(to, bytes, true);
  std::memcpy(to, from, bytes);
}
FOR_TESTS void simulated_free(void* memory) { cudaFree(memory); }

// Enqueues a copy within device memory, as another library may.
FOR_TESTS int simulated_copy(void* to, const void* from, std::size_t bytes, std::uintptr_t stream) {
  return cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, handle_of<cudaStream_t>(stream));
}
FOR_TESTS int simulated_synchronize() { return cudaDeviceSynchronize(); }

// Another library's stream: its handle. It is captured where `captured`.
FOR_TESTS std::uintptr_t simulated_stream(int device, bool captured) {
  State& all = state();
  const std::lock_guard guard(all.mutex);
  const std::shared_ptr<Stream> stream = all.streams.create(device, true);
  if (captured) stream->capture = Capture::active;
  return all.stream_handles.add(stream);
}
FOR_TESTS void simulated_destroy_stream(std::uintptr_t stream) { cudaStreamDestroy(handle_of<cudaStream_t>(stream)); }

// Another order of what streams leave open.
FOR_TESTS void simulated_seed(unsigned number) {
  State& all = state();
  const std::lock_guard guard(all.mutex);
  all.streams.seed(number);
}

// Counts what kernels access from now on, or no more.
FOR_TESTS void simulated_count_accesses(bool on) { device().counter.is_on = on; }
// What was counted since the last time: see AccessCounter::take.
FOR_TESTS const char* simulated_accesses() { return kept(device().counter.take()); }

// What is allocated or created and not yet freed, as in "2 streams, 1 events".
FOR_TESTS const char* simulated_live_objects() {
  State& all = state();
  const std::lock_guard guard(all.mutex);
  return kept(live_objects(all));
}

// The errors of calls whose status nobody reads, since the last time.
FOR_TESTS const char* simulated_complaints() {
  State& all = state();
  const std::lock_guard guard(all.mutex);
  return kept(std::exchange(all.complaints, ""));
}
}
