// csrc/cuda/runtime.h on the host: device memory whose accesses are checked, and work that runs as it is enqueued.
//
// It also reports what has no place while a graph is built: a kernel's first use, which may wait for the device, an
// allocation, a wait for a stream, and a copy from memory that is not pinned.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "simulator.h"

namespace distilfast::cuda {

inline std::optional<std::string> unavailable() { return std::nullopt; }
inline int current_device() { return 0; }
inline std::string device_name() { return "a simulated device"; }
inline int multiprocessors() { return 132; }
inline int architecture() { return 90; }
inline std::size_t max_shared_bytes() { return 227 * 1024; }
inline std::size_t used_memory() { return cuda_host::device().used_bytes(); }

class CurrentDevice {
 public:
  explicit CurrentDevice(int) {}
};

using StreamHandle = std::uintptr_t;
constexpr StreamHandle thread_default_stream = 2;

namespace host {

using Work = std::function<void()>;

// What this thread records, null where it records nothing.
inline std::vector<Work>*& recording() {
  thread_local std::vector<Work>* works = nullptr;
  return works;
}
inline void outside_graphs(const char* what) {
  if (recording()) throw cuda_host::Error(std::string(what) + " while a graph is recorded.");
}
inline void enqueue(Work work) {
  if (recording())
    recording()->push_back(std::move(work));
  else
    work();
}

// Kernels that were used, and pinned memory with its sizes: of all threads.
struct Known {
  std::mutex mutex;
  std::set<const void*> kernels;
  std::map<const char*, std::size_t> pinned;

  void use(const char* name, const void* kernel) {
    const std::lock_guard guard(mutex);
    if (kernels.contains(kernel)) return;
    outside_graphs((std::string("The kernel ") + name + " is first used").c_str());
    kernels.insert(kernel);
  }
  bool is_pinned(const void* memory, std::size_t bytes) {
    const std::lock_guard guard(mutex);
    const auto above = pinned.upper_bound(static_cast<const char*>(memory));
    if (above == pinned.begin()) return false;
    const auto& [begin, size] = *std::prev(above);
    return static_cast<const char*>(memory) + bytes <= begin + size;
  }
};
inline Known& known() {
  static Known all;
  return all;
}

// A simulated stream handle: the upper half is the device, and the lowest bit says whether it is being captured.
inline int device_of_stream(StreamHandle stream) { return static_cast<int>(stream >> 32); }
inline bool is_captured(StreamHandle stream) { return stream > thread_default_stream && stream & 1; }

}  // namespace host

inline void check_stream(StreamHandle caller) {
  if (const int device = host::device_of_stream(caller))
    throw std::invalid_argument("The stream belongs to device " + std::to_string(device) + " and the model to device " +
                                std::to_string(current_device()) + ".");
  if (host::is_captured(caller))
    throw std::invalid_argument("The stream is being captured, and a forward cannot be part of another graph.");
}

constexpr int dlpack_device_type = 1;  // kDLCPU: a simulated device's memory is the host's

inline std::optional<int> device_of(const void* memory) {
  return cuda_host::device().holds(memory) ? std::optional(0) : std::nullopt;
}

// Work runs as it is enqueued, so every stream is ordered after all earlier work.
class Stream {
 public:
  void follow(StreamHandle) {}
  void precede(StreamHandle) {}
  void wait() { host::outside_graphs("A stream is waited for"); }
  void mark() {}
  void wait_for_mark() { host::outside_graphs("A stream is waited for"); }
};

class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  explicit DeviceBuffer(std::size_t bytes) : bytes_(bytes) {
    host::outside_graphs("Memory is allocated");
    if (bytes) data_ = cuda_host::device().allocate(bytes);
  }
  DeviceBuffer(DeviceBuffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  DeviceBuffer& operator=(DeviceBuffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~DeviceBuffer() {
    if (data_) cuda_host::device().free(data_);
  }

  char* data() const { return static_cast<char*>(data_); }
  std::size_t bytes() const { return bytes_; }

 private:
  void* data_ = nullptr;
  std::size_t bytes_ = 0;
};

class PinnedBuffer {
 public:
  explicit PinnedBuffer(std::size_t bytes) : data_(new char[bytes]) {
    host::outside_graphs("Memory is allocated");
    const std::lock_guard guard(host::known().mutex);
    host::known().pinned[data_.get()] = bytes;
  }
  PinnedBuffer(const PinnedBuffer&) = delete;
  PinnedBuffer& operator=(const PinnedBuffer&) = delete;
  ~PinnedBuffer() {
    const std::lock_guard guard(host::known().mutex);
    host::known().pinned.erase(data_.get());
  }
  char* data() const { return data_.get(); }

 private:
  std::unique_ptr<char[]> data_;
};

inline void upload(void* device, const void* host, std::size_t bytes, Stream&) {
  if (bytes == 0) return;
  if (!host::known().is_pinned(host, bytes)) host::outside_graphs("Memory that is not pinned is copied");
  host::enqueue([=] {
    cuda_host::device().host_access(device, bytes, true);
    std::memcpy(device, host, bytes);
  });
}
inline void download(void* host, const void* device, std::size_t bytes, Stream&) {
  if (bytes == 0) return;
  if (!host::known().is_pinned(host, bytes)) host::outside_graphs("Memory that is not pinned is copied");
  host::enqueue([=] {
    cuda_host::device().host_access(device, bytes, false);
    std::memcpy(host, device, bytes);
  });
}

struct Grid {
  unsigned x = 1, y = 1, z = 1;
};

template <class Op>
void load_kernel(const char* name, void (*kernel)(Op)) {
  host::known().use(name, reinterpret_cast<const void*>(kernel));
}

namespace host {

template <class Op>
void run(const cuda_host::Launch& launch, void (*kernel)(Op), Op op) {
  if (launch.shared_bytes > max_shared_bytes())
    throw cuda_host::Error(launch.kernel + " asks for more shared memory than a block can have.");
  load_kernel(launch.kernel.c_str(), kernel);
  enqueue([=] { cuda_host::device().run(launch, [kernel, &op] { kernel(op); }); });
}

}  // namespace host

template <class Op>
void launch(const char* name, void (*kernel)(Op), Grid grid, unsigned threads, std::size_t shared_bytes, Stream&,
            Op op) {
  host::run({name, {grid.x, grid.y, grid.z}, {threads, 1, 1}, shared_bytes, false}, kernel, op);
}

inline int max_cluster_blocks() { return 8; }

template <class Op>
void launch_clusters(const char* name, void (*kernel)(Op), unsigned cluster, Grid grid, unsigned threads,
                     std::size_t shared_bytes, Stream&, Op op) {
  if (cluster > static_cast<unsigned>(max_cluster_blocks()))
    throw cuda_host::Error(std::string(name) + " asks for more blocks than a cluster can have.");
  host::run({name, {grid.x, grid.y, grid.z}, {threads, 1, 1}, shared_bytes, false, cluster}, kernel, op);
}

// Enough blocks to divide an operation's work, few enough for a fiber for each thread.
inline unsigned cooperative_blocks() { return 5; }

template <class Op>
void launch_cooperative(const char* name, void (*kernel)(Op), unsigned threads, std::size_t shared_bytes, Stream&,
                        Op op) {
  host::run({name, {cooperative_blocks(), 1, 1}, {threads, 1, 1}, shared_bytes, true}, kernel, op);
}

// Records what was enqueued, and replays it: as in a real graph, with the pointers of then and current data.
class Graph {
 public:
  Graph(Stream&, const host::Work& enqueue) {
    struct Recording {
      explicit Recording(std::vector<host::Work>* works) { host::recording() = works; }
      ~Recording() { host::recording() = nullptr; }
    } recording(&works_);
    enqueue();
  }
  void run(Stream&) {
    for (const host::Work& work : works_) work();
  }

 private:
  std::vector<host::Work> works_;
};

}  // namespace distilfast::cuda
