// What ldtilecfg reads: the shapes of the tile unit's eight tiles.
#pragma once

namespace distilfast {
namespace {

struct alignas(64) TileConfig {
  unsigned char palette = 0;  // 1: the only one there is; 0: no tiles
  unsigned char start_row = 0;
  unsigned char reserved[14] = {};
  unsigned short bytes[16] = {};  // of a row, for each tile
  unsigned char rows[16] = {};
};

// All tiles as large as they can be: 16 rows of 64 bytes.
constexpr TileConfig full_tiles() {
  TileConfig config;
  config.palette = 1;
  for (int tile = 0; tile < 8; ++tile) config.bytes[tile] = 64, config.rows[tile] = 16;
  return config;
}

}  // namespace
}  // namespace distilfast
