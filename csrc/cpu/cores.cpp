#include "cpu/cores.h"

#include <algorithm>
#include <fstream>
#include <thread>

#if defined(__linux__)
#include <sched.h>
#endif

namespace distilfast {

namespace {

// The quota of one group; 0 where it has none or the files do not exist.
double quota_of_group(const std::string& directory) {
  double quota = 0, period = 0;
  // Version 2 writes "max" for no quota, which is not a number; version 1 writes -1.
  if (std::ifstream file(directory + "/cpu.max"); !(file >> quota >> period)) {
    std::ifstream quota_file(directory + "/cpu.cfs_quota_us"), period_file(directory + "/cpu.cfs_period_us");
    if (!(quota_file >> quota && period_file >> period)) return 0;
  }
  return quota > 0 && period > 0 ? quota / period : 0;
}

// The smallest quota of the group and of its parents. In a container the mounted files can be those of the group
// itself, whatever its path on the host: then only the last of these directories exists.
double quota_along(const std::string& mount, std::string group) {
  double smallest = 0;
  for (;;) {
    const double quota = quota_of_group(mount + group);
    if (quota > 0 && (smallest == 0 || quota < smallest)) smallest = quota;
    if (group.empty()) return smallest;
    group.erase(group.find_last_of('/'));
  }
}

}  // namespace

double cgroup_quota(const std::string& controls, const std::string& membership) {
  std::ifstream groups(membership);
  // "0::/group" in version 2, "4:cpu,cpuacct:/group" in version 1, where the controllers' names are a directory's too.
  for (std::string line; std::getline(groups, line);) {
    const std::size_t first = line.find(':'), second = first == line.npos ? first : line.find(':', first + 1);
    if (second == line.npos || line.compare(second, 2, ":/") != 0) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    if (!controllers.empty() && ("," + controllers + ",").find(",cpu,") == std::string::npos) continue;
    std::string group = line.substr(second + 1);
    if (group == "/") group.clear();
    const std::string mount = controllers.empty() ? controls : controls + "/" + controllers;
    if (const double quota = quota_along(mount, group); quota > 0) return quota;
  }
  return std::max(quota_of_group(controls), quota_of_group(controls + "/cpu"));
}

int available_cores() {
  int cores = static_cast<int>(std::thread::hardware_concurrency());
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) cores = CPU_COUNT(&set);
  // Rounded down: with one thread more than the quota can run, the group has used up its time before the period ends,
  // and then all threads stand still until the next one, up to 100 ms in the middle of a forward.
  if (const double quota = cgroup_quota("/sys/fs/cgroup", "/proc/self/cgroup"); quota > 0 && quota < cores)
    cores = static_cast<int>(quota);
#endif
  return std::max(cores, 1);
}

}  // namespace distilfast
