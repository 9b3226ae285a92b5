#include "cpu/threads.h"

#include <atomic>
#include <chrono>
#include <fstream>
#include <string>
#include <thread>

#if defined(__linux__)
#include <pthread.h>
#include <sched.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace distilfast {

namespace {

void pause_briefly() {
#if defined(__x86_64__)
  _mm_pause();
#else
  std::this_thread::yield();
#endif
}

// Long enough to bridge two stages of a forward and two forwards in a row, short enough not to heat an idle machine.
constexpr std::chrono::microseconds spin_time{50};

template <class Done>
bool spin_until(Done done) {
  const auto end = std::chrono::steady_clock::now() + spin_time;
  do {
    for (int i = 0; i < 64; ++i) {
      if (done()) return true;
      pause_briefly();
    }
  } while (std::chrono::steady_clock::now() < end);
  return done();
}

}  // namespace

class ThreadPool {
 public:
  static ThreadPool& instance();

  std::mutex& owner() { return owner_; }

  // Only while the owner's lock is held. Throws std::system_error where no thread can be had; the pool stays usable.
  void grow_to(int workers) {
    for (; workers_ < workers; ++workers_) std::thread([this, id = workers_ + 1] { work(id); }).detach();
  }

  void run(int threads, Index tasks, Team::Call call, void* context) {
    call_ = call, context_ = context, tasks_ = tasks, threads_ = threads;
    next_.store(0, std::memory_order_relaxed);
    epoch_.fetch_add(1);  // odd: open
    epoch_.notify_all();
    take_tasks(0);
    epoch_.fetch_add(1);  // even: closed; a worker that has not begun stays out
    auto none_inside = [this] { return inside_.load() == 0; };
    while (!spin_until(none_inside)) std::this_thread::yield();
  }

 private:
  void take_tasks(int worker) {
    for (Index i; (i = next_.fetch_add(1, std::memory_order_relaxed)) < tasks_;) call_(context_, i, worker);
  }

  // The caller closes the job and then looks who is inside; a worker steps inside and then looks whether the job is
  // still open. Both in one total order, so one of them sees the other.
  void work(int id) {
    std::uint32_t seen = 0;
    for (;;) {
      auto changed = [&] { return epoch_.load() != seen; };
      if (!spin_until(changed)) epoch_.wait(seen);
      seen = epoch_.load();
      if (seen % 2 == 0) continue;
      inside_.fetch_add(1);
      if (epoch_.load() == seen && id < threads_) take_tasks(id);
      inside_.fetch_sub(1);
    }
  }

  std::mutex owner_;
  int workers_ = 0;
  Team::Call call_ = nullptr;
  void* context_ = nullptr;
  Index tasks_ = 0;
  int threads_ = 0;
  alignas(64) std::atomic<std::uint32_t> epoch_{0};
  alignas(64) std::atomic<Index> next_{0};
  alignas(64) std::atomic<int> inside_{0};
};

namespace {

std::mutex process_lock;
ThreadPool* pool = nullptr;  // never destroyed: its threads live as long as the process

#if defined(__linux__)
// A child has none of its parent's threads, and maybe a lock that nobody in it will release: it starts a new pool.
void before_fork() { process_lock.lock(); }
void after_fork_in_parent() { process_lock.unlock(); }
void after_fork_in_child() {
  pool = nullptr;
  process_lock.unlock();
}
const int registered = pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
#endif

// The cgroup's CPU quota in cores, or 0 where there is none. Versions 2 and 1 of the control files.
double cgroup_quota() {
  std::string quota;
  double period = 0;
  if (std::ifstream file("/sys/fs/cgroup/cpu.max"); file >> quota >> period)
    return quota == "max" || period <= 0 ? 0 : std::stod(quota) / period;
  std::ifstream quota_file("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"), period_file("/sys/fs/cgroup/cpu/cpu.cfs_period_us");
  double microseconds = 0;
  if (quota_file >> microseconds && period_file >> period && microseconds > 0 && period > 0)
    return microseconds / period;
  return 0;
}

}  // namespace

ThreadPool& ThreadPool::instance() {
  std::lock_guard guard(process_lock);
  if (!pool) pool = new ThreadPool;
  return *pool;
}

std::mutex& process_mutex() { return process_lock; }

int available_cores() {
  int cores = static_cast<int>(std::thread::hardware_concurrency());
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) cores = CPU_COUNT(&set);
#endif
  if (const double quota = cgroup_quota(); quota > 0 && quota < cores) cores = static_cast<int>(quota + 0.999);
  return cores < 1 ? 1 : cores;
}

Team::Team(int threads) : threads_(threads) {
  if (threads == 1) return;
  pool_ = &ThreadPool::instance();
  lock_ = std::unique_lock(pool_->owner());
  pool_->grow_to(threads - 1);
}

void Team::run_shared(Index tasks, Call call, void* context) { pool_->run(threads_, tasks, call, context); }

}  // namespace distilfast
