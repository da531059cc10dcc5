// Which outputs a block of a convolution computes, and the moments of what it computed.
//
// Tiles of pixels never straddle two groups of batch norm, so that the moments of a tile belong to one group and
// the next batch norm needs no pass of its own over y: it merges the tiles' moments, which lie in `partial` as
// (3, groups, tiles of a group, channels): counts, means, sums of squared deviations.

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

// One thread a channel: merge what `contributors` threads or warps found, in order. All have passed a barrier.
template <int CHANNELS>
__device__ __forceinline__ void write_moments(const Moments (*found)[CHANNELS], int contributors, double* partial,
                                              const Tile& tile, int first_channel, int channels) {
  const int c = first_channel + threadIdx.x;
  if (threadIdx.x >= CHANNELS || c >= channels) return;
  Moments all = {0, 0, 0};
  for (int i = 0; i < contributors; i++) all = merge(all, found[i][threadIdx.x]);
  const int plane = tile.groups * tile.tiles * channels, to = (tile.group * tile.tiles + tile.number) * channels + c;
  partial[to] = all.count;
  partial[plane + to] = all.mean;
  partial[2 * plane + to] = all.m2;
}
