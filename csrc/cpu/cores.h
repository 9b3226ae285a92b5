// How many cores this process may use.
#pragma once

#include <string>

namespace distilfast {

// Cores that the affinity mask and the cgroup's CPU quota allow; at least 1.
int available_cores();

// The CPU quota in cores of the process's control group and of those around it, the smallest; 0 where there is none.
// `controls` is where the control files are mounted, of version 2 or 1, and `membership` the file that names the group:
// /sys/fs/cgroup and /proc/self/cgroup.
double cgroup_quota(const std::string& controls, const std::string& membership);

}  // namespace distilfast
