// Which outputs a block of a convolution computes.
//
// A tile of pixels never lies in two groups of batch norm: it is normalised by the moments of one group, and the
// moments and sums that a block finds in its tile (tile_sums.cuh) belong to one group.

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
