// The launcher of linear.cuh, which chooses the CTA tile for a bucket of rows.
#include "cuda/linear/linear.cuh"

#include "cuda/element.cuh"

namespace distilfast::cuda {
namespace {

// Calls run(tile) with the CTA tile for a bucket of rows and this format of W.
template <class W, class Run>
auto with_tile(int bucket_rows, Run run) {
  if constexpr (!std::is_same_v<W, W8A16>)
    if (bucket_rows > CtaTile64x32::rows) return with_large_tile(bucket_rows, run);
  return with_small_tile(bucket_rows, run);
}

bool is_w8a8(Precision precision, int bucket_rows) {
  return precision == Precision::int8 && bucket_rows > max_w8a16_rows;
}
static_assert(max_w8a16_rows == CtaTile64x32::rows);

template <class T, class W, class Tile>
__global__ void __launch_bounds__(Tile::threads, StageSizes<W, Tile>::blocks) linear_kernel(Linear op) {
  linear_tile<T, W, Tile>(op, static_cast<int>(blockIdx.x), static_cast<int>(blockIdx.y), static_cast<int>(blockIdx.z),
                          [] {
                            wait_for_predecessor();
                            release_dependents();
                          });
}

template <class T, class W, class Tile>
void launch_linear(const Linear& op, int bucket_rows, Stream& stream) {
  const Grid grid{static_cast<unsigned>(divide_up(op.packed.n, Tile::columns)),
                  static_cast<unsigned>(divide_up(bucket_rows, Tile::rows)), static_cast<unsigned>(op.split_k)};
  launch("linear", linear_kernel<T, W, Tile>, grid, Tile::threads, StageSizes<W, Tile>::shared_bytes, stream, op);
}

}  // namespace

int linear_split_k(Precision precision, int n, int k, int bucket_rows) {
  if (is_w8a8(precision, bucket_rows)) return linear_w8a8_split_k(n, k, bucket_rows);
  return with_types(precision, [&]<class T, class W>() {
    return with_tile<W>(bucket_rows,
                        [&]<class Tile>(Tile) { return split_k_to_fill<Tile>(n, k_tiles_in<T, W>(k), bucket_rows); });
  });
}

void linear(const Linear& op, int bucket_rows, Stream& stream) {
  if (is_w8a8(op.precision, bucket_rows)) return linear_w8a8(op, bucket_rows, stream);
  with_types(op.precision, [&]<class T, class W>() {
    with_tile<W>(bucket_rows, [&]<class Tile>(Tile) { launch_linear<T, W, Tile>(op, bucket_rows, stream); });
  });
}

void load_linear(Precision precision) {
  load_pack_linear(precision);
  with_types(precision, [&]<class T, class W>() {
    load_kernel("linear", linear_kernel<T, W, CtaTile16x16>);
    load_kernel("linear", linear_kernel<T, W, CtaTile64x32>);
    if constexpr (std::is_same_v<W, W8A16>) {
      load_linear_w8a8();
    } else {
      load_kernel("linear", linear_kernel<T, W, CtaTile64x64>);
      load_kernel("linear", linear_kernel<T, W, CtaTile128x128>);
    }
  });
}

}  // namespace distilfast::cuda
