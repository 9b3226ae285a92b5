// Kernels with planted bugs, and two without: what the simulated device must and must not report. And kernels
// whose results are known: products of matrices, and accesses of a known traffic.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstring>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "cuda/device.cuh"
#include "cuda/runtime.h"
#include "misuses.h"

namespace py = pybind11;

namespace distilfast::cuda {
namespace {

constexpr int threads = 64, shared_floats = 2 * threads;

struct Buffers {
  const float* in;  // [threads]
  float* out;       // [threads]
};

float* shared_row() { return reinterpret_cast<float*>(shared_memory()); }
int self() { return static_cast<int>(threadIdx.x); }

// Initialises shared memory, so that only what follows is at fault.
void clear() {
  store(shared_row() + self(), 0.0f);
  store(shared_row() + threads + self(), 0.0f);
  sync_threads();
}

// Each thread passes its value to the opposite one.
void no_fault(Buffers op) {
  store(shared_row() + self(), load(op.in + self()));
  sync_threads();
  store(op.out + self(), load(shared_row() + threads - 1 - self()));
}

void missing_barrier(Buffers op) {
  clear();
  store(shared_row() + self(), load(op.in + self()));
  store(op.out + self(), load(shared_row() + (self() ^ 32)));
}

void missing_warp_barrier(Buffers op) {
  clear();
  store(shared_row() + self(), load(op.in + self()));
  store(op.out + self(), load(shared_row() + (self() ^ 1)));
}

// The second round's writes overtake the first round's reads.
void missing_second_barrier(Buffers op) {
  for (int round = 0; round < 2; ++round) {
    store(shared_row() + self(), load(op.in + self()));
    sync_threads();
    store(op.out + self(), load(shared_row() + threads - 1 - self()));
  }
}

void blocks_race(Buffers op) { store(op.out + self(), load(op.in + self())); }

void global_out_of_bounds(Buffers op) { store(op.out + self() + 1, load(op.in + self())); }

void shared_out_of_bounds(Buffers op) { store(shared_row() + self() * 3, load(op.in + self())); }

void misaligned(Buffers op) {
  const char* at = reinterpret_cast<const char*>(op.in) + 4;
  store(reinterpret_cast<Word4*>(op.out), load(reinterpret_cast<const Word4*>(at)));
}

void unwritten_shared(Buffers op) { store(op.out + self(), load(shared_row() + self())); }

void copy_in(const Buffers& op) {
  clear();
  if (self() < threads / 4) copy_async(shared_row() + 4 * self(), op.in + 4 * self(), 16);
  commit_copies();
}

void early_read(Buffers op) {
  copy_in(op);
  sync_threads();
  store(op.out + self(), load(shared_row() + self()));
  wait_copies<0>();
}

void early_read_of_second_group(Buffers op) {
  copy_in(op);
  if (self() < threads / 4) copy_async(shared_row() + threads + 4 * self(), op.in + 4 * self(), 16);
  commit_copies();
  wait_copies<1>();
  sync_threads();
  store(op.out + self(), load(shared_row() + threads + self()));
}

void copy_without_barrier(Buffers op) {
  copy_in(op);
  wait_copies<0>();
  store(op.out + self(), load(shared_row() + self()));
}

void divergent_shuffle(Buffers op) {
  float value = load(op.in + self());
  if (self() % 32 < 16) value = shuffle_xor(value, 1);
  store(op.out + self(), value);
}

void two_shuffles(Buffers op) {
  float value = load(op.in + self());
  if (self() % 32 < 16)
    value = shuffle_xor(value, 1);
  else
    value = shuffle_xor(value, 2);
  store(op.out + self(), value);
}

// Rows of 64 bytes: every second one lies in the same banks.
void bank_conflict(Buffers op) {
  clear();
  std::uint32_t words[4];
  load_matrices(words, shared_row() + self() % 8 * 16);
  store(op.out + self(), float_of(words[0]));
}

void divergent_barrier(Buffers op) {
  if (self() < 32) sync_threads();
  store(op.out + self(), load(op.in + self()));
}

// ---- clusters of two blocks

void sync_cluster() {
  arrive_cluster();
  wait_cluster();
}

int other_block() { return 1 - cluster_rank(); }

// Each thread passes its value to the opposite one of the other block.
void hand_over(const Buffers& op) {
  store_to_block(other_block(), shared_row() + threads - 1 - self(), load(op.in + self()));
}

void write_first_block(const Buffers& op) {
  if (cluster_rank() == 0) store(op.out + self(), load(shared_row() + self()));
}

void no_fault_in_cluster(Buffers op) {
  arrive_cluster();
  const float value = load(op.in + self());
  wait_cluster();
  store_to_block(other_block(), shared_row() + threads - 1 - self(), value);
  sync_cluster();
  write_first_block(op);
}

void missing_cluster_barrier(Buffers op) {
  clear();
  sync_cluster();
  hand_over(op);
  sync_threads();
  write_first_block(op);
  sync_cluster();
}

// An access between arrival and wait is ordered by neither.
void write_after_arrival(Buffers op) {
  clear();
  sync_cluster();
  arrive_cluster();
  hand_over(op);
  wait_cluster();
  write_first_block(op);
  sync_cluster();
}

// The second round's writes overtake the first round's reads.
void missing_second_cluster_barrier(Buffers op) {
  sync_cluster();
  for (int round = 0; round < 2; ++round) {
    hand_over(op);
    sync_cluster();
    write_first_block(op);
  }
  sync_cluster();
}

void write_before_begin(Buffers op) {
  hand_over(op);
  sync_cluster();
  write_first_block(op);
}

void write_after_end(Buffers op) {
  sync_cluster();
  if (cluster_rank() == 0) return;
  for (int round = 0; round < 3; ++round) sync_threads();  // the first block ends meanwhile
  hand_over(op);
}

void end_before_write(Buffers op) {
  sync_cluster();
  if (cluster_rank() == 0) hand_over(op);
}

void block_out_of_bounds(Buffers op) {
  sync_cluster();
  store_to_block(other_block(), shared_row() + 3 * self(), load(op.in + self()));
  sync_cluster();
}

void no_such_block(Buffers op) {
  sync_cluster();
  store_to_block(cluster_rank() + 1, shared_row() + self(), load(op.in + self()));
  sync_cluster();
}

void absent_block(Buffers op) {
  if (cluster_rank() == 0) sync_cluster();
  if (cluster_rank() == 0) store(op.out + self(), load(op.in + self()));
}

void divergent_cluster_barrier(Buffers op) {
  if (self() % 32 < 16) arrive_cluster();
  wait_cluster();
  store(op.out + self(), load(op.in + self()));
}

void wait_without_arrival(Buffers op) {
  wait_cluster();
  store(op.out + self(), load(op.in + self()));
}

void second_arrival(Buffers op) {
  arrive_cluster();
  arrive_cluster();
  store(op.out + self(), load(op.in + self()));
}

// Only the arrival is between the write and the read, and it orders no lanes.
void arrival_orders_no_lanes(Buffers op) {
  clear();
  store(shared_row() + self(), load(op.in + self()));
  arrive_cluster();
  const float value = load(shared_row() + (self() ^ 1));
  wait_cluster();
  if (cluster_rank() == 0) store(op.out + self(), value);
}

// A cluster's barrier does not order another cluster.
void clusters_race(Buffers op) {
  sync_cluster();
  if (cluster_rank() == 0) store(op.out + self(), load(op.in + self()));
}

struct Fault {
  void (*kernel)(Buffers);
  unsigned blocks, cluster = 1;
};

const std::map<std::string, Fault>& faults() {
  static const std::map<std::string, Fault> all = {
      {"no_fault", {no_fault, 1}},
      {"missing_barrier", {missing_barrier, 1}},
      {"missing_warp_barrier", {missing_warp_barrier, 1}},
      {"missing_second_barrier", {missing_second_barrier, 1}},
      {"blocks_race", {blocks_race, 2}},
      {"global_out_of_bounds", {global_out_of_bounds, 1}},
      {"shared_out_of_bounds", {shared_out_of_bounds, 1}},
      {"misaligned", {misaligned, 1}},
      {"unwritten_shared", {unwritten_shared, 1}},
      {"early_read", {early_read, 1}},
      {"early_read_of_second_group", {early_read_of_second_group, 1}},
      {"copy_without_barrier", {copy_without_barrier, 1}},
      {"divergent_shuffle", {divergent_shuffle, 1}},
      {"two_shuffles", {two_shuffles, 1}},
      {"bank_conflict", {bank_conflict, 1}},
      {"divergent_barrier", {divergent_barrier, 1}},
      {"no_fault_in_cluster", {no_fault_in_cluster, 2, 2}},
      {"missing_cluster_barrier", {missing_cluster_barrier, 2, 2}},
      {"write_after_arrival", {write_after_arrival, 2, 2}},
      {"missing_second_cluster_barrier", {missing_second_cluster_barrier, 2, 2}},
      {"write_before_begin", {write_before_begin, 2, 2}},
      {"write_after_end", {write_after_end, 2, 2}},
      {"end_before_write", {end_before_write, 2, 2}},
      {"block_out_of_bounds", {block_out_of_bounds, 2, 2}},
      {"no_such_block", {no_such_block, 2, 2}},
      {"absent_block", {absent_block, 2, 2}},
      {"divergent_cluster_barrier", {divergent_cluster_barrier, 2, 2}},
      {"wait_without_arrival", {wait_without_arrival, 2, 2}},
      {"second_arrival", {second_arrival, 2, 2}},
      {"arrival_orders_no_lanes", {arrival_orders_no_lanes, 2, 2}},
      {"clusters_race", {clusters_race, 4, 2}},
  };
  return all;
}

// The kernel's output for the input 0, 1, 2, ...
std::vector<float> run_kernel(const Fault& fault) {
  Stream stream;
  std::vector<float> values(threads);
  for (int i = 0; i < threads; ++i) values[static_cast<std::size_t>(i)] = static_cast<float>(i);
  const std::size_t bytes = values.size() * sizeof(float);
  const DeviceBuffer in(bytes), out(bytes);
  upload(in.data(), values.data(), bytes, stream);
  const Buffers op{reinterpret_cast<const float*>(in.data()), reinterpret_cast<float*>(out.data())};
  launch_clusters("a fault", fault.kernel, fault.cluster, {fault.blocks}, threads, shared_floats * sizeof(float),
                  stream, op);
  download(values.data(), out.data(), bytes, stream);
  return values;
}

std::vector<float> run(const std::string& name) { return run_kernel(faults().at(name)); }

// C [16, 8] += A [16, K] Bᵀ, B [8, K], all row-major; 32 bytes of K.
template <class C>
struct Product {
  const std::uint32_t *a, *b;
  C* c;
};

// T: the type of A and B, int8 or as for multiply_matrices.
template <class T, class C>
void multiply_kernel(Product<C> op) {
  const int row = self() / 4, word = self() % 4, row_words = 32 / 4;
  std::uint32_t a[4], b[2];
  for (int i = 0; i < 4; ++i) a[i] = load(op.a + (row + i % 2 * 8) * row_words + i / 2 * 4 + word);
  for (int i = 0; i < 2; ++i) b[i] = load(op.b + row * row_words + i * 4 + word);
  C c[4];
  const auto at = [&](int i) { return op.c + (row + i / 2 * 8) * 8 + word * 2 + i % 2; };
  for (int i = 0; i < 4; ++i) c[i] = load(at(i));
  if constexpr (std::is_same_v<T, std::int8_t>)
    multiply_bytes(c, a, b, c);
  else
    multiply_matrices<T>(c, a, b);
  for (int i = 0; i < 4; ++i) store(at(i), c[i]);
}

template <class T, class C>
std::vector<C> product(const py::bytes& a, const py::bytes& b, std::vector<C> c) {
  const std::string rows = a, columns = b;
  if (rows.size() != 16 * 32 || columns.size() != 8 * 32 || c.size() != 16 * 8) throw std::invalid_argument("sizes");
  Stream stream;
  const DeviceBuffer on_a(rows.size()), on_b(columns.size()), on_c(c.size() * sizeof(C));
  upload(on_a.data(), rows.data(), on_a.bytes(), stream);
  upload(on_b.data(), columns.data(), on_b.bytes(), stream);
  upload(on_c.data(), c.data(), on_c.bytes(), stream);
  const Product<C> op{reinterpret_cast<const std::uint32_t*>(on_a.data()),
                      reinterpret_cast<const std::uint32_t*>(on_b.data()), reinterpret_cast<C*>(on_c.data())};
  launch("a product", multiply_kernel<T, C>, {1}, warp_size, 0, stream, op);
  download(c.data(), on_c.data(), on_c.bytes(), stream);
  return c;
}

std::vector<float> product_of_floats(const std::string& precision, const py::bytes& a, const py::bytes& b,
                                     const std::vector<float>& c) {
  if (precision == "fp16") return product<Half, float>(a, b, c);
  if (precision == "bf16") return product<BFloat16, float>(a, b, c);
  if (precision == "tf32") return product<float, float>(a, b, c);
  throw std::invalid_argument(precision);
}

// Loads and stores whose traffic is known: see test_cuda_accesses.py.
void traffic(Buffers op) {
  store(op.out + self(), 0.0f);
  if (self() >= warp_size) return;
  float* const row = shared_row();
  const int lane = self();
  float sum = load(op.in + lane);               // 4 sectors
  sum += load(op.in + lane / 2);                // 64 bytes, each twice: 2 sectors
  if (lane < 8) sum += load(op.in + 8 * lane);  // 4 bytes of each of 8 sectors, where 1 would hold them
  store(row + lane, sum);                       // a bank for each lane: 1 pass
  if (lane < 4) store(row + 32 * lane, sum);    // one bank: 4 passes, where 1 would do
  sync_warp();
  sum = load(row);                                                     // one word for all lanes: 1 pass
  sum += load(reinterpret_cast<Word4*>(row) + lane % 8).word[0] == 0;  // a quarter of the warp at a time: 4 passes
  store(op.out + lane, sum);
}

std::vector<std::string> names() {
  std::vector<std::string> all;
  for (const auto& [name, fault] : faults()) all.push_back(name);
  return all;
}

}  // namespace
}  // namespace distilfast::cuda

PYBIND11_MODULE(_cuda_faults, module) {
  module.def("names", &distilfast::cuda::names);
  module.def("run", &distilfast::cuda::run);
  module.def("run_traffic", [] { distilfast::cuda::run_kernel({distilfast::cuda::traffic, 1}); });
  module.def("product_of_bytes", &distilfast::cuda::product<std::int8_t, std::int32_t>);
  module.def("product_of_floats", &distilfast::cuda::product_of_floats);
  module.def("misuse", &distilfast::cuda::misuse);
  module.def("misuses", &distilfast::cuda::misuses);
  module.def("ordered_result", &distilfast::cuda::ordered_result);
  module.def("leak", &distilfast::cuda::leak);
}
