#include "kernels.h"

#include <cxxabi.h>
#include <dlfcn.h>
#include <elf.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>

namespace cuda_host {

namespace {

using Names = std::map<std::uint64_t, std::string>;

// The functions of an ELF file by their addresses. Kernels are static, so the dynamic linker does not know their names.
Names names_in(const char* path) {
  std::ifstream file(path, std::ios::binary);
  const std::vector<char> bytes((std::istreambuf_iterator<char>(file)), {});
  const auto& header = reinterpret_cast<const Elf64_Ehdr&>(bytes[0]);
  const auto* sections = reinterpret_cast<const Elf64_Shdr*>(&bytes[header.e_shoff]);
  Names names;
  for (int i = 0; i < header.e_shnum; ++i) {
    if (sections[i].sh_type != SHT_SYMTAB) continue;
    const auto* symbols = reinterpret_cast<const Elf64_Sym*>(&bytes[sections[i].sh_offset]);
    for (const auto* symbol = symbols; symbol < symbols + sections[i].sh_size / sizeof(Elf64_Sym); ++symbol)
      if (ELF64_ST_TYPE(symbol->st_info) == STT_FUNC)
        names[symbol->st_value] = &bytes[sections[sections[i].sh_link].sh_offset + symbol->st_name];
  }
  return names;
}

std::string mangled_name(const void* function) {
  Dl_info library;
  if (!dladdr(function, &library)) return "";
  static const Names names = names_in(library.dli_fname);  // all kernels are in one file
  const auto found = names.find(
      static_cast<std::uint64_t>(static_cast<const char*>(function) - static_cast<const char*>(library.dli_fbase)));
  return found == names.end() ? "" : found->second;
}

void remove(std::string& text, const std::string& part) {
  for (std::size_t at; (at = text.find(part)) != std::string::npos;) text.erase(at, part.size());
}

// As in `embed_kernel<Half>`.
std::string readable_name(const void* function) {
  const std::string mangled = mangled_name(function);
  char* demangled = abi::__cxa_demangle(mangled.c_str(), nullptr, nullptr, nullptr);
  std::string name = demangled ? demangled : "a kernel without a name";
  std::free(demangled);
  for (const char* part : {"void ", "distilfast::cuda::", "(anonymous namespace)::"}) remove(name, part);
  return name.substr(0, name.find('('));
}

}  // namespace

// ---- resources

int registers(unsigned threads) {
  const int fit = registers_per_multiprocessor / static_cast<int>(std::max(threads, 1u));
  return std::min(255, fit / 8 * 8);
}

int resident_blocks(unsigned threads, std::size_t shared_bytes) {
  const int warps = static_cast<int>((threads + 31) / 32), of_warp = (registers(threads) * 32 + 255) / 256 * 256;
  return std::min({registers_per_multiprocessor / (warps * of_warp), threads_per_multiprocessor / (warps * 32),
                   blocks_per_multiprocessor,
                   static_cast<int>(shared_per_multiprocessor / (shared_bytes + shared_reserved_per_block))});
}

// ---- launches

KernelLaunch::KernelLaunch(const Kernel& kernel, const dim3& grid, const dim3& block, std::size_t shared_bytes,
                           int device, void** arguments)
    : kernel_(kernel),
      launch_{kernel.name, {grid.x, grid.y, grid.z}, {block.x, 1, 1}, shared_bytes, false, 1, device},
      block_y_(block.y),
      block_z_(block.z),
      parameter_(kernel.parameter_bytes) {
  std::memcpy(parameter_.data(), arguments[0], parameter_.size());
}

void KernelLaunch::set(cudaLaunchAttributeID id, const cudaLaunchAttributeValue& value) {
  if (id == cudaLaunchAttributeCooperative)
    launch_.cooperative = value.cooperative != 0;
  else if (id == cudaLaunchAttributeClusterDimension)
    launch_.cluster = value.clusterDim.x, cluster_y_ = value.clusterDim.y, cluster_z_ = value.clusterDim.z;
  else if (id == cudaLaunchAttributeProgrammaticStreamSerialization)
    overlaps_predecessor = value.programmaticStreamSerializationAllowed != 0;
  else if (id != cudaLaunchAttributeIgnore)
    throw Refusal(cudaErrorNotSupported, "the simulated device does not know this launch attribute");
}

void KernelLaunch::check() const {
  const auto& [x, y, z] = launch_.grid;
  const unsigned threads = launch_.size.x;
  const auto refuse = [&](cudaError_t status, const std::string& why) { throw Refusal(status, kernel_.name + why); };
  if (!kernel_.is_loaded) refuse(cudaErrorInvalidDeviceFunction, " is launched before it is loaded");
  if (x == 0 || y == 0 || z == 0 || y > 65535 || z > 65535 || threads == 0 || threads > 1024)
    refuse(cudaErrorInvalidConfiguration, " has an impossible grid");
  if (block_y_ != 1 || block_z_ != 1 || cluster_y_ != 1 || cluster_z_ != 1)
    refuse(cudaErrorNotSupported, " has blocks or clusters of more than one dimension, which are not simulated");
  if (launch_.cluster == 0 || launch_.cluster > max_cluster)
    refuse(cudaErrorInvalidClusterSize, " asks for more blocks than a cluster can have");
  if (x % launch_.cluster) refuse(cudaErrorInvalidClusterSize, " has a grid that its clusters do not divide");
  if (kernel_.parameter_bytes > max_parameter_bytes)
    refuse(cudaErrorInvalidValue, " has more than " + std::to_string(max_parameter_bytes) + " bytes of parameters");
  if (launch_.shared_bytes > kernel_.max_dynamic_shared)
    refuse(cudaErrorInvalidValue, " takes " + std::to_string(launch_.shared_bytes) +
                                      " bytes of dynamic shared memory where at most " +
                                      std::to_string(kernel_.max_dynamic_shared) + " were requested");
  if (!launch_.cooperative) return;
  const auto most = static_cast<std::size_t>(resident_blocks(threads, launch_.shared_bytes)) * multiprocessors;
  if (std::size_t{x} * y * z > most)
    refuse(cudaErrorCooperativeLaunchTooLarge,
           " is launched cooperatively with more than the " + std::to_string(most) + " blocks that fit the device");
}

Ran KernelLaunch::run(const std::vector<Eras>& unfinished) const {
  Launch launch = launch_;
  launch.unfinished = unfinished;
  return device().run(launch, [this] { kernel_.call(kernel_.function, parameter_.data()); });
}

// ---- all of them

void Kernels::declare(const void* function, std::size_t parameter_bytes, CallKernel call) {
  if (!kernels_.contains(function))
    kernels_.emplace(function, Kernel{function, readable_name(function), parameter_bytes, call});
}

Kernel& Kernels::find(const void* function) {
  const auto found = kernels_.find(function);
  if (found == kernels_.end()) throw Refusal(cudaErrorInvalidDeviceFunction);
  return found->second;
}

}  // namespace cuda_host
