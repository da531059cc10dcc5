// Sums over the pixels of a block's tile, for each channel, in a fixed order: over the lanes of a warp that have
// the same four channels, then over the warps. Thread t has channels 4 (t % (CHANNELS / 4)) and the three after.

template <int CHANNELS> __device__ __forceinline__ float4 sum_over_lanes(float4 mine) {
  for (int other = CHANNELS / 4; other < 32; other *= 2) {
    const float4 theirs = {__shfl_xor_sync(0xffffffff, mine.x, other), __shfl_xor_sync(0xffffffff, mine.y, other),
                           __shfl_xor_sync(0xffffffff, mine.z, other), __shfl_xor_sync(0xffffffff, mine.w, other)};
    mine = mine + theirs;
  }
  return mine;
}

template <int CHANNELS>
__device__ __forceinline__ float4 sum_over_tile(float4 mine, float4 (*shared)[CHANNELS / 4]) {
  constexpr int QUADS = CHANNELS / 4;
  mine = sum_over_lanes<CHANNELS>(mine);
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

// The two sums over pixels of a gradient dz that batch norm's backward needs.
struct GradientSums {
  float4 sum, along;  // of dz, and of dz x^
};

// Write a tile's two sums, to be finished by finish.cuh.
template <int CHANNELS>
__device__ __forceinline__ void write_sums(float2* partial, const GradientSums& mine, const Tile& tile, int channel,
                                           int channels, float4 (*shared)[CHANNELS / 4]) {
  const float4 sum = sum_over_tile<CHANNELS>(mine.sum, shared), along = sum_over_tile<CHANNELS>(mine.along, shared);
  write_pair<CHANNELS>(partial, sum, along, tile, channel, channels);
}

// The end of a backward kernel: from the gradient v of an activation relu(bn(t)) it computes dz, which is v where the
// ReLU let the signal through and 0 elsewhere. It returns the thread's share of the sums. A thread fetches the values
// of two pixels before it uses either.
//
// The ReLU let the signal through where `gate` > 0, if the activation is in memory as `gate` (original units, whose
// ReLU stands behind the addition); otherwise where bn(t) > 0, computed again with the same bits.
template <int CHANNELS, class Gradient>
__device__ __forceinline__ GradientSums pass_gate(const Stored* t, const float4* norm, const Stored* gate,
                                                  int t_format, Stored* dz, int dz_format, const Tile& tile, int rows,
                                                  int first_channel, int channels, Gradient gradient) {
  constexpr int QUADS = CHANNELS / 4, STEP = THREADS / QUADS;
  const int c = first_channel + threadIdx.x % QUADS * 4, end = min(rows, tile.end - tile.first);
  const Norms by = load_norms(norm, tile.group * channels + c);
  GradientSums found = {};
  for (int first = threadIdx.x / QUADS; first < end; first += 2 * STEP) {
    uint4 x[2], z[2];
    float4 v[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const int row = first + i * STEP, at = (tile.first + row) * channels + c;
      if (row >= end) break;
      x[i] = fetch(t, at, t_format);
      if (gate) z[i] = fetch(gate, at, t_format);
      v[i] = gradient(row, c);
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const int row = first + i * STEP;
      if (row >= end) break;
      const float4 s = decode(x[i], t_format), a = gate ? decode(z[i], t_format) : bn(s, by);
      float4 d = {a.x > 0 ? v[i].x : 0, a.y > 0 ? v[i].y : 0, a.z > 0 ? v[i].z : 0, a.w > 0 ? v[i].w : 0};
      d = store(dz, (tile.first + row) * channels + c, dz_format, d);
      found.sum = found.sum + d;
      found.along = found.along + d * normalise(s, by);
    }
  }
  return found;
}
