// What the blocks of a launch left behind, brought together in a fixed order: a tile's moments become a batch
// norm's mean and deviation, a tile's sums its backward's coefficients, splits of a weight gradient the gradient.
// Sums of sums are in float64: there are few of them.

constexpr int LANES = 16, ACROSS = THREADS / LANES;  // a block: 16 channels, 16 threads for each

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
// that m2 of a union is the sum of all m2 plus the deviations of the tiles' means (moments.cuh, for many at once):
//
//     mean = sum count_i mean_i / count        m2 = sum (m2_i + count_i (mean_i - mean)^2)
//
// `norm` gets mean, rstd, gamma and beta side by side, as everybody reads them. Group 0 is folded into the running
// statistics, the variance unbiased.
__global__ void __launch_bounds__(THREADS)
    finish_moments(const float2* partial, const float* gamma, const float* beta, float4* norm, float* running_mean,
                   float* running_var, int tiles, int pixels_of_tile, int pixels_of_group, int channels, float eps,
                   float momentum) {
  __shared__ double shared[LANES][ACROSS];
  const int c = blockIdx.x * ACROSS + threadIdx.x % ACROSS, lane = threadIdx.x / ACROSS, group = blockIdx.y;
  const float2* own = partial + group * tiles * channels + c;
  double sum = 0, m2 = 0;
  for (int i = lane; c < channels && i < tiles; i += LANES)
    sum += (double)own[i * channels].x * min(pixels_of_tile, pixels_of_group - i * pixels_of_tile);
  const double mean = sum_lanes(sum, shared) / pixels_of_group;
  for (int i = lane; c < channels && i < tiles; i += LANES) {
    const double deviation = own[i * channels].x - mean;
    m2 += own[i * channels].y + deviation * deviation * min(pixels_of_tile, pixels_of_group - i * pixels_of_tile);
  }
  const double var = sum_lanes(m2, shared) / pixels_of_group;
  if (lane != 0 || c >= channels) return;
  norm[group * channels + c] = {(float)mean, (float)(1 / sqrt(var + eps)), gamma[c], beta[c]};
  if (group != 0) return;
  const float unbiased = (float)(var * pixels_of_group / max(1, pixels_of_group - 1));
  running_mean[c] += momentum * ((float)mean - running_mean[c]);
  running_var[c] += momentum * (unbiased - running_var[c]);
}

// Batch norm's backward over m pixels of a group and channel,
//
//     dx = gamma rstd (dz - sum dz / m - x^ sum(dz x^) / m) = a dz + b (x - mean) + c
//     a = gamma rstd,   b = -a rstd sum(dz x^) / m,   c = -a sum dz / m
//
// and, over all groups, dbeta = sum dz and dgamma = sum(dz x^). `affine` gets a, b, c and mean side by side.
__global__ void __launch_bounds__(THREADS)
    finish_sums(const float2* partial, const float4* norm, float4* affine, float* dgamma, float* dbeta, int groups,
                int tiles, int pixels_of_group, int channels) {
  __shared__ double shared[LANES][ACROSS];
  const int c = blockIdx.x * ACROSS + threadIdx.x % ACROSS, lane = threadIdx.x / ACROSS;
  double total = 0, total_along = 0;
  for (int group = 0; group < groups; group++) {
    const float2* own = partial + group * tiles * channels + c;
    double sum = 0, along = 0;
    for (int i = lane; c < channels && i < tiles; i += LANES) {
      sum += own[i * channels].x;
      along += own[i * channels].y;
    }
    sum = sum_lanes(sum, shared);
    along = sum_lanes(along, shared);
    total += sum;
    total_along += along;
    if (lane == 0 && c < channels) {
      const float4 by = norm[group * channels + c];
      const double a = (double)by.z * by.y;
      affine[group * channels + c] = {(float)a, (float)(-a * by.y * along / pixels_of_group),
                                      (float)(-a * sum / pixels_of_group), by.x};
    }
  }
  if (lane != 0 || c >= channels) return;
  dbeta[c] = (float)total;
  dgamma[c] = (float)total_along;
}

// Weight gradients, many parameters in one launch: block i has ELEMENTS numbers of sum sum_of_block[i].
constexpr int ELEMENTS = 1024;

struct SplitSum {
  const float* partial;  // (splits, size)
  float* gradient;       // (size,)
  long long splits, size;
};

__global__ void sum_splits(const SplitSum* sums, const int* sum_of_block, const int* first_of_block) {
  const SplitSum sum = sums[sum_of_block[blockIdx.x]];
  const int first = first_of_block[blockIdx.x];
  for (int i = first + threadIdx.x; i < min((int)sum.size, first + ELEMENTS); i += THREADS)
    sum.gradient[i] = sum_in_order(sum.partial + i, (int)sum.splits, (int)sum.size);
}
