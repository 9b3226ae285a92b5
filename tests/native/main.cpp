// Runs every registered test, or those whose names contain one of the arguments; the exit status says whether all
// passed.
// `--without=PART` leaves out those with PART in the name. `--isa=NAME` leaves of the ISAs NAME and `ref` (status 2 and
// a sentence where it cannot run here), `--isas` lists them.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <exception>
#include <string_view>

#include "check.h"

namespace {

void list_isas() {
  for (const distilfast::Isa& isa : distilfast::isas())
    std::printf("%s %s\n", isa.name, isa.missing ? isa.missing : "is supported");
}

bool is_wanted(const std::string& name, const std::vector<std::string>& parts, const std::string& without) {
  const auto is_in_name = [&](const std::string& part) { return name.find(part) != name.npos; };
  if (!without.empty() && is_in_name(without)) return false;
  return parts.empty() || std::any_of(parts.begin(), parts.end(), is_in_name);
}

int run(const std::vector<std::string>& parts, const std::string& without) {
  int passed = 0, failed = 0;
  for (const auto& [name, test] : tests()) {
    if (!is_wanted(name, parts, without)) continue;
    try {
      test();
      ++passed;
    } catch (const std::exception& error) {
      std::printf("FAILED %s: %s\n", name.c_str(), error.what());
      ++failed;
    }
  }
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed != 0 || passed == 0;
}

}  // namespace

int main(int count, char** arguments) {
  constexpr std::string_view isa_option = "--isa=", without_option = "--without=";
  std::vector<std::string> parts;
  std::string without;
  for (int i = 1; i < count; ++i) {
    const std::string_view argument = arguments[i];
    if (argument == "--isas") return list_isas(), 0;
    if (argument.substr(0, isa_option.size()) == isa_option)
      forced_isa() = argument.substr(isa_option.size());
    else if (argument.substr(0, without_option.size()) == without_option)
      without = argument.substr(without_option.size());
    else
      parts.emplace_back(argument);
  }
  try {
    distilfast::kernels_for(forced_isa());
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 2;
  }
  return run(parts, without);
}
