// Convolution and its data gradient in float32, as one implicit matrix product (window.cuh says which).
//
//     y[pixel, o] = sum_k window[pixel, k] weights[k, o]   (+ residual[pixel, o])
//
// A block computes a tile of PIXELS x CHANNELS outputs, 4 x 4 of them a thread. It walks along k in steps of
// DEPTH: all threads bring a (PIXELS, DEPTH) tile of the window matrix and a (DEPTH, CHANNELS) tile of the
// weights into shared memory, wait for each other, and multiply. Each value in shared memory is used by many
// threads, each value in a register four times: that is what makes a matrix product fast.
//
// Sums are blocked: a step's products are added up by themselves and then to the total, so the rounding error
// grows with DEPTH + k / DEPTH rather than with k. The order is fixed: every run gives the same bits.
//
// CHANNELS is 16, 32 or 64, whichever wastes least; any number of channels works, and any number of pixels.
// With ACTIVATED what is read is relu(gamma (x - mean) rstd + beta), computed on the way into shared memory, so
// that the activated tensor never exists. Padding is zero *after* the activation.

constexpr int DEPTH = 16;

template <int CHANNELS, bool GRADIENT, bool ACTIVATED>
__global__ void __launch_bounds__(THREADS)
    conv(const float* x, const float* w, const float* residual, float* y, const float* mean, const float* rstd,
         const float* gamma, const float* beta, int images, int images_per_group, int height, int width,
         int channels, int out_height, int out_width, int out_channels, int kernel, int stride) {
  constexpr int PIXELS = THREADS * 16 / CHANNELS;
  const Geometry g = {height, width, channels, out_height, out_width, out_channels, kernel, stride};
  const int pixels = images * out_height * out_width, depth = kernel * kernel * channels;
  const int first_pixel = blockIdx.x * PIXELS, first_channel = blockIdx.y * CHANNELS;
  const int t = threadIdx.x;

  __shared__ Pixel places[PIXELS];
  __shared__ __align__(16) float window[DEPTH][PIXELS + 4];
  __shared__ __align__(16) float weights[DEPTH][CHANNELS];
  for (int i = t; i < PIXELS; i += THREADS) places[i] = locate(first_pixel + i, out_height, out_width);
  __syncthreads();

  const int my_pixel = t / (CHANNELS / 4) * 4, my_channel = t % (CHANNELS / 4) * 4;  // the first of 4 and 4
  float total[4][4] = {};
  for (int first_k = 0; first_k < depth; first_k += DEPTH) {
    // Neighbouring threads fetch neighbouring channels of a pixel.
    const int k = first_k + t % DEPTH;
    const Depth at = locate_depth(k, channels, kernel);
    for (int i = t / DEPTH; i < PIXELS; i += THREADS / DEPTH) {
      float value = 0;
      if (k < depth && first_pixel + i < pixels) {
        const int from = address<GRADIENT>(places[i], at, g);
        if (from >= 0) {
          value = x[from];
          if (ACTIVATED) {
            const int group = places[i].image / images_per_group * channels + at.channel;
            value = activate(value, mean[group], rstd[group], gamma[at.channel], beta[at.channel]);
          }
        }
      }
      window[t % DEPTH][i] = value;
    }
    for (int i = t / DEPTH; i < CHANNELS; i += THREADS / DEPTH) {
      const int o = first_channel + i;
      weights[t % DEPTH][i] = k < depth && o < out_channels ? w[weight_address<GRADIENT>(at, o, g)] : 0;
    }
    __syncthreads();

    float part[4][4] = {};
#pragma unroll
    for (int d = 0; d < DEPTH; d++) {
      const float4 a = *(const float4*)&window[d][my_pixel];
      const float4 b = *(const float4*)&weights[d][my_channel];
      const float as[4] = {a.x, a.y, a.z, a.w}, bs[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
      for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) part[i][j] = fmaf(as[i], bs[j], part[i][j]);
    }
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
      for (int j = 0; j < 4; j++) total[i][j] += part[i][j];
    __syncthreads();  // nobody may overwrite a tile that another thread still reads
  }

#pragma unroll
  for (int i = 0; i < 4; i++) {
    const int pixel = first_pixel + my_pixel + i;
#pragma unroll
    for (int j = 0; j < 4; j++) {
      const int o = first_channel + my_channel + j, to = pixel * out_channels + o;
      if (pixel < pixels && o < out_channels) y[to] = residual ? residual[to] + total[i][j] : total[i][j];
    }
  }
}
