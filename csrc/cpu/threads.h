// One pool of threads for the whole process, lent to one job at a time.
//
// Several engines and callers therefore never run more threads than the largest of them asked for. Who comes first is
// served first, and a job that keeps others waiting is interrupted between two tasks and comes in line again: a short
// request beside a long one waits for a part of its jobs and not for all of them. A job is a number of independent
// tasks taken one by one, so a worker that is late, because it was parked or another process has its core, costs
// nothing: the others take its tasks, and nobody waits for a worker that has not begun. Workers spin briefly between
// jobs and then park: a barrier that only spins costs a scheduler tick each time as soon as another process wants the
// core.
#pragma once

#include <mutex>

#include "cpu/kernels.h"

namespace distilfast {

class ThreadPool;

// Guards short critical sections and is never held across a fork.
std::mutex& process_mutex();

// So many threads of the pool, the caller's own among them; with one thread there is no need of the pool. What a task
// leaves behind for a worker's later tasks is safe between runs, but another caller's jobs may come in between.
class Team {
 public:
  explicit Team(int threads);

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
