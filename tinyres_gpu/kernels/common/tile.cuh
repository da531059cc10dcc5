// Which outputs a block of a convolution computes.
//
// Tiles of pixels never straddle two groups of batch norm: a tile is normalised by the moments of one group, and
// what a block finds of its tile (tile_sums.cuh) belongs to one group.

struct Tile {
  int first, end;                     // pixels: first ... first + PIXELS, but below end
  int group, groups, number, tiles;  // tile `number` of the group's `tiles`
};

__device__ __forceinline__ Tile find_tile(int pixels_of_tile, int images, int images_per_group, int pixels_of_image) {
  const int pixels = images_per_group * pixels_of_image, tiles = (pixels + pixels_of_tile - 1) / pixels_of_tile;
  const int group = blockIdx.x / tiles, number = blockIdx.x % tiles;
  return {group * pixels + number * pixels_of_tile, (group + 1) * pixels, group, images / images_per_group, number,
          tiles};
}
