#include "simulator.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <utility>

namespace cuda_host {

namespace {

constexpr std::size_t alignment = 256;  // of an allocation

std::string text(const Index3& at) {
  return "(" + std::to_string(at.x) + ", " + std::to_string(at.y) + ", " + std::to_string(at.z) + ")";
}

std::string place(const Region& region, const void* at) {
  return region.name + " at byte " + std::to_string(static_cast<const char*>(at) - region.begin);
}

std::string line(const std::source_location& where) {
  const std::string file = where.file_name();
  return file.substr(file.rfind('/') + 1) + ":" + std::to_string(where.line());
}

}  // namespace

Region::Region(std::string name, char* begin, std::size_t bytes, Stamp writer)
    : name(std::move(name)),
      begin(begin),
      bytes(bytes),
      cells((bytes + cell_bytes - 1) / cell_bytes, Cell{writer, {nobody, 0}}) {}

bool Region::holds(const void* at, std::size_t count) const {
  const char* from = static_cast<const char*>(at);
  return from >= begin && from + count <= begin + bytes;
}

Device& device() {
  static Device the_device;
  return the_device;
}

// ---- memory

void* Device::add_region(std::size_t bytes, int device, const std::string& name, Stamp writer) {
  const std::size_t whole = std::max(alignment, (bytes + alignment - 1) / alignment * alignment);
  char* memory = static_cast<char*>(std::aligned_alloc(alignment, whole));
  if (!memory) throw std::bad_alloc();
  std::memset(memory, 0xff, whole);  // NaN in every floating-point type
  auto region = std::make_unique<Region>(name + " of " + std::to_string(bytes) + " bytes", memory, bytes, writer);
  region->device = device;
  used_bytes_[device] += bytes;
  regions_[memory] = std::move(region);
  return memory;
}

void* Device::allocate(std::size_t bytes, int device) {
  const std::lock_guard guard(mutex);
  if (bytes > memory_bytes - used_bytes_[device]) return nullptr;
  return add_region(bytes, device, "an allocation", {nobody, 0});
}

void* Device::allocate_on_host(std::size_t bytes) {
  const std::lock_guard guard(mutex);
  return add_region(bytes, on_host, "pinned memory", {host, 0});
}

bool Device::free(void* memory) {
  const std::lock_guard guard(mutex);
  last_ = nullptr;
  const auto region = regions_.find(static_cast<char*>(memory));
  if (region == regions_.end()) return false;
  used_bytes_[region->second->device] -= region->second->bytes;
  std::memset(memory, 0xff, region->second->bytes);
  regions_.erase(region);
  std::free(memory);
  return true;
}

std::size_t Device::used_bytes(int device) {
  const std::lock_guard guard(mutex);
  return used_bytes_[device];
}

std::size_t Device::allocations() {
  const std::lock_guard guard(mutex);
  return static_cast<std::size_t>(std::count_if(regions_.begin(), regions_.end(),
                                                [](const auto& region) { return region.second->device != on_host; }));
}

std::optional<int> Device::owner(const void* at) {
  const std::lock_guard guard(mutex);
  const Region* region = find(at, 1);
  return region && region->device != on_host ? std::optional(region->device) : std::nullopt;
}

Region* Device::find(const void* at, std::size_t bytes) {
  if (current_ && current_->block->shared->holds(at, bytes)) return current_->block->shared.get();
  if (last_ && last_->holds(at, bytes)) return last_;
  auto above = regions_.upper_bound(static_cast<const char*>(at));
  if (above == regions_.begin()) return nullptr;
  Region* region = std::prev(above)->second.get();
  if (!region->holds(at, bytes)) return nullptr;
  if (current_ && region->device != on_host && region->device != launch_->device)
    fail("accesses memory of device " + std::to_string(region->device));
  return last_ = region;
}

void Device::host_access(const void* at, std::size_t bytes, bool writes) {
  const std::lock_guard guard(mutex);
  Region* region = find(at, bytes);
  if (!region) throw Error("A copy between host and device goes past an allocation.");
  const std::size_t begin = (static_cast<const char*>(at) - region->begin) / cell_bytes;
  for (std::size_t i = begin; i < begin + (bytes + cell_bytes - 1) / cell_bytes; ++i) {
    Cell& cell = region->cells[i];
    if (writes) cell = {{host, 0}, {nobody, 0}};
    if (cell.writer.thread == nobody) throw Error("The host reads unwritten memory: " + region->name + ".");
  }
}

bool Device::unordered(const Stamp& other) const {
  if (other.thread == nobody || other.thread == host || other.thread == current_->number) return false;
  if (other.era < first_era_) return false;  // an earlier launch
  const Era &then = era(other.era), &now = era(current_->warp->era);
  if (then.grid != now.grid) return false;
  const auto cluster = static_cast<std::int32_t>(launch_->cluster);
  if (then.block / cluster == now.block / cluster && now.cluster_waits > then.cluster_arrivals) return false;
  if (then.block != now.block) return true;
  return then.interval == now.interval && (then.warp != now.warp || then.step == now.step);
}

bool Device::is_unfinished(const Stamp& stamp) const {
  return std::any_of(launch_->unfinished.begin(), launch_->unfinished.end(),
                     [&](const Eras& eras) { return eras.hold(stamp.era); });
}

void Device::check_order(const Region& region, const Stamp& other, const char* what, const void* at) {
  if (!current_->has_waited && is_unfinished(other))
    fail(std::string(what) + " " + place(region, at) + " which a kernel before it accesses, without waiting for it");
  if (!unordered(other)) return;
  const std::string who =
      other.thread < 0 ? "several threads" : "thread " + std::to_string(other.thread) + " of the grid";
  fail(std::string(what) + " " + place(region, at) + " which " + who +
       " accesses without a barrier between them (a race)");
}

void Device::access(const void* at, std::size_t bytes, bool writes) {
  Region* region = find(at, bytes);
  if (!region) fail(std::string(writes ? "writes" : "reads") + " outside every allocation and its shared memory");
  touch(*region, at, bytes, writes);
}

void Device::access(const void* at, std::size_t bytes, bool writes, const std::source_location& where) {
  access(at, bytes, writes);
  if (counter.is_on) note_access(at, bytes, writes, where);
}

void Device::note_access(const void* at, std::size_t bytes, bool writes, const std::source_location& where) {
  using Kind = Access::Kind;
  const bool is_shared = current_->block->shared->holds(at, bytes);
  const Kind kind =
      is_shared ? (writes ? Kind::shared_store : Kind::shared_load) : (writes ? Kind::global_store : Kind::global_load);
  current_->accesses.push_back({kind, reinterpret_cast<std::uintptr_t>(at), static_cast<unsigned>(bytes),
                                where.file_name(), where.line(), where.column()});
}

void Device::count_accesses(Block& block, std::size_t warp) {
  std::vector<const std::vector<Access>*> lanes;
  const std::size_t end = std::min(32 * warp + 32, block.threads.size());
  for (std::size_t i = 32 * warp; i < end; ++i) lanes.push_back(&block.threads[i]->accesses);
  counter.count(launch_->kernel, lanes);
  for (std::size_t i = 32 * warp; i < end; ++i) block.threads[i]->accesses.clear();
}

void Device::count_accesses(Block& block) {
  if (!counter.is_on) return;
  for (std::size_t warp = 0; warp < block.warps.size(); ++warp) count_accesses(block, warp);
}

void Device::touch(Region& region, const void* at, std::size_t bytes, bool writes) {
  if (reinterpret_cast<std::uintptr_t>(at) % bytes) fail("makes a misaligned access to " + place(region, at));
  touch_cells(region, at, bytes, writes);
}

void Device::touch_cells(Region& region, const void* at, std::size_t bytes, bool writes) {
  const Stamp now{current_->number, current_->warp->era};
  // Neighbours mostly have the same stamps: what was found for one is kept for the next.
  Stamp last_writer{nobody, 0}, last_reader{nobody, 0};
  bool other_readers = false;
  Cell* cell = region.cells.data() + (static_cast<const char*>(at) - region.begin) / cell_bytes;
  for (const Cell* end = cell + (bytes + cell_bytes - 1) / cell_bytes; cell < end; ++cell) {
    if (cell->writer != last_writer) {
      if (cell->writer.thread == in_flight)
        fail("accesses an asynchronous copy that was not waited for: " + place(region, at));
      check_order(region, cell->writer, writes ? "writes" : "reads", at);
      last_writer = cell->writer;
    }
    if (writes) {
      if (cell->reader != last_reader) check_order(region, cell->reader, "writes", at);
      last_reader = cell->reader;
      *cell = {now, {nobody, 0}};
    } else {
      if (cell->writer.thread == nobody) fail("reads memory that was never written: " + place(region, at));
      if (cell->reader != last_reader) {
        other_readers = cell->reader.thread != now.thread && unordered(cell->reader);
        last_reader = cell->reader;
      }
      cell->reader = {other_readers ? several : now.thread, now.era};
    }
  }
}

// ---- asynchronous copies

void Device::issue_copy(void* to, const void* from, int bytes, const std::source_location& where) {
  if (bytes < 0 || bytes > 16) fail("copies " + std::to_string(bytes) + " bytes where 0 to 16 are allowed");
  if (!current_->block->shared->holds(to, 16)) fail("copies asynchronously to outside its shared memory");
  if (reinterpret_cast<std::uintptr_t>(from) % 16) fail("copies asynchronously from a misaligned address");
  if (bytes > 0) {
    Region* source = find(from, static_cast<std::size_t>(bytes));
    if (!source) fail("copies asynchronously from outside every allocation");
    touch_cells(*source, from, static_cast<std::size_t>(bytes), false);
    if (counter.is_on) note_access(from, static_cast<std::size_t>(bytes), false, where);
  }
  access(to, 16, true, where);
  std::memset(to, 0xff, 16);
  Region& shared = *current_->block->shared;
  const std::size_t begin = (static_cast<char*>(to) - shared.begin) / cell_bytes;
  for (std::size_t i = begin; i < begin + 16 / cell_bytes; ++i) shared.cells[i].writer.thread = in_flight;
  current_->open_copies.push_back({static_cast<char*>(to), static_cast<const char*>(from), bytes});
}

void Device::commit_copies() {
  current_->copies.push_back(std::move(current_->open_copies));
  current_->open_copies.clear();
}

void Device::land(const Copy& copy) {
  Region& shared = *current_->block->shared;
  const std::size_t begin = (copy.to - shared.begin) / cell_bytes;
  for (std::size_t i = begin; i < begin + 16 / cell_bytes; ++i)
    shared.cells[i].writer = {current_->number, current_->warp->era};
  std::memset(copy.to, 0, 16);
  std::memcpy(copy.to, copy.from, static_cast<std::size_t>(copy.bytes));
}

void Device::wait_copies(std::size_t pending) {
  auto& copies = current_->copies;
  for (; copies.size() > pending; copies.pop_front())
    for (const Copy& copy : copies.front()) land(copy);
}

// ---- rendezvous

void Device::wait(const char* what) {
  Thread& self = *current_;
  self.ready = false;
  --self.block->ready;
  self.waits_for = what;
  while (!self.ready) self.fiber.pause();
}

void Device::wake(Thread& thread) {
  if (std::exchange(thread.ready, true)) return;
  ++thread.block->ready;
}

// `step`: between barriers of the warp itself.
void Device::new_era(Block& block, Warp& warp, std::uint32_t grid, std::uint32_t interval, std::uint32_t step) {
  eras_.push_back({grid, interval, step, block.number, static_cast<std::int32_t>(&warp - block.warps.data()),
                   warp.cluster_arrivals, warp.cluster_waits});
  warp.era = first_era_ + static_cast<std::uint32_t>(eras_.size()) - 1;
}

void Device::collective(const char* operation, const std::source_location& where, void* operands,
                        const std::function<void(void* const (&)[32])>& compute) {
  Thread& self = *current_;
  Warp& warp = *self.warp;
  if (warp.arrived == 0) warp.first = self.lane;
  const Arrival& first_arrival = warp.arrivals[warp.first];
  if (warp.arrived > 0 && (first_arrival.where.line() != where.line() ||
                           (first_arrival.operation != operation && std::strcmp(first_arrival.operation, operation))))
    fail(std::string("reaches ") + operation + " at " + line(where) + " while lane " + std::to_string(warp.first) +
         " of its warp waits at " + first_arrival.operation + " at " + line(first_arrival.where) +
         " (a divergent collective)");
  warp.arrivals[self.lane] = {operation, where, operands};
  if (++warp.arrived < 32) return wait(operation);
  void* all[32];
  for (int lane = 0; lane < 32; ++lane) all[lane] = warp.arrivals[lane].operands;
  compute(all);
  warp.arrived = 0;
  const auto number = static_cast<std::size_t>(&warp - self.block->warps.data());
  if (counter.is_on) count_accesses(*self.block, number);
  const std::size_t first = number * 32;
  for (std::size_t i = first; i < first + 32; ++i) wake(*self.block->threads[i]);
}

void Device::sync_warp(const std::source_location& where) {
  Warp& warp = *current_->warp;
  collective("sync_warp", where, nullptr, [&](void* const(&)[32]) {
    const Era now = era(warp.era);
    new_era(*current_->block, warp, now.grid, now.interval, ++clock_);
  });
}

// A barrier orders what one thread has waited for before all that come after.
void Device::pass_on_wait(Block& block) {
  const auto has_waited = [](const auto& thread) { return thread->has_waited; };
  if (!std::any_of(block.threads.begin(), block.threads.end(), has_waited)) return;
  for (auto& thread : block.threads) thread->has_waited = true;
}

void Device::sync_threads() {
  Block& block = *current_->block;
  if (++block.arrived < static_cast<int>(block.threads.size())) return wait("sync_threads");
  block.arrived = 0;
  count_accesses(block);
  if (!launch_->unfinished.empty()) pass_on_wait(block);
  const std::uint32_t interval = ++clock_, grid = era(current_->warp->era).grid;
  for (Warp& warp : block.warps) new_era(block, warp, grid, interval, interval);
  for (auto& thread : block.threads) wake(*thread);
}

void Device::sync_grid() {
  if (!launch_->cooperative) fail("waits for the grid in a launch that is not cooperative");
  if (++grid_arrived_ < static_cast<int>(running_.size() * running_[0]->threads.size())) return wait("sync_grid");
  grid_arrived_ = 0;
  const std::uint32_t grid = ++clock_;
  for (auto& block : running_) {
    count_accesses(*block);
    if (!launch_->unfinished.empty()) pass_on_wait(*block);
    const std::uint32_t interval = ++clock_;
    for (Warp& warp : block->warps) new_era(*block, warp, grid, interval, interval);
    for (auto& thread : block->threads) wake(*thread);
  }
}

// ---- programmatic dependent launch

// griddepcontrol.wait: from here on the launches before this one have ended.
void Device::wait_for_predecessor() { current_->has_waited = any_waited_ = true; }

// griddepcontrol.launch_dependents: the next launch may begin. If this one has not waited yet, the ones before it may
// still be running then.
void Device::release_dependents() { released_early_ |= !current_->has_waited; }

// ---- clusters

int Device::cluster_rank() const { return current_->block->number % static_cast<int>(launch_->cluster); }

// It does not order the lanes of the warp itself: the step stays.
void Device::arrive_cluster(const std::source_location& where) {
  Warp& warp = *current_->warp;
  collective("arrive_cluster", where, nullptr, [&](void* const(&)[32]) {
    if (warp.cluster_arrivals > warp.cluster_waits)
      fail("arrives at a cluster barrier before it has waited for the last");
    ++warp.cluster_arrivals;
    const Era now = era(warp.era);
    new_era(*current_->block, warp, now.grid, now.interval, now.step);
    if (++cluster_arrived_ < static_cast<int>(launch_->cluster * current_->block->warps.size())) return;
    cluster_arrived_ = 0;
    ++cluster_barriers_;
    pass_cluster_barrier();
  });
}

void Device::wait_cluster(const std::source_location& where) {
  Warp& warp = *current_->warp;
  const int barrier = warp.cluster_waits + 1;
  collective("wait_cluster", where, nullptr, [&](void* const(&)[32]) {
    if (warp.cluster_arrivals < barrier) fail("waits for a cluster barrier at which it has not arrived");
    warp.waits_for_cluster = true;
    pass_cluster_barrier();
  });
  while (warp.cluster_waits < barrier) wait("wait_cluster");
}

// Resumes the warps that wait for a barrier at which the whole cluster has arrived.
void Device::pass_cluster_barrier() {
  for (auto& block : running_)
    for (std::size_t i = 0; i < block->warps.size(); ++i) {
      Warp& warp = block->warps[i];
      if (!warp.waits_for_cluster || warp.cluster_waits >= cluster_barriers_) continue;
      warp.waits_for_cluster = false;
      ++warp.cluster_waits;
      const Era now = era(warp.era);
      new_era(*block, warp, now.grid, now.interval, ++clock_);
      for (std::size_t lane = 32 * i; lane < 32 * i + 32; ++lane) wake(*block->threads[lane]);
    }
}

void* Device::write_to_block(int rank, void* at, std::size_t bytes) {
  if (rank < 0 || rank >= static_cast<int>(launch_->cluster)) fail("writes to a block that its cluster does not have");
  Block& own = *current_->block;
  if (!own.shared->holds(at, bytes)) fail("writes outside the shared memory of a block of its cluster");
  Block& other = rank == cluster_rank() ? own : *blocks_[static_cast<std::size_t>(rank)];
  char* there = other.shared->begin + (static_cast<char*>(at) - own.shared->begin);
  if (&other != &own) {
    if (current_->warp->cluster_waits == 0) fail("writes to a block of its cluster that may not have begun");
    if (other.ended == static_cast<int>(other.threads.size())) fail("writes to a block of its cluster that has ended");
    other.last_remote_write = std::max(other.last_remote_write, current_->warp->cluster_arrivals);
  }
  touch(*other.shared, there, bytes, true);
  return there;
}

// Writes of other blocks to the block's shared memory must be ordered by a barrier before its last thread ends, since
// they could otherwise arrive after that.
void Device::leave(Block& block) {
  if (++block.ended < static_cast<int>(block.threads.size())) return;
  for (const Warp& warp : block.warps)
    if (warp.cluster_waits > block.last_remote_write) return;
  if (block.last_remote_write >= 0) fail("ends while a block of its cluster may still write to its shared memory");
}

// ---- running

std::string Device::name(const Thread& thread) const {
  return "thread " + std::to_string(thread.index.x) + " of block " + text(thread.block->index);
}

void Device::fail(const std::string& what) {
  throw Error("In " + launch_->kernel + " " + name(*current_) + " " + what + ".");
}

void Device::prepare(Block& block, int number, const std::function<void()>& kernel) {
  const unsigned per_row = launch_->grid.x, rows = launch_->grid.y, at = static_cast<unsigned>(number);
  block.index = {at % per_row, at / per_row % rows, at / per_row / rows};
  block.number = number;
  block.arrived = 0, block.ended = 0, block.done = 0, block.last_remote_write = -1;
  block.memory.resize(launch_->shared_bytes / sizeof(Line) + 1);
  std::memset(block.memory.data(), 0xff, block.memory.size() * sizeof(Line));
  block.shared = std::make_unique<Region>("shared memory of " + std::to_string(launch_->shared_bytes) + " bytes",
                                          block.memory.data()->bytes, launch_->shared_bytes);
  const std::size_t size = launch_->size.x;
  while (block.threads.size() < size) block.threads.push_back(std::make_unique<Thread>());
  block.threads.resize(size);
  block.ready = static_cast<int>(size);
  block.warps.assign((size + 31) / 32, {});
  const std::uint32_t interval = ++clock_, grid = eras_.empty() ? ++clock_ : eras_.front().grid;
  for (Warp& warp : block.warps) new_era(block, warp, grid, interval, interval);
  for (std::size_t i = 0; i < size; ++i) {
    Thread& thread = *block.threads[i];
    thread.index = {static_cast<unsigned>(i), 0, 0};
    thread.number = number * static_cast<int>(size) + static_cast<int>(i);
    thread.lane = static_cast<int>(i % 32);
    thread.block = &block;
    thread.warp = &block.warps[i / 32];
    ++thread.warp->lanes;
    thread.ready = true, thread.done = false, thread.waits_for = nullptr;
    thread.has_waited = launch_->unfinished.empty();
    thread.open_copies.clear(), thread.copies.clear(), thread.accesses.clear();
    thread.fiber.start([this, &thread, &kernel] {
      try {
        kernel();
        wait_copies(0);
        if (!thread.open_copies.empty()) fail("ends with an asynchronous copy that was never committed");
        leave(*thread.block);
      } catch (const std::exception& error) {
        if (error_.empty()) error_ = error.what();
      }
      thread.done = true;
      --thread.block->ready, ++thread.block->done;
    });
  }
}

void Device::run_blocks(std::size_t count) {
  for (;;) {
    bool all_done = true, progress = false;
    for (std::size_t b = 0; b < count; ++b) {
      Block& block = *blocks_[b];
      all_done = all_done && block.done == static_cast<int>(block.threads.size());
      if (block.ready == 0) continue;
      for (auto& thread : block.threads) {
        if (thread->done || !thread->ready) continue;
        current_ = thread.get();
        thread->fiber.resume();
        progress = true;
        if (!error_.empty()) return;
      }
    }
    if (all_done) break;
    if (!progress) {
      error_ = deadlock(count);
      return;
    }
  }
  for (std::size_t b = 0; b < count; ++b) count_accesses(*blocks_[b]);
}

std::string Device::deadlock(std::size_t count) const {
  for (std::size_t b = 0; b < count; ++b)
    for (const auto& thread : blocks_[b]->threads) {
      if (thread->done) continue;
      std::string others;
      for (const auto& other : blocks_[b]->threads)
        if (other->done || other->waits_for != thread->waits_for) {
          others = "; thread " + std::to_string(other->index.x) +
                   (other->done ? " has ended" : std::string(" waits at ") + other->waits_for);
          break;
        }
      return "In " + launch_->kernel + " " + name(*thread) + " waits forever at " + thread->waits_for + others +
             " (a deadlock or a divergent collective).";
    }
  return "";
}

namespace {

// Every launch since the last call of simulated_launches, a line each; nothing before its first call.
std::optional<std::string>& launches() {
  static std::optional<std::string> all;
  return all;
}

void note(const Launch& launch) {
  if (!launches()) return;
  *launches() += launch.kernel;
  for (const unsigned number : {launch.grid.x, launch.grid.y, launch.grid.z, launch.size.x})
    *launches() += " " + std::to_string(number);
  *launches() += " " + std::to_string(launch.shared_bytes) + "\n";
}

}  // namespace

// For tests that use ctypes: lines of kernel, grid, threads and bytes of shared memory.
extern "C" __attribute__((visibility("default"))) const char* simulated_launches() {
  static std::string returned;
  const std::lock_guard guard(device().mutex);
  returned = launches().value_or("");
  launches() = "";
  return returned.c_str();
}

Ran Device::run(const Launch& launch, const std::function<void()>& kernel) {
  const std::lock_guard guard(mutex);
  const std::size_t count = std::size_t{launch.grid.x} * launch.grid.y * launch.grid.z;
  note(launch);
  if (count == 0 || launch.size.x == 0 || launch.size.x > 1024 || launch.grid.y > 65535 || launch.grid.z > 65535 ||
      launch.cluster == 0 || launch.grid.x % launch.cluster != 0)
    throw Error("The launch of " + launch.kernel + " has an impossible grid.");
  launch_ = &launch;
  last_ = nullptr;  // it may be another device's
  error_.clear();
  any_waited_ = launch.unfinished.empty(), released_early_ = false;
  first_era_ += static_cast<std::uint32_t>(eras_.size());
  eras_.clear();
  grid_arrived_ = 0;
  const std::size_t at_once = launch.cooperative ? count : launch.cluster;
  while (blocks_.size() < at_once) blocks_.push_back(std::make_unique<Block>());
  running_ = std::span(blocks_).first(at_once);
  for (std::size_t first = 0; first < count && error_.empty(); first += at_once) {
    cluster_arrived_ = cluster_barriers_ = 0;
    for (std::size_t b = 0; b < at_once; ++b) prepare(*blocks_[b], static_cast<int>(first + b), kernel);
    run_blocks(at_once);
  }
  current_ = nullptr;
  if (!error_.empty()) throw Error(error_);
  // Else what waits for this launch would not have waited for the ones before it.
  if (!any_waited_) throw Error("In " + launch.kernel + " no thread waits for the kernel before it.");
  return {{first_era_, first_era_ + static_cast<std::uint32_t>(eras_.size())}, released_early_};
}

}  // namespace cuda_host
