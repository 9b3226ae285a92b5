#include "accesses.h"

#include <algorithm>
#include <array>
#include <iterator>
#include <tuple>
#include <utility>

namespace cuda_host {

namespace {

constexpr std::uintptr_t sector_bytes = 32, bank_bytes = 4, banks = 32, pass_bytes = banks * bank_bytes;

// What lanes access at once, by address.
using Together = std::vector<const Access*>;

std::uint64_t distinct_bytes(const Together& accesses) {
  std::uint64_t bytes = 0;
  std::uintptr_t end = 0;
  for (const Access* access : accesses) {
    const std::uintptr_t last = access->at + access->bytes;
    if (last > end) bytes += last - std::max(end, access->at);
    end = std::max(end, last);
  }
  return bytes;
}

// Calls body(i) for each unit of `unit` bytes that is accessed, once.
template <class Body>
void each_unit(const Together& accesses, std::uintptr_t unit, Body body) {
  std::uintptr_t next = 0;
  for (const Access* access : accesses) {
    const std::uintptr_t last = (access->at + access->bytes - 1) / unit;
    for (std::uintptr_t i = std::max(next, access->at / unit); i <= last; ++i) body(i);
    next = std::max(next, last + 1);
  }
}

std::uint64_t fewest(const Together& accesses, std::uintptr_t unit) {
  return (distinct_bytes(accesses) + unit - 1) / unit;
}

Traffic sectors(const Together& accesses) {
  std::uint64_t moved = 0;
  each_unit(accesses, sector_bytes, [&](std::uintptr_t) { ++moved; });
  return {moved, fewest(accesses, sector_bytes)};
}

Traffic passes(const Together& accesses) {
  std::array<std::uint64_t, banks> words{};
  each_unit(accesses, bank_bytes, [&](std::uintptr_t word) { ++words[word % banks]; });
  return {*std::max_element(words.begin(), words.end()), fewest(accesses, pass_bytes)};
}

Traffic& operator+=(Traffic& all, const Traffic& more) {
  all.moved += more.moved, all.needed += more.needed;
  return all;
}

bool is_shared(Access::Kind kind) { return kind == Access::Kind::shared_load || kind == Access::Kind::shared_store; }

// `lanes`: an access of each lane, or null.
Traffic traffic_of(const std::vector<const Access*>& lanes, const Access& any) {
  const bool shared = is_shared(any.kind);
  const std::size_t at_once = !shared || any.bytes < 8 ? 32 : any.bytes == 8 ? 16 : 8;
  Traffic all;
  for (std::size_t first = 0; first < lanes.size(); first += at_once) {
    Together part;
    const auto begin = lanes.begin() + static_cast<std::ptrdiff_t>(first);
    std::copy_if(begin, begin + static_cast<std::ptrdiff_t>(std::min(at_once, lanes.size() - first)),
                 std::back_inserter(part), [](const Access* access) { return access != nullptr; });
    std::sort(part.begin(), part.end(), [](const Access* a, const Access* b) { return a->at < b->at; });
    all += shared ? passes(part) : sectors(part);
  }
  return all;
}

bool same_place(const Access& a, const Access& b) {
  return std::tie(a.kind, a.line, a.column, a.bytes, a.file) == std::tie(b.kind, b.line, b.column, b.bytes, b.file);
}

}  // namespace

void AccessCounter::add(const std::string& kernel, const std::vector<const Access*>& lanes, const Access& any) {
  const std::string file = any.file;
  traffic_[{kernel, any.kind, file.substr(file.rfind('/') + 1), any.line}] += traffic_of(lanes, any);
}

void AccessCounter::count(const std::string& kernel, const std::vector<const std::vector<Access>*>& lanes) {
  std::vector<std::size_t> next(lanes.size(), 0);
  for (;;) {
    // The first lane with something left, and those whose next access has the same place.
    const Access* any = nullptr;
    std::vector<const Access*> together(lanes.size(), nullptr);
    for (std::size_t lane = 0; lane < lanes.size(); ++lane) {
      if (next[lane] == lanes[lane]->size()) continue;
      const Access& access = (*lanes[lane])[next[lane]];
      if (!any) any = &access;
      if (!same_place(access, *any)) continue;
      together[lane] = &access;
      ++next[lane];
    }
    if (!any) return;
    add(kernel, together, *any);
  }
}

std::string AccessCounter::take() {
  static const char* const kinds[] = {"global loads", "global stores", "shared loads", "shared stores"};
  std::string text;
  for (const auto& [key, traffic] : std::exchange(traffic_, {})) {
    const auto& [kernel, kind, file, line] = key;
    text += kernel + "\t" + kinds[static_cast<int>(kind)] + "\t" + file + ":" + std::to_string(line) + "\t" +
            std::to_string(traffic.moved) + "\t" + std::to_string(traffic.needed) + "\n";
  }
  return text;
}

}  // namespace cuda_host
