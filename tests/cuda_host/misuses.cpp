// Wrong uses of the CUDA runtime, and right ones beside them: what cuda_runtime_api.h of this folder must report.
#include "misuses.h"

#include <array>
#include <cstring>
#include <functional>
#include <map>
#include <stdexcept>
#include <vector>

#include "cuda/device.cuh"
#include "cuda/runtime.h"

namespace distilfast::cuda {
namespace {

constexpr int threads = 64;
constexpr std::size_t bytes = threads * sizeof(float);

struct Buffers {
  const float* in;  // [threads]
  float* out;       // [threads]
};

int self() { return static_cast<int>(threadIdx.x); }

void plus_one(Buffers op) { store(op.out + self(), load(op.in + self()) + 1.0f); }
void never_loaded(Buffers op) { plus_one(op); }
void first_used(Buffers op) { plus_one(op); }
void in_small_memory(Buffers op) { plus_one(op); }

template <int size>
struct Bytes {
  char content[size];
};
template <int size>
void take_parameter(Bytes<size>) {}

// Right uses of programmatic dependent launch, and what is missing in a wrong one.
void plus_one_in_turn(Buffers op) {
  wait_for_predecessor();
  plus_one(op);
  release_dependents();
}
void wait_in_one_thread(Buffers op) {
  if (self() == 0) wait_for_predecessor();
  sync_threads();
  plus_one(op);
}
void release_first(Buffers op) {
  release_dependents();
  wait_for_predecessor();
  plus_one(op);
}
void read_first(Buffers op) {
  const float value = load(op.in + self());
  wait_for_predecessor();
  store(op.out + self(), value + 1.0f);
}
void write_first(Buffers op) {
  store(op.out + self(), 0.0f);
  wait_for_predecessor();
  plus_one(op);
}
void never_wait(Buffers op) {
  if (self() < 0) plus_one(op);
}

// Two streams, four buffers of device memory, and one of pinned memory that holds 0, 1, 2, ...
struct Scene {
  Stream stream, other;
  std::array<DeviceBuffer, 4> buffers{DeviceBuffer(bytes), DeviceBuffer(bytes), DeviceBuffer(bytes),
                                      DeviceBuffer(bytes)};
  PinnedBuffer pinned{bytes};

  Scene() { fill(0.0f); }
  void fill(float first) {
    for (int i = 0; i < threads; ++i) host()[i] = first + static_cast<float>(i);
  }
  float* host() const { return reinterpret_cast<float*>(pinned.data()); }
  float* on_device(int i) const { return reinterpret_cast<float*>(buffers[static_cast<std::size_t>(i)].data()); }
  Buffers from_to(int from, int to) const { return {on_device(from), on_device(to)}; }

  void upload_to(int i) { upload(on_device(i), host(), bytes, stream); }
  float first_of(int i) {
    float value;
    download(&value, on_device(i), sizeof(value), stream);
    return value;
  }
  void launch_on(Stream& where, void (*kernel)(Buffers), Buffers op, std::size_t shared_bytes = 0) {
    launch("a kernel", kernel, {1}, threads, shared_bytes, where, op);
  }
};

void must(cudaError_t status) { check(status, "a call"); }

// A graph whose nodes are written out.
class Nodes {
 public:
  explicit Nodes(const Scene& scene) : scene_(scene) { must(cudaGraphCreate(&graph_, 0)); }
  Nodes(const Nodes&) = delete;
  Nodes& operator=(const Nodes&) = delete;
  ~Nodes() {
    if (executable_) cudaGraphExecDestroy(executable_);
    cudaGraphDestroy(graph_);
  }

  cudaGraphNode_t kernel(void (*function)(Buffers), Buffers op) {
    void* arguments[] = {&op};
    cudaKernelNodeParams node{};
    node.func = reinterpret_cast<void*>(function), node.blockDim = dim3(threads), node.kernelParams = arguments;
    cudaGraphNode_t added = nullptr;
    must(cudaGraphAddKernelNode(&added, graph_, nullptr, 0, &node));
    return added;
  }
  cudaGraphNode_t copy_to(int i) {
    cudaGraphNode_t added = nullptr;
    must(cudaGraphAddMemcpyNode1D(&added, graph_, nullptr, 0, scene_.on_device(i), scene_.host(), bytes,
                                  cudaMemcpyHostToDevice));
    return added;
  }
  void edge(cudaGraphNode_t from, cudaGraphNode_t to, bool programmatic,
            unsigned char port = cudaGraphKernelNodePortProgrammatic) {
    const cudaGraphEdgeData data{programmatic ? port : cudaGraphKernelNodePortDefault, 0, programmatic, {}};
    must(cudaGraphAddDependencies(graph_, &from, &to, &data, 1));
  }
  void run(Stream& stream) {
    must(cudaGraphInstantiate(&executable_, graph_, 0));
    must(cudaGraphLaunch(executable_, stream.get()));
    stream.wait();
  }

 private:
  const Scene& scene_;
  cudaGraph_t graph_ = nullptr;
  cudaGraphExec_t executable_ = nullptr;
};

// A copy, then kernels that each add one, the first after an ordinary edge and the others after programmatic ones.
void chain(Scene& scene, const std::vector<void (*)(Buffers)>& kernels) {
  for (auto* kernel : kernels) load_kernel("a kernel", kernel);
  Nodes nodes(scene);
  cudaGraphNode_t last = nodes.copy_to(0);
  for (int i = 0; i < static_cast<int>(kernels.size()); ++i) {
    const cudaGraphNode_t node = nodes.kernel(kernels[static_cast<std::size_t>(i)], scene.from_to(i, i + 1));
    nodes.edge(last, node, i > 0);
    last = node;
  }
  nodes.run(scene.stream);
}

// While another library captures a stream.
void during_capture(Scene& scene, const std::function<void(cudaStream_t)>& act) {
  struct Captured {
    cudaStream_t stream = nullptr;
    Captured() {
      must(cudaStreamCreateWithFlags(&stream, cudaStreamDefault));
      must(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    }
    ~Captured() {
      cudaGraph_t graph = nullptr;
      cudaStreamEndCapture(stream, &graph);
      if (graph) cudaGraphDestroy(graph);
      cudaStreamDestroy(stream);
    }
  } captured;
  scene.launch_on(scene.stream, plus_one, scene.from_to(0, 1));  // other streams may be used
  act(captured.stream);
}

cudaStream_t destroyed_stream() {
  cudaStream_t stream = nullptr;
  must(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  cudaStreamDestroy(stream);
  return stream;
}

void launch_with_48_kb_and(std::size_t more, Scene& scene) {
  cudaFuncAttributes attributes;
  must(cudaFuncGetAttributes(&attributes, in_small_memory));
  Buffers op = scene.from_to(0, 1);
  void* arguments[] = {&op};
  cudaLaunchConfig_t config{{1}, {threads}, 48 * 1024 + more, scene.stream.get(), nullptr, 0};
  must(cudaLaunchKernelExC(&config, reinterpret_cast<const void*>(in_small_memory), arguments));
}

template <int size>
void launch_with_parameter(Scene& scene) {
  launch("a kernel", take_parameter<size>, {1}, threads, 0, scene.stream, Bytes<size>{});
}

void launch_together(Scene& scene, unsigned blocks) {
  cudaLaunchAttribute together{};
  together.id = cudaLaunchAttributeCooperative, together.val.cooperative = 1;
  launch_with(&together, "a kernel", never_wait, {blocks}, 256, 100 * 1024, scene.stream, scene.from_to(0, 1));
}

using Act = void (*)(Scene&);

const std::map<std::string, Act>& acts() {
  static const std::map<std::string, Act> all = {
      // ---- right uses
      {"nothing",
       [](Scene& scene) {
         Graph(scene.other, [&] {
           upload(scene.on_device(1), scene.host(), bytes, scene.other);
           scene.launch_on(scene.other, plus_one, scene.from_to(1, 2));
         }).run(scene.other);
         scene.other.wait();
       }},
      {"48_kb", [](Scene& scene) { launch_with_48_kb_and(0, scene); }},
      {"largest_parameter", [](Scene& scene) { launch_with_parameter<32764>(scene); }},
      {"most_cooperative_blocks", [](Scene& scene) { launch_together(scene, 132); }},
      {"programmatic_chain", [](Scene& scene) { chain(scene, {plus_one, plus_one_in_turn, plus_one_in_turn}); }},
      {"wait_in_one_thread", [](Scene& scene) { chain(scene, {plus_one, wait_in_one_thread}); }},
      {"early_release", [](Scene& scene) { chain(scene, {plus_one, release_first, plus_one_in_turn}); }},
      {"read_of_what_has_ended",
       [](Scene& scene) {
         load_kernel("a kernel", plus_one_in_turn), load_kernel("a kernel", read_first);
         Nodes nodes(
             scene);  // the third kernel reads what the first has written, which ended before the second released it
         const auto first = nodes.kernel(plus_one, scene.from_to(0, 1)),
                    second = nodes.kernel(plus_one_in_turn, scene.from_to(1, 2)),
                    third = nodes.kernel(read_first, scene.from_to(1, 3));
         nodes.edge(first, second, true), nodes.edge(second, third, true);
         nodes.run(scene.stream);
       }},
      // ---- launches
      {"not_loaded",
       [](Scene& scene) {
         Nodes nodes(scene);
         nodes.kernel(never_loaded, scene.from_to(0, 1));
       }},
      {"shared_memory_not_requested", [](Scene& scene) { launch_with_48_kb_and(1, scene); }},
      {"shared_memory",
       [](Scene& scene) { scene.launch_on(scene.stream, plus_one, scene.from_to(0, 1), max_shared_bytes() + 1); }},
      {"parameter", [](Scene& scene) { launch_with_parameter<32765>(scene); }},
      {"cluster_blocks",
       [](Scene& scene) {
         launch_clusters("a kernel", plus_one, 9, {9}, threads, 0, scene.stream, scene.from_to(0, 1));
       }},
      {"cluster_grid",
       [](Scene& scene) {
         launch_clusters("a kernel", plus_one, 2, {3}, threads, 0, scene.stream, scene.from_to(0, 1));
       }},
      {"empty_grid",
       [](Scene& scene) { launch("a kernel", plus_one, {0}, threads, 0, scene.stream, scene.from_to(0, 1)); }},
      {"cooperative_blocks", [](Scene& scene) { launch_together(scene, 2 * 132 + 1); }},
      {"stream_of_another_device",
       [](Scene& scene) {
         must(cudaSetDevice(1));
         Stream there;
         must(cudaSetDevice(0));
         scene.launch_on(there, plus_one, scene.from_to(0, 1));
       }},
      {"memory_of_another_device",
       [](Scene& scene) {
         must(cudaSetDevice(1));
         const DeviceBuffer there(bytes);
         must(cudaSetDevice(0));
         scene.launch_on(scene.stream, plus_one, {reinterpret_cast<const float*>(there.data()), scene.on_device(1)});
         scene.stream.wait();
       }},
      // ---- while a graph is built
      {"first_use",
       [](Scene& scene) {
         Graph(scene.other, [&] { scene.launch_on(scene.other, first_used, scene.from_to(0, 1)); });
       }},
      {"allocation", [](Scene& scene) { Graph(scene.other, [] { const DeviceBuffer more(16); }); }},
      {"pinned_allocation", [](Scene& scene) { Graph(scene.other, [] { const PinnedBuffer more(16); }); }},
      {"wait", [](Scene& scene) { Graph(scene.other, [&] { scene.other.wait(); }); }},
      {"pageable_copy",
       [](Scene& scene) {
         static const float pageable[threads] = {};
         Graph(scene.other, [&] { upload(scene.on_device(1), pageable, bytes, scene.other); });
       }},
      // ---- while a stream is captured
      {"allocation_in_capture",
       [](Scene& scene) { during_capture(scene, [](cudaStream_t) { const DeviceBuffer more(16); }); }},
      {"pinned_allocation_in_capture",
       [](Scene& scene) { during_capture(scene, [](cudaStream_t) { const PinnedBuffer more(16); }); }},
      {"free_in_capture",
       [](Scene& scene) { during_capture(scene, [&](cudaStream_t) { must(cudaFree(scene.on_device(3))); }); }},
      {"device_wait_in_capture",
       [](Scene& scene) { during_capture(scene, [](cudaStream_t) { must(cudaDeviceSynchronize()); }); }},
      {"wait_for_captured",
       [](Scene& scene) {
         during_capture(scene, [](cudaStream_t captured) { must(cudaStreamSynchronize(captured)); });
       }},
      {"work_on_captured",
       [](Scene& scene) {
         during_capture(scene,
                        [&](cudaStream_t captured) { scene.stream.follow(reinterpret_cast<StreamHandle>(captured)); });
       }},
      {"default_stream_in_capture",
       [](Scene& scene) { during_capture(scene, [&](cudaStream_t) { scene.stream.follow(0); }); }},
      {"capture_of_the_others",
       [](Scene& scene) {
         cudaStream_t captured = nullptr;
         must(cudaStreamCreateWithFlags(&captured, cudaStreamNonBlocking));
         must(cudaStreamBeginCapture(captured, cudaStreamCaptureModeGlobal));
         cudaDeviceSynchronize();  // fails, and so does the capture
         cudaGraph_t graph = nullptr;
         const cudaError_t status = cudaStreamEndCapture(captured, &graph);
         cudaStreamDestroy(captured);
         (void)scene;
         must(status);
       }},
      // ---- what is gone
      {"destroyed_stream",
       [](Scene& scene) { scene.stream.follow(reinterpret_cast<StreamHandle>(destroyed_stream())); }},
      {"destroyed_twice", [](Scene&) { must(cudaStreamDestroy(destroyed_stream())); }},
      {"destroyed_event",
       [](Scene& scene) {
         cudaEvent_t event = nullptr;
         must(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
         cudaEventDestroy(event);
         must(cudaEventRecord(event, scene.stream.get()));
       }},
      {"freed_twice",
       [](Scene&) {
         void* memory = nullptr;
         must(cudaMalloc(&memory, 16));
         cudaFree(memory);
         must(cudaFree(memory));
       }},
      {"use_after_free",
       [](Scene& scene) {
         Buffers op = scene.from_to(0, 1);
         {
           const DeviceBuffer gone(bytes);
           op.in = reinterpret_cast<const float*>(gone.data());
         }
         scene.launch_on(scene.stream, plus_one, op);
         scene.stream.wait();
       }},
      {"pinned_memory_freed_early",
       [](Scene& scene) {
         {
           const PinnedBuffer gone(bytes);
           std::memset(gone.data(), 0, bytes);
           upload(scene.on_device(1), gone.data(), bytes, scene.stream);
         }
         scene.stream.wait();
       }},
      // ---- edges of graphs
      {"programmatic_edge_of_a_copy",
       [](Scene& scene) {
         Nodes nodes(scene);
         nodes.edge(nodes.copy_to(0), nodes.kernel(plus_one, scene.from_to(0, 1)), true);
       }},
      {"programmatic_edge_without_port",
       [](Scene& scene) {
         Nodes nodes(scene);
         nodes.edge(nodes.kernel(plus_one, scene.from_to(0, 1)), nodes.kernel(plus_one, scene.from_to(1, 2)), true,
                    cudaGraphKernelNodePortDefault);
       }},
      {"second_edge",
       [](Scene& scene) {
         Nodes nodes(scene);
         const auto from = nodes.kernel(plus_one, scene.from_to(0, 1)),
                    to = nodes.kernel(plus_one, scene.from_to(1, 2));
         nodes.edge(from, to, false);
         nodes.edge(from, to, false);
       }},
      {"circle",
       [](Scene& scene) {
         Nodes nodes(scene);
         const auto one = nodes.kernel(plus_one, scene.from_to(0, 1)),
                    two = nodes.kernel(plus_one, scene.from_to(1, 0));
         nodes.edge(one, two, false);
         nodes.edge(two, one, false);
         nodes.run(scene.stream);
       }},
      // ---- programmatic dependent launch
      {"read_before_wait", [](Scene& scene) { chain(scene, {plus_one, read_first}); }},
      {"write_before_wait",
       [](Scene& scene) {
         load_kernel("a kernel", write_first);
         Nodes nodes(scene);  // the second kernel overwrites what the first may still be reading
         const auto one = nodes.kernel(plus_one, scene.from_to(0, 1)),
                    two = nodes.kernel(write_first, scene.from_to(2, 0));
         nodes.edge(one, two, true);
         nodes.run(scene.stream);
       }},
      {"no_wait", [](Scene& scene) { chain(scene, {plus_one, never_wait}); }},
      {"read_after_early_release",
       [](Scene& scene) {
         load_kernel("a kernel", release_first), load_kernel("a kernel", read_first);
         Nodes nodes(scene);  // the third kernel may begin before the first has ended
         const auto first = nodes.kernel(plus_one, scene.from_to(0, 1)),
                    second = nodes.kernel(release_first, scene.from_to(1, 2)),
                    third = nodes.kernel(read_first, scene.from_to(1, 3));
         nodes.edge(first, second, true), nodes.edge(second, third, true);
         nodes.run(scene.stream);
       }},
      {"overlap_on_a_stream",
       [](Scene& scene) {
         cudaLaunchAttribute overlap{};
         overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
         overlap.val.programmaticStreamSerializationAllowed = 1;
         scene.launch_on(scene.stream, plus_one, scene.from_to(0, 1));
         launch_with(&overlap, "a kernel", read_first, {1}, threads, 0, scene.stream, scene.from_to(1, 2));
         scene.stream.wait();
       }},
  };
  return all;
}

// ---- what a wrong order gives

// Orders two streams unless `ordered` is false: the second adds one to what the first has uploaded.
float sum_on_two_streams(Scene& scene, bool ordered) {
  scene.upload_to(1);
  scene.stream.wait();
  scene.fill(10.0f);
  scene.upload_to(1);
  if (ordered) scene.other.follow(reinterpret_cast<StreamHandle>(scene.stream.get()));
  scene.launch_on(scene.other, plus_one, scene.from_to(1, 2));
  scene.stream.follow(reinterpret_cast<StreamHandle>(scene.other.get()));
  return scene.first_of(2);
}

// Fills pinned memory again after a copy from it was enqueued, and waits before unless `waits` is false.
float reused_pinned_memory(Scene& scene, bool waits) {
  scene.upload_to(1);
  if (waits) scene.stream.wait();
  scene.fill(10.0f);
  return scene.first_of(1);
}

// Reads pinned memory to which a copy was enqueued.
float read_pinned_memory(Scene& scene, bool waits) {
  scene.upload_to(1);
  scene.stream.wait();
  scene.fill(10.0f);
  download(scene.host(), scene.on_device(1), bytes, scene.stream);
  if (waits) scene.stream.wait();
  const float value = scene.host()[0];
  scene.stream.wait();
  return value;
}

// A kernel reads mapped memory when it runs.
float mapped_memory(Scene& scene, bool waits) {
  void *host = nullptr, *on_device = nullptr;
  must(cudaHostAlloc(&host, bytes, cudaHostAllocMapped));
  must(cudaHostGetDevicePointer(&on_device, host, 0));
  std::memset(host, 0, bytes);
  scene.launch_on(scene.stream, plus_one, {static_cast<const float*>(on_device), scene.on_device(1)});
  if (waits) scene.stream.wait();
  *static_cast<float*>(host) = 10.0f;
  const float value = scene.first_of(1);
  cudaFreeHost(host);
  return value;
}

}  // namespace

void misuse(const std::string& what) {
  const Act act = acts().at(what);
  Scene scene;
  scene.upload_to(0);
  scene.launch_on(scene.stream, plus_one, scene.from_to(0, 1));
  scene.stream.wait();
  act(scene);
}

std::vector<std::string> misuses() {
  std::vector<std::string> names;
  for (const auto& [name, act] : acts()) names.push_back(name);
  return names;
}

float ordered_result(const std::string& what, bool right) {
  static const std::map<std::string, float (*)(Scene&, bool)> all = {{"two_streams", sum_on_two_streams},
                                                                     {"reused_pinned_memory", reused_pinned_memory},
                                                                     {"read_pinned_memory", read_pinned_memory},
                                                                     {"mapped_memory", mapped_memory}};
  Scene scene;
  return all.at(what)(scene, right);
}

void leak() {
  new Stream;
  new DeviceBuffer(16);
  new PinnedBuffer(16);
}

}  // namespace distilfast::cuda
