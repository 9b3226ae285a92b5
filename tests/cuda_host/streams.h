// What has been enqueued on streams and has not run yet.
//
// Nothing runs before something waits for it, as late as a real device may run it. Then items run one at a time, in an
// order that only streams and events restrict and that a seed chooses: a missing wait, a missing event, or host memory
// that is reused while a copy still has to read it give wrong results for some seed.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <random>
#include <vector>

#include "simulator.h"

namespace cuda_host {

struct Stream;

// Reached when the first `number` items of the stream have run.
struct Point {
  std::shared_ptr<Stream> stream;
  std::uint64_t number = 0;

  bool is_reached() const;
};

struct Item {
  std::function<void()> run;  // may be empty
  std::vector<Point> after{};
};

// A kernel that has been enqueued, for those that may begin before it has ended.
struct KernelRun {
  Ran ran{};
  std::vector<Eras> unfinished{};  // launches that might still have been running when it began
};

enum class Capture { none, active, invalidated };

struct Stream {
  int device;
  bool is_blocking;  // waits for the legacy default stream, and the reverse
  Capture capture = Capture::none;
  std::deque<Item> items{};
  std::uint64_t reached = 0;                 // items that have run
  std::shared_ptr<KernelRun> last_kernel{};  // the last item, where it is a kernel

  std::uint64_t enqueued() const { return reached + items.size(); }
};

class Streams {
 public:
  std::shared_ptr<Stream> create(int device, bool is_blocking);
  void seed(unsigned number);

  void enqueue(const std::shared_ptr<Stream>& stream, Item item);
  static Point end_of(const std::shared_ptr<Stream>& stream) { return {stream, stream->enqueued()}; }
  // Runs what it takes, and perhaps more. Throws the first error of an item; what was enqueued anywhere is then lost.
  void wait(const Point& goal);
  void wait_for_device(int device);
  void run_one();  // or none, where nothing is enqueued
  // A number below `count`, of the same sequence.
  std::size_t choose(std::size_t count) { return random_() % count; }

  const std::vector<std::shared_ptr<Stream>>& all() const { return streams_; }

 private:
  // Which streams run besides those that must: none, those before, or any.
  enum class Order { only_needed, others_first, any };

  std::vector<Stream*> runnable() const;
  Stream* needed_for(const Point& goal) const;
  void step(Stream& stream);
  void forget_everything();
  void remove_destroyed();

  std::vector<std::shared_ptr<Stream>> streams_;
  std::minstd_rand random_;
};

}  // namespace cuda_host
