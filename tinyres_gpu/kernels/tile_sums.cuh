// Sums over the pixels of a block's tile, for each channel, in a fixed order: over the lanes of a warp that have
// the same four channels, then over the warps. Thread t has channels 4 (t % (CHANNELS / 4)) and the three after.

template <int CHANNELS>
__device__ __forceinline__ float4 sum_over_tile(float4 mine, float4 (*shared)[CHANNELS / 4]) {
  constexpr int QUADS = CHANNELS / 4;
  for (int other = QUADS; other < 32; other *= 2) {
    const float4 theirs = {__shfl_xor_sync(0xffffffff, mine.x, other), __shfl_xor_sync(0xffffffff, mine.y, other),
                           __shfl_xor_sync(0xffffffff, mine.z, other), __shfl_xor_sync(0xffffffff, mine.w, other)};
    mine = mine + theirs;
  }
  __syncthreads();  // everybody has read the sum before this one
  if (threadIdx.x % 32 < QUADS) shared[threadIdx.x / 32][threadIdx.x % 32] = mine;
  __syncthreads();
  float4 total = shared[0][threadIdx.x % QUADS];
  for (int warp = 1; warp < THREADS / 32; warp++) total = total + shared[warp][threadIdx.x % QUADS];
  return total;
}

// Two numbers of a tile for each channel, to be finished by finish.cuh: partial is (groups, tiles, channels).
template <int CHANNELS>
__device__ __forceinline__ void write_pair(float2* partial, float4 first, float4 second, const Tile& tile, int channel,
                                           int channels) {
  if (threadIdx.x >= CHANNELS / 4) return;
  float2* to = partial + (tile.group * tile.tiles + tile.number) * channels + channel;
  to[0] = {first.x, second.x};
  to[1] = {first.y, second.y};
  to[2] = {first.z, second.z};
  to[3] = {first.w, second.w};
}

// The end of a backward kernel: the gradient v of an activation relu(bn(t)) becomes dz = v where the ReLU let the
// signal through, and with it the tile's share of sum dz and sum dz x^ that batch norm's backward needs.
//
// Whether the ReLU let it through: `gate` > 0 where the activation was written down (original units, whose ReLU
// stands behind the addition), else bn(t) > 0, computed again with the same bits.
template <int CHANNELS, class Gradient>
__device__ __forceinline__ void pass_gate(const Stored* t, const float4* norm, const Stored* gate, int t_format,
                                          Stored* dz, int dz_format, float2* partial, const Tile& tile, int rows,
                                          int first_channel, int channels, float4 (*shared)[CHANNELS / 4],
                                          Gradient gradient) {
  constexpr int QUADS = CHANNELS / 4;
  const int c = first_channel + threadIdx.x % QUADS * 4;
  const Norms by = load_norms(norm, tile.group * channels + c);
  float4 sum = {0, 0, 0, 0}, along = {0, 0, 0, 0};
  for (int i = threadIdx.x / QUADS; i < rows && tile.first + i < tile.end; i += THREADS / QUADS) {
    const int at = (tile.first + i) * channels + c;
    const float4 x = load(t, at, t_format), z = gate ? load(gate, at, t_format) : bn(x, by);
    float4 v = gradient(i, c);
    v = {z.x > 0 ? v.x : 0, z.y > 0 ? v.y : 0, z.z > 0 ? v.z : 0, z.w > 0 ? v.w : 0};
    v = store(dz, at, dz_format, v);
    sum = sum + v;
    along = along + v * normalise(x, by);
  }
  sum = sum_over_tile<CHANNELS>(sum, shared);
  along = sum_over_tile<CHANNELS>(along, shared);
  write_pair<CHANNELS>(partial, sum, along, tile, c, channels);
}
