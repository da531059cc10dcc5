// Mean and variance of each channel, for each group of the mini-batch, by merging (moments.cuh says why).
//
// From all values the first value of their group and channel, the pilot, is subtracted. So the mean of the differences
// is near zero even where the mean is large, and keeps the digits that matter. Merging is rare, so it is done in
// float64: where the mean is near zero and the pilot is not, float32 would add the pilot's rounding error.
//
// A block is blockDim.x neighbouring channels times blockDim.y rows, 256 threads together. A thread takes every
// blockDim.y-th row of its block's share, 16 values at a time. The threads of a block merge in a tree, and
// `merge_moments` merges the blocks in order. Tensors are (rows, channels) with rows = N H W.

constexpr int RUN = 16;

__global__ void __launch_bounds__(256)
    bn_moments(const float* x, double* partial, int rows, int rows_per_block, int channels) {
  __shared__ Moments shared[256];
  const int group = blockIdx.y, c = blockIdx.z * blockDim.x + threadIdx.x;
  const int begin = blockIdx.x * rows_per_block, end = min(rows, begin + rows_per_block);
  const float* column = x + (long long)group * rows * channels + c;

  Moments mine = {0, 0, 0};
  if (c < channels) {
    const float pilot = column[0];
    for (int first = begin + threadIdx.y; first < end; first += RUN * blockDim.y) {
      float values[RUN], sum = 0, m2 = 0;
      const int count = min(RUN, (end - first + (int)blockDim.y - 1) / (int)blockDim.y);
#pragma unroll
      for (int i = 0; i < RUN; i++) {
        values[i] = i < count ? column[(long long)(first + i * blockDim.y) * channels] - pilot : 0;
        sum += values[i];
      }
      const float mean = sum / count;
#pragma unroll
      for (int i = 0; i < RUN; i++) {
        const float deviation = i < count ? values[i] - mean : 0;
        m2 = fmaf(deviation, deviation, m2);
      }
      mine = merge(mine, {(double)count, mean, m2});
    }
  }

  const int t = threadIdx.y * blockDim.x + threadIdx.x;
  shared[t] = mine;
  __syncthreads();
  for (int half = blockDim.y / 2; half > 0; half /= 2) {
    if (threadIdx.y < half) shared[t] = merge(shared[t], shared[t + half * blockDim.x]);
    __syncthreads();
  }
  if (threadIdx.y == 0 && c < channels) {  // partial is (3, groups, blocks, channels)
    const int plane = gridDim.y * gridDim.x * channels, to = (group * gridDim.x + blockIdx.x) * channels + c;
    partial[to] = shared[t].count;
    partial[plane + to] = shared[t].mean;
    partial[2 * plane + to] = shared[t].m2;
  }
}

// One thread for each group and channel: merge the blocks in order. The pilots are read from `x`.
__global__ void merge_moments(const float* x, const double* partial, float* mean, float* var, float* rstd, int rows,
                              int groups, int blocks, int channels, float eps) {
  const int i = blockIdx.x * 256 + threadIdx.x, plane = groups * blocks * channels;
  if (i >= groups * channels) return;
  Moments all = {0, 0, 0};
  for (int block = 0; block < blocks; block++) {
    const int from = (i / channels * blocks + block) * channels + i % channels;
    all = merge(all, {partial[from], partial[plane + from], partial[2 * plane + from]});
  }
  const float pilot = x[(long long)(i / channels) * rows * channels + i % channels];
  mean[i] = pilot + all.mean;
  var[i] = all.m2 / all.count;
  rstd[i] = 1 / sqrtf(var[i] + eps);
}
