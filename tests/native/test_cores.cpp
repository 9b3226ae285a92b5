// How many cores the files of a control group allow, in both cgroup versions and inside a container.
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <string>

#include "check.h"
#include "cpu/cores.h"

using namespace distilfast;

namespace {

// A directory of control files, this process's own, removed with the test.
class Controls {
 public:
  Controls() {
    std::string name = std::filesystem::temp_directory_path() / "distilfast-cores-XXXXXX";
    if (!mkdtemp(name.data())) throw std::runtime_error("no directory for control files in " + name);
    root_ = name;
  }
  ~Controls() { std::filesystem::remove_all(root_); }

  Controls& write(const std::string& file, const std::string& text) {
    std::filesystem::create_directories((root_ / file).parent_path());
    std::ofstream(root_ / file) << text << "\n";
    return *this;
  }
  double quota() const { return cgroup_quota(root_.string(), (root_ / "membership").string()); }

 private:
  std::filesystem::path root_;
};

}  // namespace

TEST(a_group_without_a_quota_allows_every_core) {
  CHECK(Controls().quota() == 0);
  CHECK(Controls().write("membership", "0::/").quota() == 0);
  CHECK(Controls().write("membership", "0::/a/b").write("cpu.max", "max 100000").quota() == 0);
  CHECK(Controls().write("cpu/cpu.cfs_quota_us", "-1").write("cpu/cpu.cfs_period_us", "100000").quota() == 0);
}

TEST(the_groups_quota_is_read_in_version_2) {
  CHECK(Controls().write("membership", "0::/").write("cpu.max", "150000 100000").quota() == 1.5);
  CHECK(Controls().write("membership", "0::/a/b").write("a/b/cpu.max", "50000 100000").quota() == 0.5);
}

TEST(a_parent_group_may_allow_less) {
  Controls controls;
  controls.write("membership", "0::/a/b").write("a/b/cpu.max", "400000 100000").write("a/cpu.max", "200000 100000");
  CHECK(controls.quota() == 2);
  CHECK(controls.write("a/b/cpu.max", "max 100000").quota() == 2);
  CHECK(controls.write("a/b/cpu.max", "100000 100000").quota() == 1);
}

TEST(a_container_sees_its_own_files_under_another_path) {
  CHECK(Controls().write("membership", "0::/host/pod7").write("cpu.max", "300000 100000").quota() == 3);
  CHECK(Controls().write("cpu.max", "300000 100000").quota() == 3);  // nor need it know its path
}

TEST(the_groups_quota_is_read_in_version_1) {
  Controls controls;
  controls.write("membership", "7:memory:/elsewhere\n4:cpu,cpuacct:/pod\n1:name=systemd:/");
  controls.write("memory/elsewhere/cpu.cfs_quota_us", "1").write("memory/elsewhere/cpu.cfs_period_us", "1");
  controls.write("cpu,cpuacct/pod/cpu.cfs_quota_us", "250000").write("cpu,cpuacct/pod/cpu.cfs_period_us", "100000");
  CHECK(controls.quota() == 2.5);
  CHECK(Controls().write("cpu/cpu.cfs_quota_us", "50000").write("cpu/cpu.cfs_period_us", "100000").quota() == 0.5);
}

TEST(malformed_files_give_no_quota) {
  CHECK(Controls().write("membership", "::\n0:\nnothing").write("cpu.max", "many few").quota() == 0);
  CHECK(Controls().write("cpu.max", "0 100000").quota() == 0);
  CHECK(Controls().write("cpu.max", "100000 0").quota() == 0);
  CHECK(Controls().write("cpu.max", "100000").quota() == 0);
}
