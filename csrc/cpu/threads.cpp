#include "cpu/threads.h"

#include <atomic>
#include <chrono>
#include <thread>

#if defined(__linux__)
#include <pthread.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>
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

#if defined(__linux__)
// What sched_setattr(2) takes; glibc has no wrapper for it before 2.41.
struct SchedulingAttributes {
  std::uint32_t size, policy;
  std::uint64_t flags;
  std::int32_t nice;
  std::uint32_t priority;
  std::uint64_t runtime, deadline, period;  // ns
};
#endif

// The shortest time slice that Linux grants (since 6.12; before, this changes nothing). A thread has no more of a core
// by it, but has it sooner: beside a process that never rests, a worker that has lost its core in the middle of a task,
// while the caller waits for it, is back before the other's slice of some milliseconds is over. A policy other than the
// usual one is somebody's decision and is left alone; where this is forbidden, the slice stays as it was.
void ask_for_short_slices() {
#if defined(__linux__)
  SchedulingAttributes attributes{};
  if (syscall(SYS_sched_getattr, 0, &attributes, sizeof attributes, 0) != 0 || attributes.policy != SCHED_OTHER) return;
  attributes.runtime = 100'000;
  syscall(SYS_sched_setattr, 0, &attributes, 0);
#endif
}

// So long a job may go on while others wait; it ends with a task, which may itself take longer. Most stages of a short
// request are shorter, and waking the next one costs a tenth of it.
constexpr std::chrono::microseconds turn_time{200};

// Turns in the order of arrival. Who waits parks at once: the threads of the one whose turn it is want the cores.
class Turns {
 public:
  void take() {
    const std::uint32_t ticket = tickets_.fetch_add(1);
    std::atomic<std::uint32_t>& turn = turn_of(ticket);
    for (std::uint32_t seen; (seen = turn.load()) != ticket;) turn.wait(seen);
    current_ = ticket;
  }
  void end() {
    const std::uint32_t next = current_ + 1;
    turn_of(next).store(next);
    turn_of(next).notify_all();
  }
  // While it is somebody's turn: does another wait for it?
  bool awaited() const { return tickets_.load(std::memory_order_relaxed) != current_ + 1; }

 private:
  struct alignas(64) Place {
    std::atomic<std::uint32_t> turn{0};
  };
  // Places to wait at, so that an end wakes the next one and not all; a power of two, for tickets to wrap around.
  static constexpr std::uint32_t places = 32;

  std::atomic<std::uint32_t>& turn_of(std::uint32_t ticket) { return places_[ticket % places].turn; }

  alignas(64) std::atomic<std::uint32_t> tickets_{0};
  std::uint32_t current_ = 0;  // written by the one whose turn it is
  Place places_[places];
};

class Turn {
 public:
  explicit Turn(Turns& turns) : turns_(turns) { turns.take(); }
  ~Turn() { turns_.end(); }
  Turn(const Turn&) = delete;
  Turn& operator=(const Turn&) = delete;

 private:
  Turns& turns_;
};

}  // namespace

class ThreadPool {
 public:
  static ThreadPool& instance();

  // Throws std::system_error where no thread can be had; the pool stays usable.
  void grow_to(int workers) {
    if (workers_.load() >= workers) return;
    const Turn turn(turns_);
    for (; workers_ < workers; ++workers_) std::thread([this, id = workers_ + 1] { work(id); }).detach();
  }

  void run(int threads, Index tasks, Team::Call call, void* context) {
    for (Index first = 0; first < tasks;) {
      const Turn turn(turns_);
      first = run_from(first, threads, tasks, call, context);
    }
  }

 private:
  using Clock = std::chrono::steady_clock;

  // Tasks from `first` on until there are no more, or the turn is over and others wait; returns the first that is left.
  Index run_from(Index first, int threads, Index tasks, Team::Call call, void* context) {
    call_ = call, context_ = context, tasks_ = tasks, threads_ = threads;
    turn_end_ = Clock::now() + turn_time;
    next_.store(first, std::memory_order_relaxed);
    epoch_.fetch_add(1);  // odd: open
    epoch_.notify_all();
    take_tasks(0);
    epoch_.fetch_add(1);  // even: closed; a worker that has not begun stays out
    auto none_inside = [this] { return inside_.load() == 0; };
    while (!spin_until(none_inside)) std::this_thread::yield();
    return next_.load(std::memory_order_relaxed);
  }

  void take_tasks(int worker) {
    for (Index i; (i = next_.fetch_add(1, std::memory_order_relaxed)) < tasks_;) {
      call_(context_, i, worker);
      // Only where tasks are left: the line that says who waits is another core's, and a job's end would wait for it.
      if (next_.load(std::memory_order_relaxed) < tasks_ && turns_.awaited() && Clock::now() > turn_end_) return;
    }
  }

  // The caller closes the job and then looks who is inside; a worker steps inside and then looks whether the job is
  // still open. Both in one total order, so one of them sees the other.
  void work(int id) {
    ask_for_short_slices();
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

  Turns turns_;
  std::atomic<int> workers_{0};
  Team::Call call_ = nullptr;
  void* context_ = nullptr;
  Index tasks_ = 0;
  int threads_ = 0;
  Clock::time_point turn_end_;
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

}  // namespace

ThreadPool& ThreadPool::instance() {
  std::lock_guard guard(process_lock);
  if (!pool) pool = new ThreadPool;
  return *pool;
}

std::mutex& process_mutex() { return process_lock; }

Team::Team(int threads) : threads_(threads) {
  if (threads == 1) return;
  pool_ = &ThreadPool::instance();
  pool_->grow_to(threads - 1);
}

void Team::run_shared(Index tasks, Call call, void* context) { pool_->run(threads_, tasks, call, context); }

}  // namespace distilfast
