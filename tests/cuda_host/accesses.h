// How much of what the memory moves for a warp the warp has asked for.
//
// Global memory moves sectors of 32 bytes. Shared memory has 32 banks of 4 bytes: two different words of one bank take
// two passes. Accesses of 8 bytes are made by half a warp at a time and those of 16 by a quarter, so the fewest passes
// are one for each 128 bytes.
//
// Lanes run one after the other here. What they access between two barriers of their warp is taken to be one access
// where it comes next in each lane and at the same place in the source. Where lanes branch, this may divide an access
// into several.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

namespace cuda_host {

struct Access {
  enum class Kind { global_load, global_store, shared_load, shared_store };
  Kind kind;
  std::uintptr_t at;
  unsigned bytes;
  const char* file;
  unsigned line, column;
};

struct Traffic {
  std::uint64_t moved = 0;   // sectors or passes
  std::uint64_t needed = 0;  // the fewest for these bytes
};

class AccessCounter {
 public:
  bool is_on = false;

  // The accesses of a warp's lanes between two barriers.
  void count(const std::string& kernel, const std::vector<const std::vector<Access>*>& lanes);
  // Lines of kernel, kind, place, moved, needed, with tabs between them; since the last time.
  std::string take();

 private:
  void add(const std::string& kernel, const std::vector<const Access*>& lanes, const Access& any);

  std::map<std::tuple<std::string, Access::Kind, std::string, unsigned>, Traffic> traffic_;  // file and line
};

}  // namespace cuda_host
