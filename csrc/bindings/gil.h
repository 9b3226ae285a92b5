// The GIL, released and taken again, and Python's signals during a forward.
//
// When the interpreter exits, Python before 3.14 ends a daemon thread that asks for the GIL by pthread_exit, which
// unwinds the thread's stack as an exception does: out of the noexcept destructor of pybind11's gil_scoped_release,
// where it aborts the process, and through destructors of Python objects, which need the GIL. As in Python 3.14, such a
// thread instead stops where it is until the process has ended.
#pragma once

#include <pybind11/pybind11.h>

#include <chrono>
#include <thread>

namespace distilfast {

namespace py = pybind11;

inline bool is_exiting() {
#if PY_VERSION_HEX >= 0x030D0000
  return Py_IsFinalizing() || !Py_IsInitialized();
#else
  return _Py_IsFinalizing() || !Py_IsInitialized();
#endif
}

[[noreturn]] inline void stop_here() {
  for (;;) std::this_thread::sleep_for(std::chrono::hours(1));
}

class ReleasedGil {
 public:
  ReleasedGil() : thread_(PyEval_SaveThread()) {}
  ~ReleasedGil() { take(); }
  ReleasedGil(const ReleasedGil&) = delete;
  ReleasedGil& operator=(const ReleasedGil&) = delete;

 private:
  friend class TakenGil;

  // Not by PyGILState_Ensure, which makes a new state for a thread whose own one the exit has deleted.
  void take() const noexcept {
    if (is_exiting()) stop_here();
    try {
      PyEval_RestoreThread(thread_);
    } catch (...) {  // pthread_exit: the exit has begun since; the unwinding ends in this handler
      stop_here();
    }
  }

  PyThreadState* thread_;
};

// For a moment within the life of a ReleasedGil, in the same thread.
class TakenGil {
 public:
  explicit TakenGil(const ReleasedGil& released) { released.take(); }
  ~TakenGil() { PyEval_SaveThread(); }
  TakenGil(const TakenGil&) = delete;
  TakenGil& operator=(const TakenGil&) = delete;
};

// Lets Python's signal handlers run during a long forward, as Ctrl-C needs it. They run in the main thread alone. To
// take the GIL can mean to wait for it, so it is taken every 20 ms and not after each chunk of a small model.
class Interruption {
 public:
  // Has a handler raised an exception? It is then Python's current one.
  bool check(const ReleasedGil& released) {
    if (Clock::now() < next_) return false;
    const TakenGil taken(released);
    if (PyErr_CheckSignals() != 0) return occurred_ = true;
    next_ = is_main_thread() ? Clock::now() + interval : Clock::time_point::max();
    return false;
  }

  // With the GIL, after the forward.
  void raise() const {
    if (occurred_) throw py::error_already_set();
  }

 private:
  using Clock = std::chrono::steady_clock;
  static constexpr std::chrono::milliseconds interval{20};

  static bool is_main_thread() {
    const py::module_ threading = py::module_::import("threading");
    return threading.attr("get_ident")().equal(threading.attr("main_thread")().attr("ident"));
  }

  Clock::time_point next_ = Clock::now() + interval;
  bool occurred_ = false;
};

}  // namespace distilfast
