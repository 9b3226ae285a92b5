#include "cpu/dispatch.h"

#include <stdexcept>
#include <string>

namespace distilfast {

extern const Kernels kernels_ref;
#if defined(__x86_64__)
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
extern const LinearKernels linear_avx512_bf16;
extern const AttentionKernels attention_avx512_bf16;
#endif

namespace {

std::vector<Isa> find_isas() {
#if defined(__x86_64__)
  __builtin_cpu_init();  // asks cpuid, and xgetbv for what the operating system saves
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  const bool bf16 = avx512 && __builtin_cpu_supports("avx512bf16");
  static const Kernels with_bf16 = [] {
    Kernels kernels = kernels_avx512;
    kernels.isa = "avx512_bf16";
    kernels.linear_bf16 = linear_avx512_bf16;
    kernels.attention_bf16 = attention_avx512_bf16;
    return kernels;
  }();
  return {{"avx512_bf16", bf16, &with_bf16},
          {"avx512", avx512, &kernels_avx512},
          {"avx2", avx2, &kernels_avx2},
          {"ref", true, &kernels_ref}};
#else
  return {{"avx512_bf16", false, nullptr},
          {"avx512", false, nullptr},
          {"avx2", false, nullptr},
          {"ref", true, &kernels_ref}};
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
