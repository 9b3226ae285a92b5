// A CUDA device on the host, for tests: one fiber for each thread, and every access checked.
//
// Blocks run one after the other, those of a cluster together, or all together where a launch is cooperative. A thread
// runs until it reaches a barrier or a collective of its warp and continues when all of them have arrived. Reported,
// as an Error that names the kernel's block and thread:
//   * an access outside every allocation and outside the block's shared memory, or misaligned;
//   * a read of memory that was never written, or of an asynchronous copy that was not waited for;
//   * two accesses to the same place, one of them a write, by threads that no barrier orders;
//   * a write to another block of the cluster that may not have begun or may have ended;
//   * a matrix load whose rows lie in the same banks;
//   * a warp's collective that not all lanes reach at the same place, and any other deadlock;
//   * memory of another device;
//   * an access that depends on a launch which may still be running (programmatic dependent launch).
//
// Memory is tracked in cells of two bytes, the smallest element of any kernel. A cell remembers its last writer and its
// last reader, or that several read it; a race with an earlier reader of another barrier interval can be missed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <source_location>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "accesses.h"
#include "fiber.h"

namespace cuda_host {

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Index3 {
  unsigned x, y, z;
};

// Who accessed a cell, and in which era: the interval between two barriers of its warp.
struct Stamp {
  std::int32_t thread;
  std::uint32_t era;

  bool operator==(const Stamp&) const = default;
};
constexpr std::int32_t nobody = -1, host = -2, several = -3, in_flight = -4;

struct Cell {
  Stamp writer{nobody, 0}, reader{nobody, 0};
};
constexpr std::size_t cell_bytes = 2;

constexpr int on_host = -1;  // as the device of memory

// A range of memory that kernels may access.
struct Region {
  std::string name;
  char* begin;
  std::size_t bytes;
  std::vector<Cell> cells;
  int device = 0;  // or on_host: pinned memory

  Region(std::string name, char* begin, std::size_t bytes, Stamp writer = {nobody, 0});
  bool holds(const void* at, std::size_t count) const;
};

// An asynchronous copy to shared memory that is in flight.
struct Copy {
  char* to;
  const char* from;
  int bytes;
};

struct Block;

// A lane that has arrived at a collective, with its operands.
struct Arrival {
  const char* operation;
  std::source_location where;
  void* operands;
};

struct Warp {
  int lanes = 0, arrived = 0, first = 0;  // first: the lane that arrived first at the collective
  Arrival arrivals[32];
  std::uint32_t era = 0;
  int cluster_arrivals = 0, cluster_waits = 0;
  bool waits_for_cluster = false;
};

struct Thread {
  Fiber fiber;
  Index3 index{};
  int number = 0, lane = 0;  // number: in the grid
  Block* block = nullptr;
  Warp* warp = nullptr;
  bool ready = false, done = false;
  bool has_waited = false;  // for the launch's predecessors, or there are none
  const char* waits_for = nullptr;
  std::vector<Copy> open_copies;
  std::deque<std::vector<Copy>> copies;
  std::vector<Access> accesses;  // since the last barrier of its warp, while they are counted
};

// The unit of shared memory, aligned as on a real device.
struct alignas(128) Line {
  char bytes[128];
};

struct Block {
  int number = 0;  // in the grid
  Index3 index{};
  std::vector<std::unique_ptr<Thread>> threads;
  std::vector<Warp> warps;
  std::vector<Line> memory;
  std::unique_ptr<Region> shared;
  int arrived = 0, ended = 0;  // threads
  int ready = 0, done = 0;     // threads: that can run, and that need not any more
  int last_remote_write = -1;  // most cluster barriers at which another block had arrived when it wrote to `shared`
};

// The eras of one launch.
struct Eras {
  std::uint32_t begin = 0, end = 0;

  bool hold(std::uint32_t era) const { return era >= begin && era < end; }
};

struct Launch {
  std::string kernel;
  Index3 grid, size;
  std::size_t shared_bytes;
  bool cooperative;
  unsigned cluster = 1;  // blocks, consecutive along x
  int device = 0;
  std::vector<Eras> unfinished{};  // launches that may still be running: see wait_for_predecessor
};

// What a launch leaves to those that may begin before it has ended.
struct Ran {
  Eras eras;
  bool released_early;  // a thread let them begin before it had waited for its own predecessors
};

class Device {
 public:
  static constexpr std::size_t memory_bytes = std::size_t{1} << 30;

  // Runs a kernel to its end; throws its first error.
  Ran run(const Launch& launch, const std::function<void()>& kernel);

  void* allocate(std::size_t bytes, int device);  // null: there is no room
  void* allocate_on_host(std::size_t bytes);      // pinned and mapped
  bool free(void* memory);                        // false: it is not an allocation's begin
  std::size_t used_bytes(int device);
  std::size_t allocations();                 // on all devices
  std::optional<int> owner(const void* at);  // the device whose memory it is
  // The host reads or writes device memory.
  void host_access(const void* at, std::size_t bytes, bool writes);

  // ---- called on a thread
  Thread& thread() { return *current_; }
  const Launch& launch() const { return *launch_; }
  void access(const void* at, std::size_t bytes, bool writes);
  // Of the kernel itself, at this place of its source.
  void access(const void* at, std::size_t bytes, bool writes, const std::source_location& where);
  // All lanes of the warp arrive; the last one computes for all of them from their operands, in the order of the lanes.
  void collective(const char* operation, const std::source_location& where, void* operands,
                  const std::function<void(void* const (&)[32])>& compute);
  void sync_warp(const std::source_location& where);
  void sync_threads();
  void sync_grid();
  int cluster_rank() const;
  void arrive_cluster(const std::source_location& where);
  void wait_cluster(const std::source_location& where);
  // Where a write to `at` in the shared memory of another block of the cluster goes.
  void* write_to_block(int rank, void* at, std::size_t bytes);
  void issue_copy(void* to, const void* from, int bytes, const std::source_location& where);
  void commit_copies();
  void wait_copies(std::size_t pending);
  void wait_for_predecessor();
  void release_dependents();
  [[noreturn]] void fail(const std::string& what);

  std::mutex mutex;  // one kernel at a time
  AccessCounter counter;

 private:
  // An interval between barriers: of the grid, the block and the warp, whose numbers these are, with how often the warp
  // had arrived at a cluster barrier and waited for one.
  struct Era {
    std::uint32_t grid, interval, step;
    std::int32_t block, warp;
    int cluster_arrivals, cluster_waits;
  };

  Region* find(const void* at, std::size_t bytes);
  void check_order(const Region& region, const Stamp& other, const char* what, const void* at);
  bool unordered(const Stamp& other) const;
  void touch(Region& region, const void* at, std::size_t bytes, bool writes);
  void touch_cells(Region& region, const void* at, std::size_t bytes, bool writes);
  void note_access(const void* at, std::size_t bytes, bool writes, const std::source_location& where);
  void count_accesses(Block& block, std::size_t warp);
  void count_accesses(Block& block);
  void new_era(Block& block, Warp& warp, std::uint32_t grid, std::uint32_t interval, std::uint32_t step);
  void pass_cluster_barrier();
  void leave(Block& block);
  const Era& era(std::uint32_t number) const { return eras_[number - first_era_]; }
  void prepare(Block& block, int number, const std::function<void()>& kernel);
  void run_blocks(std::size_t count);
  void wait(const char* what);
  static void wake(Thread& thread);
  void land(const Copy& copy);
  std::string deadlock(std::size_t count) const;
  std::string name(const Thread& thread) const;

  void* add_region(std::size_t bytes, int device, const std::string& name, Stamp writer);
  bool is_unfinished(const Stamp& stamp) const;
  static void pass_on_wait(Block& block);

  std::map<int, std::size_t> used_bytes_;  // by device
  std::map<const char*, std::unique_ptr<Region>> regions_;
  Region* last_ = nullptr;
  std::vector<std::unique_ptr<Block>> blocks_;  // kept, for their fibers' stacks
  std::span<std::unique_ptr<Block>> running_;   // those that run together
  const Launch* launch_ = nullptr;
  Thread* current_ = nullptr;
  std::string error_;
  std::vector<Era> eras_;  // of this launch; the first is era first_era_
  std::uint32_t first_era_ = 1, clock_ = 0;
  int grid_arrived_ = 0;
  bool any_waited_ = false, released_early_ = false;
  // Of the cluster that runs: warps that have arrived at its barrier, and barriers at which all of them have.
  int cluster_arrived_ = 0, cluster_barriers_ = 0;
};

Device& device();

}  // namespace cuda_host
