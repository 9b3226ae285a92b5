#include "cpu/dispatch.h"

#include <stdexcept>
#include <string>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace distilfast {

extern const Kernels kernels_ref;
#if defined(__x86_64__)
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
extern const LinearKernels linear_avx2_vnni;
extern const LinearKernels linear_avx512_vnni;
extern const LinearKernels linear_avx512_bf16;
extern const AttentionKernels attention_avx512_bf16;
#endif

namespace {

#if defined(__x86_64__)
// avx2_vnni, from cpuid's leaf 7.1: gcc 12's __builtin_cpu_supports does not know it.
bool supports_avx_vnni() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1u);
}

// The kernels of an ISA with the linears that an extension of it adds.
Kernels extended(Kernels kernels, const char* isa, const LinearKernels& int8, const LinearKernels& bf16) {
  kernels.isa = isa;
  kernels.linear_int8 = int8;
  kernels.linear_bf16 = bf16;
  return kernels;
}
#endif

std::vector<Isa> find_isas() {
#if defined(__x86_64__)
  __builtin_cpu_init();  // asks cpuid, and xgetbv for what the operating system saves
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx2_vnni = avx2 && supports_avx_vnni();
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  const bool avx512_vnni = avx512 && __builtin_cpu_supports("avx512vnni");
  const bool avx512_bf16 = avx512_vnni && __builtin_cpu_supports("avx512bf16");
  static const Kernels kernels_avx2_vnni =
      extended(kernels_avx2, "avx2_vnni", linear_avx2_vnni, kernels_avx2.linear_bf16);
  static const Kernels kernels_avx512_vnni =
      extended(kernels_avx512, "avx512_vnni", linear_avx512_vnni, kernels_avx512.linear_bf16);
  static const Kernels kernels_avx512_bf16 = [] {
    Kernels kernels = extended(kernels_avx512, "avx512_bf16", linear_avx512_vnni, linear_avx512_bf16);
    kernels.attention_bf16 = attention_avx512_bf16;
    return kernels;
  }();
  return {{"avx512_bf16", avx512_bf16, &kernels_avx512_bf16},
          {"avx512_vnni", avx512_vnni, &kernels_avx512_vnni},
          {"avx512", avx512, &kernels_avx512},
          {"avx2_vnni", avx2_vnni, &kernels_avx2_vnni},
          {"avx2", avx2, &kernels_avx2},
          {"ref", true, &kernels_ref}};
#else
  std::vector<Isa> all;
  for (const char* name : {"avx512_bf16", "avx512_vnni", "avx512", "avx2_vnni", "avx2"})
    all.push_back({name, false, nullptr});
  all.push_back({"ref", true, &kernels_ref});
  return all;
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
