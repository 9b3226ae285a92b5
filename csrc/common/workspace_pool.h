// The workspaces of finished forwards, kept for reuse: as many as there have been forwards at the same time.
#pragma once

#include <cstddef>
#include <memory>
#include <mutex>
#include <vector>

namespace distilfast {

template <class Workspace>
class WorkspacePool {
 public:
  // `mutex` is the owner's, because the CPU's must not be held across a fork.
  explicit WorkspacePool(std::mutex& mutex) : mutex_(mutex) {}

  std::unique_ptr<Workspace> borrow() {
    const std::lock_guard guard(mutex_);
    if (idle_.empty()) return std::make_unique<Workspace>();
    std::unique_ptr<Workspace> workspace = std::move(idle_.back());
    idle_.pop_back();
    return workspace;
  }
  void give_back(std::unique_ptr<Workspace> workspace) {
    const std::lock_guard guard(mutex_);
    idle_.push_back(std::move(workspace));
  }
  // Of all workspaces that are not borrowed.
  std::size_t bytes() const {
    const std::lock_guard guard(mutex_);
    std::size_t bytes = 0;
    for (const auto& workspace : idle_) bytes += workspace->bytes();
    return bytes;
  }

 private:
  std::mutex& mutex_;
  std::vector<std::unique_ptr<Workspace>> idle_;
};

}  // namespace distilfast
