// The launch of linear_add_layer_norm.cuh.
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
  if (std::is_same_v<Tile, Wide> && !has_wide<T>) return false;
  return cluster <= most_cluster_blocks() &&
         static_cast<std::size_t>(cluster_shared_bytes<T, Tile>(cluster)) <= most_shared_bytes();
}

// Narrow while two of its blocks for each multiprocessor are all there are: they are more, and each is done sooner.
// Wide behind that: it reads x half as often and W half as often.
template <class T>
bool is_wide(int width, int most_rows) {
  if (!fits<T, Narrow>(width) || !fits<T, Wide>(width)) return fits<T, Wide>(width);
  return divide_up(most_rows, Narrow::rows) * cluster_for<Narrow>(width) > 2 * multiprocessors();
}

template <class T, class Tile>
void launch_tile(const LinearAddLayerNorm& op, int most_rows, Stream& stream) {
  const int cluster = cluster_for<Tile>(op.linear.packed.n);
  const Grid grid{static_cast<unsigned>(cluster), static_cast<unsigned>(divide_up(most_rows, Tile::rows))};
  launch_clusters("linear_add_layer_norm", linear_add_layer_norm_kernel<T, Tile>, grid.x, grid, Tile::threads,
                  static_cast<std::size_t>(cluster_shared_bytes<T, Tile>(cluster)), stream, op);
}

}  // namespace

const char* linear_add_layer_norm_misfit(Precision precision, int width) {
  if (precision == Precision::int8) return "linear_add_layer_norm has no weights of 8 bits.";
  if (width % unit_columns) return "linear_add_layer_norm has only widths that are a multiple of 8.";
  bool fit = false;
  with_element(precision, [&]<class T>() { fit = fits<T, Narrow>(width) || fits<T, Wide>(width); });
  return fit ? nullptr : "A row is wider than a cluster of blocks.";
}

void linear_add_layer_norm(const LinearAddLayerNorm& op, int most_rows, Stream& stream) {
  with_element(op.linear.precision, [&]<class T>() {
    if constexpr (has_wide<T>)
      if (is_wide<T>(op.linear.packed.n, most_rows)) return launch_tile<T, Wide>(op, most_rows, stream);
    launch_tile<T, Narrow>(op, most_rows, stream);
  });
}

void load_linear_add_layer_norm(Precision precision) {
  with_element(precision, [&]<class T>() {
    load_kernel("linear_add_layer_norm", linear_add_layer_norm_kernel<T, Narrow>);
    if constexpr (has_wide<T>) load_kernel("linear_add_layer_norm", linear_add_layer_norm_kernel<T, Wide>);
  });
}

}  // namespace distilfast::cuda
