// One pool of threads for the whole process, lent to one job at a time.
//
// Several engines and callers therefore never run more threads than the largest of them asked for. Callers are served
// in the order of arrival. Who has the pool keeps it from job to job for a time slice: waking the next caller for each
// job would cost more than most jobs take. After it a caller that keeps others waiting is interrupted between two tasks
// and queues again, so that a short request beside a long one waits for some of its jobs and not for all of them. An
// urgent caller does not wait for others at all, but for the tasks that they have begun.
//
// A job is a number of independent tasks, of which each thread has a share: consecutive ones, so that rows stay in the
// caches of one core from job to job. Who has none left takes those of another's share. A late worker, which was parked
// or has lost its core, therefore costs nothing, and nobody waits for a worker that has not begun. Workers
// spin briefly between jobs and then park: a barrier that only spins costs a scheduler tick each time as soon as
// another process needs the core.
#pragma once

#include <mutex>

#include "cpu/kernels.h"

namespace distilfast {

class ThreadPool;

// For short critical sections; never held across a fork.
std::mutex& process_mutex();

// As long as one exists, its thread is urgent: other threads' jobs end after their current tasks, and wait until no
// thread is urgent. Among themselves urgent threads are served in the order of arrival.
class Urgent {
 public:
  Urgent();
  ~Urgent();
  Urgent(const Urgent&) = delete;
  Urgent& operator=(const Urgent&) = delete;
};

// `threads` threads, of which the caller's own is one and the others are the pool's; one thread alone needs no pool.
// For the jobs of one call, on the thread that made it: it may keep the pool from its first run to its end.
class Team {
 public:
  explicit Team(int threads);
  ~Team();
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  int threads() const { return threads_; }

  // Calls task(index, worker) for each index below `tasks`, worker < threads(); returns when all have ended. No two
  // tasks of a worker run at once.
  template <class Task>
  void run(Index tasks, Task&& task) {
    if (threads_ == 1 || tasks <= 1) {
      for (Index i = 0; i < tasks; ++i) task(i, 0);
      return;
    }
    auto call = [](void* context, Index index, int worker) { (*static_cast<Task*>(context))(index, worker); };
    run_shared(tasks, call, &task);
  }

 private:
  using Call = void (*)(void* context, Index index, int worker);
  void run_shared(Index tasks, Call call, void* context);

  int threads_;
  ThreadPool* pool_ = nullptr;
  friend class ThreadPool;
};

}  // namespace distilfast
