// The partial results of the blocks of a launch, merged in a fixed order. The moments of the tiles become a batch
// norm's mean and deviation; the sums of the tiles become the coefficients of its backward pass. Sums of sums are in
// float64: there are few of them. Merging is a chain of waits for memory and for other threads, so a block does all
// its channels and groups at once. Each channel of a group has a column of threads, the lanes, which share its tiles.
//
// Either a separate launch merges (finish.cu), or the last block of the launch that wrote the partial results. Nobody
// knows in advance which block will be the last, but any block adds up the same numbers in the same order. In both
// cases a table in the GPU's memory has the addresses.

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

// The place of thread t: lane t / columns of column t % columns. A column is a channel of a group. If there are not
// enough threads for all groups at once, the groups take turns.
struct Columns {
  int channels, groups, columns, lanes, column, lane;

  __device__ __forceinline__ Columns(int channels, int all_groups) : channels(channels), groups(1) {
    while (groups < all_groups && 2 * groups * channels <= THREADS) groups *= 2;
    columns = channels * groups;
    lanes = THREADS / columns;
    column = threadIdx.x % columns;
    lane = threadIdx.x / columns;
  }
  // Sum the numbers of the lanes of each column; every lane gets the total.
  __device__ __forceinline__ double sum(double mine, double* shared) const {
    __syncthreads();  // everybody has read the sum before this one
    shared[threadIdx.x] = mine;
    __syncthreads();
    double total = 0;
    for (int i = 0; i < lanes; i++) total += shared[i * columns + column];
    return total;
  }
};

// A group's mean and variance of each channel, from the means and the sums of squared deviations (m2) of its tiles. The
// rule is that of moments.cuh for many sets at once: m2 of a union is the sum of all m2 plus the squared deviations of
// the tiles' means, weighted by their counts. From all means the first one, the pilot, is subtracted. The differences
// are as small as the deviation, so one pass in float64 is enough, and no digit is lost.
//
//     d_i = mean_i - pilot,  d = sum count_i d_i / count,  mean = pilot + d
//     m2  = sum (m2_i + count_i d_i^2) - count d^2
//
// `norm` gets mean, rstd, gamma and beta side by side, as all kernels read them. The running statistics move towards
// the moments of group 0; their variance is unbiased.
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

// Count a block in. A block that sees the count and then makes a fence also sees everything that the threads of the
// counted block wrote before their last barrier.
#ifndef TINYRES_EMULATOR
__device__ __forceinline__ int count_in(int* arrivals) {
  int before;
  asm volatile("atom.release.gpu.add.s32 %0, [%1], 1;" : "=r"(before) : "l"(arrivals) : "memory");
  return before;
}
#endif

// The end of a kernel whose blocks have left partial results of `channels` channels from `first_channel` on: the
// last block of these channels to come here finishes them. When all threads of a block have written (the barrier), one
// of them counts the block in. The block that finds all others counted may read their results behind a fence. The
// thread that counts also makes the fence, because for the memory model counting and fence belong together. (A fence
// empties the processor's first cache, so no other thread makes one.) The count is reset to zero for the next launch.
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
