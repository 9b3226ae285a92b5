// What this machine can do at most: multiply-adds a second by unit, and bytes a second from memory of several sizes.
// Compiled for the machine it runs on, with -I csrc; prints one JSON object. Usage: roofs THREADS [state]
//
// Peaks come from ten independent chains of one instruction, nothing else in the loop; reads from threads that each sum
// a block of their own, so a size is that of all blocks together. The ping is how long a cache line takes from one core
// to another: two virtual cores can lie on one core complex or on two, and that can change within minutes. With "state"
// it is all measured in less than a second, for the figures between two rounds of a benchmark.
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include <immintrin.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#if defined(__AMX_TILE__)
#include "cpu/vec/tile_unit.h"
#endif

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

int repeats = 5;
long rounds = 30'000'000;  // of ten instructions

// Runs `work` on all threads at once, several times; the shortest time of the slowest thread.
double shortest(int threads, const std::function<void(int)>& work) {
  double best = 1e30;
  for (int repeat = 0; repeat < repeats; ++repeat) {
    const auto begin = Clock::now();
    std::vector<std::thread> team;
    for (int i = 0; i < threads; ++i) team.emplace_back(work, i);
    for (std::thread& each : team) each.join();
    best = std::min(best, seconds_since(begin));
  }
  return best;
}

#define TEN_CHAINS(type, zero, text, operand)                                                                          \
  {                                                                                                                    \
    type a0 = zero, a1 = zero, a2 = zero, a3 = zero, a4 = zero, a5 = zero, a6 = zero, a7 = zero, a8 = zero, a9 = zero; \
    for (long i = 0; i < rounds; ++i)                                                                                  \
      asm volatile(text " %10,%10,%0\n" text " %10,%10,%1\n" text " %10,%10,%2\n" text " %10,%10,%3\n" text            \
                        " %10,%10,%4\n" text " %10,%10,%5\n" text " %10,%10,%6\n" text " %10,%10,%7\n" text            \
                        " %10,%10,%8\n" text " %10,%10,%9"                                                             \
                   : "+v"(a0), "+v"(a1), "+v"(a2), "+v"(a3), "+v"(a4), "+v"(a5), "+v"(a6), "+v"(a7), "+v"(a8),         \
                     "+v"(a9)                                                                                          \
                   : "v"(operand));                                                                                    \
  }

// Giga-operations a second (a multiply-add is two) of `lanes` multiply-adds an instruction.
double giga(int threads, double multiply_adds, double seconds) { return threads * multiply_adds * 2 / seconds * 1e-9; }

double vector_peak(int threads, double lanes, const std::function<void(int)>& work) {
  return giga(threads, 10.0 * rounds * lanes, shortest(threads, work));
}

#if defined(__AMX_TILE__)
using distilfast::TileUnit;

bool may_use_tiles() { return syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* tile data */) == 0; }

// Products of tiles that are never stored: 2 x 2 sums, as in csrc/cpu/linear/amx.h.
void tile_products(bool int8) {
  static constexpr auto config = distilfast::full_tiles();
  TileUnit::configure(config);
  for (long i = 0; i < rounds / 10; ++i) {
    if (int8) {
      TileUnit::add_int8_products<0, 4, 6>();
      TileUnit::add_int8_products<1, 4, 7>();
      TileUnit::add_int8_products<2, 5, 6>();
      TileUnit::add_int8_products<3, 5, 7>();
    } else {
      TileUnit::add_bf16_products<0, 4, 6>();
      TileUnit::add_bf16_products<1, 4, 7>();
      TileUnit::add_bf16_products<2, 5, 6>();
      TileUnit::add_bf16_products<3, 5, 7>();
    }
  }
  TileUnit::release();
}
#endif

std::map<std::string, double> peaks(int threads) {
  std::map<std::string, double> found;
#if defined(__AVX512F__)
  found["fp32_fma"] = vector_peak(
      threads, 16, [](int) { TEN_CHAINS(__m512, _mm512_setzero_ps(), "vfmadd231ps", _mm512_set1_ps(0.5f)); });
#elif defined(__FMA__)
  found["fp32_fma"] = vector_peak(
      threads, 8, [](int) { TEN_CHAINS(__m256, _mm256_setzero_ps(), "vfmadd231ps", _mm256_set1_ps(0.5f)); });
#endif
#if defined(__AVX512BF16__)
  found["bf16_dot"] =
      vector_peak(threads, 32, [](int) { TEN_CHAINS(__m512, _mm512_setzero_ps(), "vdpbf16ps", _mm512_set1_ps(0.5f)); });
#endif
#if defined(__AVX512VNNI__)
  found["int8_vnni"] = vector_peak(
      threads, 64, [](int) { TEN_CHAINS(__m512i, _mm512_setzero_si512(), "vpdpbusd", _mm512_set1_epi8(1)); });
#endif
#if defined(__AMX_TILE__)
  if (may_use_tiles()) {
    const double products = rounds / 10 * 4.0;
    found["bf16_amx"] = giga(threads, products * 16 * 16 * 32, shortest(threads, [](int) { tile_products(false); }));
    found["int8_amx"] = giga(threads, products * 16 * 16 * 64, shortest(threads, [](int) { tile_products(true); }));
  }
#endif
  return found;
}

// Gigabytes a second that all threads read together from `bytes`, best of several passes over `read` bytes in all.
double read_speed(int threads, std::size_t bytes, std::size_t read) {
  const std::size_t own = bytes / threads / 4096 * 4096;
  std::vector<char*> blocks;
  for (int i = 0; i < threads; ++i) {
    auto* block = static_cast<char*>(std::aligned_alloc(std::size_t{2} << 20, (own | 0x1fffff) + 1));
    madvise(block, own, MADV_HUGEPAGE);
    for (std::size_t at = 0; at < own; ++at) block[at] = 1;
    blocks.push_back(block);
  }
  const std::size_t passes = 1 + read / bytes;
  const double seconds = shortest(threads, [&](int i) {
    for (std::size_t pass = 0; pass < passes; ++pass)
      for (const char* at = blocks[i]; at < blocks[i] + own; at += 256)
        asm volatile("" ::"x"(*reinterpret_cast<const __m128*>(at)), "x"(*reinterpret_cast<const __m128*>(at + 64)),
                     "x"(*reinterpret_cast<const __m128*>(at + 128)), "x"(*reinterpret_cast<const __m128*>(at + 192)));
  });
  for (char* block : blocks) std::free(block);
  return passes * own * threads / seconds * 1e-9;
}

// The cores that this process may run on.
std::vector<int> available_cores() {
  cpu_set_t set;
  std::vector<int> cores;
  if (sched_getaffinity(0, sizeof set, &set) != 0) return cores;
  for (int core = 0; core < CPU_SETSIZE; ++core)
    if (CPU_ISSET(core, &set)) cores.push_back(core);
  return cores;
}

// Nanoseconds that a cache line takes from one of two cores to the other; 0 where there is one core.
double ping() {
  const std::vector<int> cores = available_cores();
  if (cores.size() < 2) return 0;
  constexpr int exchanges = 20'000;
  alignas(64) std::atomic<int> turn{0};
  const auto pin = [](int core) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(core, &set);
    sched_setaffinity(0, sizeof set, &set);
  };
  const auto play = [&](int core, int side) {
    pin(core);
    for (int i = 0; i < exchanges; ++i) {
      while (turn.load(std::memory_order_acquire) != 2 * i + side) {
      }
      turn.store(2 * i + side + 1, std::memory_order_release);
    }
  };
  const auto begin = Clock::now();
  std::thread first(play, cores[0], 0), second(play, cores[1], 1);
  first.join(), second.join();
  return seconds_since(begin) / exchanges / 2 * 1e9;
}

void print(const char* name, const std::map<std::string, double>& values, const char* end) {
  std::printf("\"%s\": {", name);
  const char* comma = "";
  for (const auto& [key, value] : values) std::printf("%s\"%s\": %.1f", comma, key.c_str(), value), comma = ", ";
  std::printf("}%s", end);
}

}  // namespace

int main(int count, char** words) {
  const int threads = count > 1 ? std::atoi(words[1]) : 1;
  const bool state = count > 2 && std::string(words[2]) == "state";
  if (state) repeats = 3, rounds /= 10;
  std::map<std::string, double> reads;
  const std::vector<int> sizes = state ? std::vector{170} : std::vector{1, 4, 16, 32, 64, 170, 340};
  for (const int mib : sizes)
    reads[std::to_string(mib)] =
        read_speed(threads, std::size_t(mib) << 20, (state ? std::size_t{1} : std::size_t{1024}) << 20);
  std::printf("{\"threads\": %d, \"ping_ns\": %.0f, ", threads, ping());
  print("giga_operations", peaks(threads), ", ");
  print("read_gb_by_mib", reads, "}\n");
}
