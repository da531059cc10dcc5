// What the blocks of a launch left behind, brought together in a fixed order: a tile's moments become a batch
// norm's mean and deviation, a tile's sums its backward's coefficients. Sums of sums are in float64: there are few
// of them. A block does it for ACROSS channels at a time (every network here has multiples of that), LANES threads
// for each.
//
// Either a launch of its own does it (finish.cu), or whichever block of the launch before comes last: there is no
// saying which block that is, but it adds up the same numbers in the same order. Where things lie is told by a
// table in the GPU's memory, the same for both.

constexpr int LANES = 16, ACROSS = THREADS / LANES;

struct MomentsToFinish {  // partial is (groups, tiles, channels): mean, sum of squared deviations
  const float *gamma, *beta;
  float4* norm;  // (groups, channels)
  float *running_mean, *running_var;
  long long groups, tiles, pixels_of_tile, pixels_of_group, channels;
  double eps, momentum;
};

struct SumsToFinish {  // partial is (groups, tiles, channels): sum dz, sum dz x^
  const float4* norm;     // (groups, channels)
  float4* affine;         // (groups, channels)
  float *dgamma, *dbeta;
  long long groups, tiles, pixels_of_group, channels;
};

// Sum what the lanes of each channel have; every lane gets the total.
__device__ __forceinline__ double sum_lanes(double mine, double (*shared)[ACROSS]) {
  const int lane = threadIdx.x / ACROSS, channel = threadIdx.x % ACROSS;
  __syncthreads();  // everybody has read the sum before this one
  shared[lane][channel] = mine;
  __syncthreads();
  double total = 0;
  for (int i = 0; i < LANES; i++) total += shared[i][channel];
  return total;
}

// A group's mean and variance of each channel from its tiles' means and sums of squared deviations, by the rule
// that m2 of a union is the sum of all m2 plus the deviations of the tiles' means (moments.cuh, for many at once).
// The means are taken relative to the first of them, the pilot: what is left is of the size of the deviation, so
// that one pass does, in float64, without a digit lost.
//
//     d_i = mean_i - pilot,  d = sum count_i d_i / count,  mean = pilot + d
//     m2  = sum (m2_i + count_i d_i^2) - count d^2
//
// `norm` gets mean, rstd, gamma and beta side by side, as everybody reads them. Group 0 is folded into the running
// statistics, the variance unbiased.
__device__ __forceinline__ void finish(const MomentsToFinish& m, const float2* partial, int first_channel,
                                       double (*shared)[ACROSS]) {
  const int c = first_channel + threadIdx.x % ACROSS, lane = threadIdx.x / ACROSS;
  const int channels = m.channels, tiles = m.tiles, pixels = m.pixels_of_group, full = m.pixels_of_tile;
  for (int group = 0; group < m.groups; group++) {
    const float2* own = partial + group * tiles * channels + c;
    const double pilot = __ldcg(own).x;
    double sum = 0, m2 = 0;
#pragma unroll 8
    for (int i = lane; i < tiles; i += LANES) {
      const float2 tile = __ldcg(own + i * channels);
      const double d = tile.x - pilot;
      const int count = min(full, pixels - i * full);
      sum += count * d;
      m2 += tile.y + count * d * d;
    }
    const double d = sum_lanes(sum, shared) / pixels, mean = pilot + d;
    const double var = sum_lanes(m2, shared) / pixels - d * d;
    if (lane != 0) continue;
    m.norm[group * channels + c] = {(float)mean, (float)(1 / sqrt(var + m.eps)), m.gamma[c], m.beta[c]};
    if (group != 0) continue;
    m.running_mean[c] += m.momentum * (mean - m.running_mean[c]);
    m.running_var[c] += m.momentum * (var * pixels / max(1, pixels - 1) - m.running_var[c]);
  }
}

// Batch norm's backward over m pixels of a group and channel,
//
//     dx = gamma rstd (dz - sum dz / m - x^ sum(dz x^) / m) = a dz + b (x - mean) + c
//     a = gamma rstd,   b = -a rstd sum(dz x^) / m,   c = -a sum dz / m
//
// and, over all groups, dbeta = sum dz and dgamma = sum(dz x^). `affine` gets a, b, c and mean side by side.
__device__ __forceinline__ void finish(const SumsToFinish& s, const float2* partial, int first_channel,
                                       double (*shared)[ACROSS]) {
  const int c = first_channel + threadIdx.x % ACROSS, lane = threadIdx.x / ACROSS;
  const int channels = s.channels, tiles = s.tiles;
  double total = 0, total_along = 0;
  for (int group = 0; group < s.groups; group++) {
    const float2* own = partial + group * tiles * channels + c;
    double sum = 0, along = 0;
#pragma unroll 8
    for (int i = lane; i < tiles; i += LANES) {
      const float2 tile = __ldcg(own + i * channels);
      sum += tile.x;
      along += tile.y;
    }
    sum = sum_lanes(sum, shared);
    along = sum_lanes(along, shared);
    total += sum;
    total_along += along;
    if (lane != 0) continue;
    const float4 by = s.norm[group * channels + c];
    const double a = (double)by.z * by.y;
    s.affine[group * channels + c] = {(float)a, (float)(-a * by.y * along / s.pixels_of_group),
                                      (float)(-a * sum / s.pixels_of_group), by.x};
  }
  if (lane != 0) return;
  s.dbeta[c] = (float)total;
  s.dgamma[c] = (float)total_along;
}

// The end of a kernel whose blocks have left partial results of `channels` channels from `first_channel` on: the
// last block of these channels to come here finishes them. When all threads of a block have written (the barrier), one
// of them makes that visible to all (the fence) and counts the block in; whoever finds all others counted may, behind
// a fence again, read what they wrote. A fence must stand beside the counting, in the same thread: for the memory
// model the two are one. The count is put back to zero for the next launch.
template <class ToFinish>
__device__ __forceinline__ void finish_if_last(const ToFinish* of, const float2* partial, int* arrivals,
                                               int first_channel, int channels) {
  __shared__ double shared[LANES][ACROSS];
  __shared__ bool last;
  if (!of) return;
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    last = atomicAdd(arrivals + blockIdx.y, 1) == gridDim.x - 1;
    __threadfence();
    if (last) arrivals[blockIdx.y] = 0;
  }
  __syncthreads();
  if (!last) return;
  for (int c = first_channel; c < first_channel + channels; c += ACROSS) finish(*of, partial, c, shared);
}
