// csrc/cuda/runtime.h on the host: device memory that is watched, and work that is done as it is enqueued.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>

#include "simulator.h"

namespace distilfast::cuda {

inline std::optional<std::string> unavailable() { return std::nullopt; }
inline std::string device_name() { return "a simulated device"; }
inline int multiprocessors() { return 132; }

using StreamHandle = std::uintptr_t;

constexpr int dlpack_device_type = 1;  // kDLCPU: a simulated device's memory is the host's
inline int current_device() { return 0; }

// Work is done as it is enqueued, so that any stream is behind any other.
class Stream {
 public:
  void follow(StreamHandle) {}
  void precede(StreamHandle) {}
  void wait() {}
};

class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  explicit DeviceBuffer(std::size_t bytes) : bytes_(bytes) {
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
  explicit PinnedBuffer(std::size_t bytes) : data_(new char[bytes]) {}
  char* data() const { return data_.get(); }

 private:
  std::unique_ptr<char[]> data_;
};

inline void upload(void* device, const void* host, std::size_t bytes, Stream&) {
  if (bytes == 0) return;
  cuda_host::device().host_access(device, bytes, true);
  std::memcpy(device, host, bytes);
}
inline void download(void* host, const void* device, std::size_t bytes, Stream&) {
  if (bytes == 0) return;
  cuda_host::device().host_access(device, bytes, false);
  std::memcpy(host, device, bytes);
}

struct Grid {
  unsigned x = 1, y = 1, z = 1;
};

template <class Op>
void launch(const char* name, void (*kernel)(Op), Grid grid, unsigned threads, std::size_t shared_bytes, Stream&,
            Op op) {
  const cuda_host::Launch launch{name, {grid.x, grid.y, grid.z}, {threads, 1, 1}, shared_bytes, false};
  cuda_host::device().run(launch, [kernel, &op] { kernel(op); });
}

// Enough for a stage's work to be shared out, few enough for a fiber each.
inline unsigned cooperative_blocks() { return 5; }

template <class Op>
void launch_cooperative(const char* name, void (*kernel)(Op), unsigned threads, std::size_t shared_bytes, Stream&,
                        Op op) {
  const cuda_host::Launch launch{name, {cooperative_blocks(), 1, 1}, {threads, 1, 1}, shared_bytes, true};
  cuda_host::device().run(launch, [kernel, &op] { kernel(op); });
}

// Keeps what it enqueued, to do it again: like a device's graph it sees the pointers of then and the data of now.
class Graph {
 public:
  Graph(Stream&, std::function<void()> enqueue) : enqueue_(std::move(enqueue)) {}
  void run(Stream&) { enqueue_(); }

 private:
  std::function<void()> enqueue_;
};

}  // namespace distilfast::cuda
