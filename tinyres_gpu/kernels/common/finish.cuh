// What the blocks of a launch left behind, brought together in a fixed order: a tile's moments become a batch
// norm's mean and deviation, a tile's sums its backward's coefficients. Sums of sums are in float64: there are few
// of them. It is a chain of waiting for memory and for each other, so a block does all its channels and groups at once:
// each has a column of threads, the lanes, among which its tiles are dealt out.
//
// Either a launch of its own does it (finish.cu), or whichever block of the launch before comes last: there is no
// saying which block that is, but it adds up the same numbers in the same order. Where things lie is told by a
// table in the GPU's memory, the same for both.

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

// Where thread t is: lane t / columns of column t % columns. A column is a channel of a group; where there are more
// groups than threads for them, they take turns.
struct Columns {
  int channels, groups, columns, lanes, column, lane;

  __device__ __forceinline__ Columns(int channels, int all_groups) : channels(channels), groups(1) {
    while (groups < all_groups && 2 * groups * channels <= THREADS) groups *= 2;
    columns = channels * groups;
    lanes = THREADS / columns;
    column = threadIdx.x % columns;
    lane = threadIdx.x / columns;
  }
  // Sum what the lanes of each column have; every lane gets the total.
  __device__ __forceinline__ double sum(double mine, double* shared) const {
    __syncthreads();  // everybody has read the sum before this one
    shared[threadIdx.x] = mine;
    __syncthreads();
    double total = 0;
    for (int i = 0; i < lanes; i++) total += shared[i * columns + column];
    return total;
  }
};

// A group's mean and variance of each channel from its tiles' means and sums of squared deviations, by the rule
// that m2 of a union is the sum of all m2 plus the deviations of the tiles' means (moments.cuh, for many at once).
// The means are taken relative to the first of them, the pilot: what is left is of the size of the deviation, so
// that one pass does, in float64, without a digit lost.
//
//     d_i = mean_i - pilot,  d = sum count_i d_i / count,  mean = pilot + d
//     m2  = sum (m2_i + count_i d_i^2) - count d^2
//
// `norm` gets mean, rstd, gamma and beta side by side, as everybody reads them. The running
// statistics move towards group 0's, the variance unbiased.
__device__ __forceinline__ void finish(const MomentsToFinish& m, const float2* partial, int first_channel,
                                       int channels_of_block, double* shared) {
  const Columns at(channels_of_block, m.groups);
  const int c = first_channel + at.column % channels_of_block, channels = m.channels, tiles = m.tiles;
  const double full = m.pixels_of_tile, pixels = m.pixels_of_group, rest = pixels - (tiles - 1) * full;
  const float gamma = m.gamma[c], beta = m.beta[c];
  for (int first = 0; first < m.groups; first += at.groups) {
    const int group = first + at.column / channels_of_block;
    const bool there = group < m.groups;
    const float2* own = partial + (there ? group : 0) * tiles * channels + c;
    const float pilot = __ldcg(own).x;
    double sum = 0, m2 = 0;
#pragma unroll 8
    for (int i = at.lane; i < tiles; i += at.lanes) {
      const float2 tile = __ldcg(own + i * channels);
      const double d = tile.x - pilot, count = i == tiles - 1 ? rest : full;
      sum += count * d;
      m2 += tile.y + count * d * d;
    }
    const double d = at.sum(sum, shared) / pixels, mean = pilot + d, var = at.sum(m2, shared) / pixels - d * d;
    if (at.lane != 0 || !there) continue;
    m.norm[group * channels + c] = {(float)mean, (float)(1 / sqrt(var + m.eps)), gamma, beta};
    if (group != 0) continue;
    m.running_mean[c] += m.momentum * (mean - m.running_mean[c]);
    m.running_var[c] += m.momentum * (var * pixels / max(1., pixels - 1) - m.running_var[c]);
  }
}

// Batch norm's backward over m pixels of a group and channel,
//
//     dx = gamma rstd (dz - sum dz / m - x^ sum(dz x^) / m) = a dz + b (x - mean) + c
//     a = gamma rstd,   b = -a rstd sum(dz x^) / m,   c = -a sum dz / m
//
// and, over all groups, dbeta = sum dz and dgamma = sum(dz x^). `affine` gets a, b, c and mean side by side.
__device__ __forceinline__ void finish(const SumsToFinish& s, const float2* partial, int first_channel,
                                       int channels_of_block, double* shared) {
  const Columns at(channels_of_block, s.groups);
  const int c = first_channel + at.column % channels_of_block, channels = s.channels, tiles = s.tiles;
  double total = 0, total_along = 0;  // of the channel's column
  for (int first = 0; first < s.groups; first += at.groups) {
    const int group = first + at.column / channels_of_block;
    const bool there = group < s.groups;
    const float2* own = partial + (there ? group : 0) * tiles * channels + c;
    double sum = 0, along = 0;
#pragma unroll 8
    for (int i = at.lane; i < tiles; i += at.lanes) {
      const float2 tile = __ldcg(own + i * channels);
      sum += tile.x;
      along += tile.y;
    }
    sum = at.sum(sum, shared);
    along = at.sum(along, shared);
    if (!there) sum = along = 0;
    total += sum;
    total_along += along;
    if (at.lane != 0 || !there) continue;
    const float4 by = s.norm[group * channels + c];
    const double a = (double)by.z * by.y;
    s.affine[group * channels + c] = {(float)a, (float)(-a * by.y * along / s.pixels_of_group),
                                      (float)(-a * sum / s.pixels_of_group), by.x};
  }
  const double parts[2] = {total, total_along};
#pragma unroll
  for (int i = 0; i < 2; i++) {
    __syncthreads();  // everybody has read the sum before this one
    if (at.lane == 0) shared[at.column] = parts[i];
    __syncthreads();
    if (threadIdx.x >= channels_of_block) continue;
    double all = 0;
    for (int group = 0; group < at.groups; group++) all += shared[group * channels_of_block + threadIdx.x];
    (i == 0 ? s.dbeta : s.dgamma)[c] = (float)all;
  }
}

// Count a block in: what its threads wrote before the last barrier is there for whoever sees the count and fences.
#ifndef TINYRES_EMULATOR
__device__ __forceinline__ int count_in(int* arrivals) {
  int before;
  asm volatile("atom.release.gpu.add.s32 %0, [%1], 1;" : "=r"(before) : "l"(arrivals) : "memory");
  return before;
}
#endif

// The end of a kernel whose blocks have left partial results of `channels` channels from `first_channel` on: the
// last block of these channels to come here finishes them. When all threads of a block have written (the barrier), one
// of them counts the block in; whoever finds all others counted may, behind a fence, read what they wrote. The fence
// stands beside the counting, in the same thread: for the memory model the two are one. (A fence empties the
// processor's first cache, so nobody else makes one.) The count is put back to zero for the next launch.
template <class ToFinish>
__device__ __forceinline__ void finish_if_last(const ToFinish* of, const float2* partial, int* arrivals,
                                               int first_channel, int channels) {
  __shared__ double shared[THREADS];
  __shared__ bool last;
  if (!of) return;
  __syncthreads();
  if (threadIdx.x == 0) {
    last = count_in(arrivals + blockIdx.y) == gridDim.x - 1;
    if (last) {
      __threadfence();
      arrivals[blockIdx.y] = 0;
    }
  }
  __syncthreads();
  if (last) finish(*of, partial, first_channel, channels, shared);
}
