#include "cpu/threads.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <mutex>
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

// Long enough to bridge the gap between two jobs of a forward or two forwards in a row, short enough not to keep an
// idle machine busy.
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

// Requests the shortest time slice that Linux grants (since 6.12; before, this changes nothing). A thread gets no
// larger share of a core by it, but gets it sooner: beside a process that never sleeps, a worker that was preempted in
// the middle of a task, while the caller waits for it, runs again before the other's slice of some milliseconds ends. A
// policy other than the default is somebody's choice and is not changed; where this is forbidden, the slice stays.
void ask_for_short_slices() {
#if defined(__linux__)
  SchedulingAttributes attributes{};
  if (syscall(SYS_sched_getattr, 0, &attributes, sizeof attributes, 0) != 0 || attributes.policy != SCHED_OTHER) return;
  attributes.runtime = 100'000;
  syscall(SYS_sched_setattr, 0, &attributes, 0);
#endif
}

// How long a caller keeps the pool while others wait; it then leaves after the current task, which can itself take
// longer. Waking the next caller costs a tenth of this, and many times this where another process has the cores.
constexpr std::chrono::microseconds time_slice{200};

// A fair lock: callers get it in the order of arrival. A waiting caller parks at once, since the holder's threads need
// the cores.
class TicketLock {
 public:
  void lock() {
    const std::uint32_t ticket = next_ticket_.fetch_add(1);
    std::atomic<std::uint32_t>& serving = serving_at(ticket);
    for (std::uint32_t seen; (seen = serving.load()) != ticket;) serving.wait(seen);
    current_ = ticket;
  }
  void unlock() {
    const std::uint32_t next = current_ + 1;
    serving_at(next).store(next);
    serving_at(next).notify_all();
  }
  // While it is held: does another caller wait for it?
  bool contended() const { return next_ticket_.load(std::memory_order_relaxed) != current_ + 1; }

 private:
  struct alignas(64) Line {
    std::atomic<std::uint32_t> serving{0};
  };
  // Callers wait at different addresses, so that an unlock wakes the next one and not all; a power of two, so that
  // tickets can wrap around.
  static constexpr std::uint32_t lines = 32;

  std::atomic<std::uint32_t>& serving_at(std::uint32_t ticket) { return lines_[ticket % lines].serving; }

  alignas(64) std::atomic<std::uint32_t> next_ticket_{0};
  std::uint32_t current_ = 0;  // written by the holder
  Line lines_[lines];
};

// How many Urgent objects this thread has.
thread_local int urgent_here = 0;

// The team for which this thread has the pool.
thread_local const Team* holder_here = nullptr;

}  // namespace

class ThreadPool {
 public:
  static ThreadPool& instance();

  // Throws std::system_error where no thread can be had; the pool stays usable.
  void grow_to(int workers) {
    if (workers_.load() >= workers) return;
    const std::lock_guard guard(growing_);
    for (; workers_ < workers; ++workers_) std::thread([this, id = workers_ + 1] { work(id); }).detach();
  }

  void run(const Team& team, Index tasks, Team::Call call, void* context) {
    Remaining left{std::min(team.threads_, max_shares), {}};
    for (int i = 0; i < left.count; ++i) left.shares[i] = {tasks * i / left.count, tasks * (i + 1) / left.count};
    while (left.any()) {
      if (!holder_here) take(team);
      // One may have become urgent while this thread stood in the queue, or since its last job.
      if (!must_wait()) run_remaining(left, team.threads_, call, context);
      if (must_wait() || (lock_.contended() && Clock::now() > slice_end_)) leave();
    }
  }

  // At the end of a team.
  void leave(const Team& team) {
    if (holder_here == &team) leave();
  }

  void begin_urgent() { urgent_.fetch_add(1); }
  void end_urgent() {
    if (urgent_.fetch_sub(1) == 1) urgent_.notify_all();
  }

 private:
  using Clock = std::chrono::steady_clock;

  static constexpr int max_shares = 64;  // threads past these have no share of their own and steal only

  // The tasks of a job that have not run: a range for each share.
  struct Remaining {
    int count;
    Range shares[max_shares];

    bool any() const {
      return std::any_of(shares, shares + count, [](const Range& share) { return share.begin < share.end; });
    }
  };

  // The range of tasks that one thread takes first; on a cache line of its own, which others touch when they steal.
  struct alignas(64) Share {
    std::atomic<Index> next{0};
    Index end = 0;
  };

  // Whether this thread's jobs have to wait for those of urgent threads.
  bool must_wait() const { return urgent_here == 0 && urgent_.load(std::memory_order_relaxed) > 0; }

  void wait_for_urgent_threads() const {
    if (urgent_here > 0) return;
    for (int others; (others = urgent_.load()) > 0;) urgent_.wait(others);
  }

  void take(const Team& team) {
    wait_for_urgent_threads();
    lock_.lock();
    holder_here = &team;
    slice_end_ = Clock::now() + time_slice;
  }

  void leave() {
    holder_here = nullptr;
    lock_.unlock();
  }

  // Runs tasks until none is left, until the time slice ends while another caller waits, or until one is urgent.
  void run_remaining(Remaining& left, int threads, Team::Call call, void* context) {
    call_ = call, context_ = context, threads_ = threads, num_shares_ = left.count, is_urgent_ = urgent_here > 0;
    for (int i = 0; i < left.count; ++i) {
      shares_[i].end = left.shares[i].end;
      shares_[i].next.store(left.shares[i].begin, std::memory_order_relaxed);
    }
    epoch_.fetch_add(1);  // odd: open
    epoch_.notify_all();
    take_tasks(0);
    epoch_.fetch_add(1);  // even: closed; a worker that has not entered stays out
    auto none_inside = [this] { return inside_.load() == 0; };
    while (!spin_until(none_inside)) std::this_thread::yield();
    for (int i = 0; i < left.count; ++i)
      left.shares[i].begin = std::min(shares_[i].next.load(std::memory_order_relaxed), shares_[i].end);
  }

  // Its own share first, then what is left of the others'.
  void take_tasks(int worker) {
    for (int i = 0; i < num_shares_; ++i) {
      Share& share = shares_[(worker + i) % num_shares_];
      while (share.next.load(std::memory_order_relaxed) < share.end) {
        const Index task = share.next.fetch_add(1, std::memory_order_relaxed);
        if (task >= share.end) break;
        call_(context_, task, worker);
        if (!is_urgent_ && urgent_.load(std::memory_order_relaxed) > 0) return;
        // Only while tasks are left: contended() reads a cache line that other cores write, which would delay a job's
        // end.
        if (share.next.load(std::memory_order_relaxed) < share.end && lock_.contended() && Clock::now() > slice_end_)
          return;
      }
    }
  }

  // The caller closes the job and then reads how many workers are inside; a worker enters and then reads whether the
  // job is still open. Both are sequentially consistent, so one of them sees the other.
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

  TicketLock lock_;
  std::mutex growing_;
  std::atomic<int> workers_{0};
  Team::Call call_ = nullptr;
  void* context_ = nullptr;
  int threads_ = 0, num_shares_ = 0;
  bool is_urgent_ = false;
  Clock::time_point slice_end_;
  alignas(64) std::atomic<std::uint32_t> epoch_{0};
  Share shares_[max_shares];
  alignas(64) std::atomic<int> inside_{0};
  alignas(64) std::atomic<int> urgent_{0};  // Urgent objects of all threads
};

namespace {

std::mutex process_lock;
ThreadPool* pool = nullptr;  // never destroyed: its threads live as long as the process

#if defined(__linux__)
// A child has none of its parent's threads, and may inherit a lock that no thread of it holds: it starts a new pool.
void before_fork() { process_lock.lock(); }
void after_fork_in_parent() { process_lock.unlock(); }
void after_fork_in_child() {
  pool = nullptr;
  urgent_here = 0;
  holder_here = nullptr;
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

Team::~Team() {
  if (pool_) pool_->leave(*this);
}

Urgent::Urgent() {
  ThreadPool::instance().begin_urgent();
  ++urgent_here;
}

Urgent::~Urgent() {
  if (urgent_here == 0) return;  // made before a fork, of another pool
  --urgent_here;
  ThreadPool::instance().end_urgent();
}

void Team::run_shared(Index tasks, Call call, void* context) { pool_->run(*this, tasks, call, context); }

}  // namespace distilfast
