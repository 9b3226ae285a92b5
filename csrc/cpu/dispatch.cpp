#include "cpu/dispatch.h"

#include <stdexcept>
#include <string>

namespace distilfast {

extern const Kernels kernels_ref;
#if defined(__x86_64__)
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
#endif

namespace {

std::vector<Isa> find_isas() {
#if defined(__x86_64__)
  __builtin_cpu_init();  // asks cpuid, and xgetbv for what the operating system saves
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  return {{"avx512", avx512, &kernels_avx512}, {"avx2", avx2, &kernels_avx2}, {"ref", true, &kernels_ref}};
#else
  return {{"avx512", false, nullptr}, {"avx2", false, nullptr}, {"ref", true, &kernels_ref}};
#endif
}

}  // namespace

const std::vector<Isa>& isas() {
  static const std::vector<Isa> all = find_isas();
  return all;
}

const Kernels& kernels_for(std::string_view name) {
  std::string known;
  for (const Isa& isa : isas()) {
    if (name == isa.name && !isa.supported)
      throw std::invalid_argument("ISA '" + std::string(name) + "' is not supported by this processor.");
    if (isa.supported && (name.empty() || name == isa.name)) return *isa.kernels;
    known += known.empty() ? isa.name : std::string(", ") + isa.name;
  }
  throw std::invalid_argument("ISA '" + std::string(name) + "' is not known; there are " + known + ".");
}

}  // namespace distilfast
