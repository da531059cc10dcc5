// Batch norm with given moments, with or without the ReLU that follows it; and its backward pass.
//
//     y  = gamma x^ + beta,  x^ = (x - mean) rstd        (then max(y, 0) with RELU)
//     dx = gamma rstd (dz - sum dz / m - x^ sum(dz x^) / m)
//
// dz is dy where the ReLU let y through, and 0 elsewhere. Only x is kept from the forward pass: y > 0 is computed
// again.
// Tensors are (groups, rows, channels).

constexpr int RUN = 8;  // how many terms are summed by themselves first

template <bool RELU>
__global__ void bn_output(const float* x, const float* mean, const float* rstd, const float* gamma,
                          const float* beta, float* y, int group_size, int channels, int size) {
  const int i = blockIdx.x * 256 + threadIdx.x;
  if (i >= size) return;
  const int c = i % channels, g = i / group_size * channels + c;
  const float z = bn(x[i], mean[g], rstd[g], gamma[c], beta[c]);
  y[i] = RELU ? fmaxf(z, 0.f) : z;
}

template <bool RELU>
__device__ __forceinline__ float gate(float dy, float x, float mean, float rstd, float gamma, float beta) {
  return !RELU || bn(x, mean, rstd, gamma, beta) > 0 ? dy : 0;
}

// A block's share of the two sums over rows; blocks and threads as in bn_moments.cu.
template <bool RELU>
__global__ void __launch_bounds__(256)
    bn_sums(const float* x, const float* dy, const float* mean, const float* rstd, const float* gamma,
            const float* beta, float* partial, int rows, int rows_per_block, int channels) {
  __shared__ float shared[2][256];
  const int group = blockIdx.y, c = blockIdx.z * blockDim.x + threadIdx.x;
  const int begin = blockIdx.x * rows_per_block, end = min(rows, begin + rows_per_block);
  const long long first = (long long)group * rows * channels + c;

  float sums[2] = {0, 0};
  if (c < channels) {
    const float m = mean[group * channels + c], r = rstd[group * channels + c];
    for (int row = begin + threadIdx.y; row < end;) {
      float run[2] = {0, 0};
      for (int i = 0; i < RUN && row < end; i++, row += blockDim.y) {
        const long long at = first + (long long)row * channels;
        const float dz = gate<RELU>(dy[at], x[at], m, r, gamma[c], beta[c]);
        run[0] += dz;
        run[1] = fmaf(dz, normalise(x[at], m, r), run[1]);
      }
      sums[0] += run[0];
      sums[1] += run[1];
    }
  }
  const int t = threadIdx.y * blockDim.x + threadIdx.x;
  shared[0][t] = sums[0];
  shared[1][t] = sums[1];
  __syncthreads();
  for (int half = blockDim.y / 2; half > 0; half /= 2) {
    if (threadIdx.y < half)
      for (int which = 0; which < 2; which++) shared[which][t] += shared[which][t + half * blockDim.x];
    __syncthreads();
  }
  if (threadIdx.y == 0 && c < channels)  // partial is (2, groups, blocks, channels)
    for (int which = 0; which < 2; which++)
      partial[((which * gridDim.y + group) * gridDim.x + blockIdx.x) * channels + c] = shared[which][t];
}

// One thread for each channel: it finds the sums of each group, for dx, and dbeta and dgamma over all groups.
__global__ void merge_bn_sums(const float* partial, float* sums, float* dbeta, float* dgamma, int groups,
                              int blocks, int channels) {
  const int c = blockIdx.x * 256 + threadIdx.x;
  if (c >= channels) return;
  for (int which = 0; which < 2; which++) {
    float total = 0;
    for (int group = 0; group < groups; group++) {
      const float* from = partial + (which * groups + group) * blocks * channels + c;
      const float sum = sum_in_order(from, blocks, channels);
      sums[(which * groups + group) * channels + c] = sum;
      total += sum;
    }
    (which == 0 ? dbeta : dgamma)[c] = total;
  }
}

template <bool RELU>
__global__ void bn_input_gradient(const float* x, const float* dy, const float* mean, const float* rstd,
                                  const float* gamma, const float* beta, const float* sums, float* dx,
                                  int group_size, int groups, int channels, int size) {
  const int i = blockIdx.x * 256 + threadIdx.x;
  if (i >= size) return;
  const int c = i % channels, g = i / group_size * channels + c, values = group_size / channels;
  const float dz = gate<RELU>(dy[i], x[i], mean[g], rstd[g], gamma[c], beta[c]);
  const float along_constant = sums[g] / values, along_normalised = sums[groups * channels + g] / values;
  dx[i] = gamma[c] * rstd[g] * (dz - along_constant - normalise(x[i], mean[g], rstd[g]) * along_normalised);
}
