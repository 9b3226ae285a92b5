// The simulated tile unit as the Python module _tile_unit, for tests of the unit itself.
//
// A tile is uint8 [rows, bytes of a row], rows up to 16 and bytes up to 64; its shape is what it is configured to.
#include "tile_unit.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

namespace py = pybind11;

namespace distilfast {
namespace {

using Bytes = py::array_t<unsigned char, py::array::c_style>;

void shape(TileConfig& config, int tile, const Bytes& like) {
  config.rows[tile] = static_cast<unsigned char>(like.shape(0));
  config.bytes[tile] = static_cast<unsigned short>(like.shape(1));
}

// accumulators + a b, in tiles of these shapes.
template <class Add>
Bytes product(const Bytes& accumulators, const Bytes& a, const Bytes& b, Add add) {
  TileConfig config;
  config.palette = 1;
  shape(config, 0, accumulators), shape(config, 4, a), shape(config, 6, b);
  TileUnit::configure(config);
  TileUnit::load<0>(accumulators.data(), accumulators.shape(1));
  TileUnit::load<4>(a.data(), a.shape(1));
  TileUnit::load<6>(b.data(), b.shape(1));
  add();
  Bytes out({accumulators.shape(0), accumulators.shape(1)});
  TileUnit::store<0>(out.mutable_data(), out.shape(1));
  TileUnit::release();
  return out;
}

Bytes bf16_product(const Bytes& accumulators, const Bytes& a, const Bytes& b) {
  return product(accumulators, a, b, [] { TileUnit::add_bf16_products<0, 4, 6>(); });
}
Bytes int8_product(const Bytes& accumulators, const Bytes& a, const Bytes& b) {
  return product(accumulators, a, b, [] { TileUnit::add_int8_products<0, 4, 6>(); });
}

// The 64 bytes that ldtilecfg reads.
void configure(const Bytes& bytes) {
  TileConfig config;
  if (bytes.size() != sizeof config) throw std::invalid_argument("A configuration has 64 bytes.");
  std::memcpy(&config, bytes.data(), sizeof config);
  TileUnit::configure(config);
}

void zero_first_and_last() { TileUnit::zero<0>(), TileUnit::zero<7>(); }
void multiply_unwritten() {
  TileUnit::zero<0>(), TileUnit::zero<4>();
  TileUnit::add_bf16_products<0, 4, 6>();
}

}  // namespace
}  // namespace distilfast

PYBIND11_MODULE(_tile_unit, module) {
  using namespace distilfast;
  module.def("bf16_product", &bf16_product);
  module.def("int8_product", &int8_product);
  module.def("configure", &configure);
  module.def("release", &TileUnit::release);
  module.def("zero_first_and_last", &zero_first_and_last);
  module.def("multiply_unwritten", &multiply_unwritten);
}
