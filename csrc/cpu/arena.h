// Memory for one forward: a block that only ever grows, cut into aligned pieces.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <new>
#include <utility>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "cpu/kernels.h"

namespace distilfast {

// Bytes on a huge-page boundary; the system is asked for huge pages, since streaming weights would otherwise miss the
// TLB every 4 KB.
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(std::size_t size) : size_(size) {
    if (size == 0) return;
    const std::size_t bytes = (size + boundary - 1) / boundary * boundary;
    data_ = static_cast<std::byte*>(std::aligned_alloc(boundary, bytes));
    if (!data_) throw std::bad_alloc();
#if defined(__linux__)
    madvise(data_, bytes, MADV_HUGEPAGE);
#endif
  }
  Buffer(Buffer&& other) noexcept : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~Buffer() { std::free(data_); }

  std::byte* data() const { return data_; }
  std::size_t size() const { return size_; }

 private:
  static constexpr std::size_t boundary = std::size_t{2} << 20;
  std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

class Arena {
 public:
  // Makes room for `bytes`, forgetting what was there.
  void reset(std::size_t bytes) {
    used_ = 0;
    if (bytes > buffer_.size()) {
      buffer_ = Buffer();  // free first: the old and the new block need never coexist
      buffer_ = Buffer(bytes);
    }
  }
  std::byte* take(Index bytes) {
    std::byte* piece = buffer_.data() + used_;
    used_ += padded(bytes);
    return piece;
  }
  // What a piece of this size takes up: whole cache lines, and one more so that pieces do not start at equal sets.
  static std::size_t padded(Index bytes) { return (static_cast<std::size_t>(bytes) + 63) / 64 * 64 + 64; }
  std::size_t bytes() const { return buffer_.size(); }

 private:
  Buffer buffer_;
  std::size_t used_ = 0;
};

}  // namespace distilfast
