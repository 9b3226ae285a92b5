// The launcher of linear_add_layer_norm.cuh.
#include "cuda/linear_add_layer_norm.cuh"

namespace distilfast::cuda {
namespace {

template <class T, class Tile>
__global__ void __launch_bounds__(Tile::threads, 1) linear_add_layer_norm_kernel(LinearAddLayerNorm op) {
  linear_add_layer_norm_tile<T, Tile>(op, static_cast<int>(blockIdx.y));
}

template <class Tile>
constexpr int cluster_for(int width) {
  return divide_up(width, Tile::columns);
}

template <class T, class Tile>
bool fits(int width) {
  const int cluster = cluster_for<Tile>(width);
  if (std::is_same_v<Tile, CtaTile128x192> && !has_large_tile<T>) return false;
  return cluster <= max_cluster_blocks() &&
         static_cast<std::size_t>(cluster_shared_bytes<T, Tile>(cluster)) <= max_shared_bytes();
}

// CtaTile64x96 while the grid is at most two blocks for each multiprocessor: more, shorter blocks fill the device.
// Beyond that CtaTile128x192, which reads x half as often and W half as often.
template <class T>
bool prefers_large_tile(int width, int bucket_rows) {
  if (!fits<T, CtaTile64x96>(width) || !fits<T, CtaTile128x192>(width)) return fits<T, CtaTile128x192>(width);
  return divide_up(bucket_rows, CtaTile64x96::rows) * cluster_for<CtaTile64x96>(width) > 2 * multiprocessors();
}

template <class T, class Tile>
void launch_tile(const LinearAddLayerNorm& op, int bucket_rows, Stream& stream) {
  const int cluster = cluster_for<Tile>(op.linear.packed.n);
  const Grid grid{static_cast<unsigned>(cluster), static_cast<unsigned>(divide_up(bucket_rows, Tile::rows))};
  launch_clusters("linear_add_layer_norm", linear_add_layer_norm_kernel<T, Tile>, grid.x, grid, Tile::threads,
                  static_cast<std::size_t>(cluster_shared_bytes<T, Tile>(cluster)), stream, op);
}

}  // namespace

const char* linear_add_layer_norm_unsupported_reason(Precision precision, int width) {
  if (precision == Precision::int8) return "linear_add_layer_norm does not support int8.";
  if (width % mma_columns) return "linear_add_layer_norm needs a width that is a multiple of 8.";
  bool fit = false;
  with_element(precision, [&]<class T>() { fit = fits<T, CtaTile64x96>(width) || fits<T, CtaTile128x192>(width); });
  return fit ? nullptr : "A row does not fit a cluster of blocks.";
}

void linear_add_layer_norm(const LinearAddLayerNorm& op, int bucket_rows, Stream& stream) {
  with_element(op.linear.precision, [&]<class T>() {
    if constexpr (has_large_tile<T>)
      if (prefers_large_tile<T>(op.linear.packed.n, bucket_rows))
        return launch_tile<T, CtaTile128x192>(op, bucket_rows, stream);
    launch_tile<T, CtaTile64x96>(op, bucket_rows, stream);
  });
}

void load_linear_add_layer_norm(Precision precision) {
  with_element(precision, [&]<class T>() {
    load_kernel("linear_add_layer_norm", linear_add_layer_norm_kernel<T, CtaTile64x96>);
    if constexpr (has_large_tile<T>)
      load_kernel("linear_add_layer_norm", linear_add_layer_norm_kernel<T, CtaTile128x192>);
  });
}

}  // namespace distilfast::cuda
