#include "cpu/dispatch.h"

#include <initializer_list>
#include <stdexcept>
#include <string>

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
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
extern const LinearKernels linear_amx_fp32, linear_amx_bf16x3, linear_amx_bf16, linear_amx_int8;
#endif
#if defined(__aarch64__)
extern const Kernels kernels_neon;
extern const LinearKernels linear_neon_dotprod;
extern const LinearKernels linear_neon_i8mm;
extern const LinearKernels linear_neon_bf16;
extern const AttentionKernels attention_neon_bf16;
#endif
#if defined(DISTILFAST_AMX_SIMULATED)
extern const LinearKernels linear_amx_simulated_fp32, linear_amx_simulated_bf16x3, linear_amx_simulated_bf16,
    linear_amx_simulated_int8;
#endif

namespace {

constexpr const char* no_such_processor = "is not supported by this processor";

const char* missing(bool supported) { return supported ? nullptr : no_such_processor; }

// The ISAs of another architecture.
[[maybe_unused]] std::vector<Isa> absent(std::initializer_list<const char*> names) {
  std::vector<Isa> isas;
  for (const char* name : names) isas.push_back({name, no_such_processor, nullptr});
  return isas;
}

// The kernels of an ISA with the linears that an extension of it adds.
Kernels extended(Kernels kernels, const char* isa, const LinearKernels& int8, const LinearKernels& bf16) {
  kernels.isa = isa;
  kernels.linear_int8 = int8;
  kernels.linear_bf16 = bf16;
  return kernels;
}

// The same with attention in bf16.
Kernels extended(Kernels kernels, const char* isa, const LinearKernels& int8, const LinearKernels& bf16,
                 const AttentionKernels& attention) {
  kernels.attention_bf16 = attention;
  return extended(kernels, isa, int8, bf16);
}

#if defined(__x86_64__)
// What the processor has, and the operating system saves. From cpuid itself: gcc 12's __builtin_cpu_supports does not
// know all of it, and that of zig's clang answers no to everything.
struct X86Features {
  bool avx2, avx2_vnni, avx512, avx512_vnni, avx512_bf16, tile_unit;
};

// The registers of a leaf, or zeros where the processor has no such leaf.
struct CpuidLeaf {
  unsigned a = 0, b = 0, c = 0, d = 0;
  explicit CpuidLeaf(unsigned leaf, unsigned subleaf = 0) { __get_cpuid_count(leaf, subleaf, &a, &b, &c, &d); }
};

bool has_bits(unsigned value, std::initializer_list<int> bits) {
  for (int bit : bits) {
    if (!(value >> bit & 1u)) return false;
  }
  return true;
}

// XCR0: which registers the operating system saves when it switches threads.
unsigned saved_registers() {
  unsigned low = 0, high = 0;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return low;
}

X86Features x86_features() {
  const CpuidLeaf leaf_1(1), leaf_7(7), leaf_7_1(7, 1);
  const unsigned saved = has_bits(leaf_1.c, {27}) ? saved_registers() : 0;  // OSXSAVE: xgetbv may be asked
  X86Features has{};
  // The lower and upper halves of the registers; FMA, AVX, F16C; AVX2.
  has.avx2 = has_bits(saved, {1, 2}) && has_bits(leaf_1.c, {12, 28, 29}) && has_bits(leaf_7.b, {5});
  has.avx2_vnni = has.avx2 && has_bits(leaf_7_1.a, {4});
  // The masks, the halves above those, the upper sixteen registers; F, DQ, BW, VL.
  has.avx512 = has.avx2 && has_bits(saved, {5, 6, 7}) && has_bits(leaf_7.b, {16, 17, 30, 31});
  has.avx512_vnni = has.avx512 && has_bits(leaf_7.c, {11});
  has.avx512_bf16 = has.avx512_vnni && has_bits(leaf_7_1.a, {5});
  has.tile_unit = has_bits(leaf_7.d, {22, 24, 25});  // bf16 products, tiles, int8 products
  return has;
}

// A process has to request permission before the system saves the 8 KB of tiles of its threads.
bool request_tiles() {
#if defined(__linux__)
  constexpr int request_permission = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
#else
  return false;
#endif
}

const char* missing_for_amx(const X86Features& has) {
  if (!has.avx512_bf16 || !has.tile_unit) return no_such_processor;
  return request_tiles() ? nullptr : "is not supported by this operating system, which does not grant the tiles";
}

Kernels with_linears(Kernels kernels, const char* isa, const LinearKernels& fp32, const LinearKernels& bf16x3,
                     const LinearKernels& bf16, const LinearKernels& int8) {
  kernels.isa = isa;
  kernels.linear_fp32 = fp32, kernels.linear_bf16x3 = bf16x3, kernels.linear_bf16 = bf16, kernels.linear_int8 = int8;
  return kernels;
}

std::vector<Isa> x86_isas() {
  const X86Features has = x86_features();
  static const Kernels kernels_avx2_vnni =
      extended(kernels_avx2, "avx2_vnni", linear_avx2_vnni, kernels_avx2.linear_bf16);
  static const Kernels kernels_avx512_vnni =
      extended(kernels_avx512, "avx512_vnni", linear_avx512_vnni, kernels_avx512.linear_bf16);
  static const Kernels kernels_avx512_bf16 =
      extended(kernels_avx512, "avx512_bf16", linear_avx512_vnni, linear_avx512_bf16, attention_avx512_bf16);
  static const Kernels kernels_amx =
      with_linears(kernels_avx512_bf16, "amx", linear_amx_fp32, linear_amx_bf16x3, linear_amx_bf16, linear_amx_int8);
  std::vector<Isa> all = {{"amx", missing_for_amx(has), &kernels_amx},
                          {"avx512_bf16", missing(has.avx512_bf16), &kernels_avx512_bf16},
                          {"avx512_vnni", missing(has.avx512_vnni), &kernels_avx512_vnni},
                          {"avx512", missing(has.avx512), &kernels_avx512},
                          {"avx2_vnni", missing(has.avx2_vnni), &kernels_avx2_vnni},
                          {"avx2", missing(has.avx2), &kernels_avx2}};
#if defined(DISTILFAST_AMX_SIMULATED)
  static const Kernels kernels_amx_simulated =
      with_linears(kernels_avx512_bf16, "amx_simulated", linear_amx_simulated_fp32, linear_amx_simulated_bf16x3,
                   linear_amx_simulated_bf16, linear_amx_simulated_int8);
  // After every real one, so that it is never chosen by default.
  all.push_back({"amx_simulated", missing(has.avx512_bf16), &kernels_amx_simulated});
#endif
  return all;
}
#else
std::vector<Isa> x86_isas() { return absent({"amx", "avx512_bf16", "avx512_vnni", "avx512", "avx2_vnni", "avx2"}); }
#endif

#if defined(__aarch64__)
// What a processor can have beyond NEON, which all of this architecture have.
struct ArmFeatures {
  bool dotprod, i8mm, bf16;
};

#if defined(__linux__)
ArmFeatures arm_features() {
  const unsigned long first = getauxval(AT_HWCAP), second = getauxval(AT_HWCAP2);
  // HWCAP_ASIMDDP, HWCAP2_I8MM and HWCAP2_BF16, which older headers do not have.
  return {(first >> 20 & 1) != 0, (second >> 13 & 1) != 0, (second >> 14 & 1) != 0};
}
#elif defined(__APPLE__)
bool has_feature(const char* name) {
  int value = 0;
  std::size_t size = sizeof value;
  return sysctlbyname(name, &value, &size, nullptr, 0) == 0 && value != 0;
}

ArmFeatures arm_features() {
  return {has_feature("hw.optional.arm.FEAT_DotProd"), has_feature("hw.optional.arm.FEAT_I8MM"),
          has_feature("hw.optional.arm.FEAT_BF16")};
}
#else
ArmFeatures arm_features() { return {false, false, false}; }
#endif

std::vector<Isa> arm_isas() {
  const ArmFeatures has = arm_features();
  const bool i8mm = has.dotprod && has.i8mm, bf16 = i8mm && has.bf16;
  static const Kernels kernels_neon_dotprod =
      extended(kernels_neon, "neon_dotprod", linear_neon_dotprod, kernels_neon.linear_bf16);
  static const Kernels kernels_neon_i8mm =
      extended(kernels_neon, "neon_i8mm", linear_neon_i8mm, kernels_neon.linear_bf16);
  static const Kernels kernels_neon_bf16 =
      extended(kernels_neon, "neon_bf16", linear_neon_i8mm, linear_neon_bf16, attention_neon_bf16);
  return {{"neon_bf16", missing(bf16), &kernels_neon_bf16},
          {"neon_i8mm", missing(i8mm), &kernels_neon_i8mm},
          {"neon_dotprod", missing(has.dotprod), &kernels_neon_dotprod},
          {"neon", nullptr, &kernels_neon}};
}
#else
std::vector<Isa> arm_isas() { return absent({"neon_bf16", "neon_i8mm", "neon_dotprod", "neon"}); }
#endif

// Those of the other architecture are known too, so that asking for one is told apart from a misspelt name.
std::vector<Isa> find_isas() {
  std::vector<Isa> all = x86_isas();
  for (const Isa& isa : arm_isas()) all.push_back(isa);
  all.push_back({"ref", nullptr, &kernels_ref});
  return all;
}

}  // namespace

const std::vector<Isa>& isas() {
  static const std::vector<Isa> all = find_isas();
  return all;
}

const Kernels& kernels_for(std::string_view name) {
  std::string known;
  for (const Isa& isa : isas()) {
    if (name == isa.name && isa.missing)
      throw std::invalid_argument("ISA '" + std::string(name) + "' " + isa.missing + ".");
    if (isa.supported() && (name.empty() || name == isa.name)) return *isa.kernels;
    known += known.empty() ? isa.name : std::string(", ") + isa.name;
  }
  throw std::invalid_argument("ISA '" + std::string(name) + "' is not known; there are " + known + ".");
}

}  // namespace distilfast
