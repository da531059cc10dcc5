// Convolution and its data gradient in float32, as one implicit matrix product (window.cuh explains it).
//
//     y[pixel, o] = sum_k window[pixel, k] weights[k, o]
//
// A block computes a tile of PIXELS x CHANNELS outputs, 4 x 4 of them a thread. It walks along k in steps of
// DEPTH: all threads bring a (PIXELS, DEPTH) tile of the window matrix and a (DEPTH, CHANNELS) tile of the
// weights into shared memory, wait for each other, and multiply. Each value in shared memory is used by many
// threads, each value in a register four times: that is what makes a matrix product fast.
//
// Sums are blocked: a step's products are added up by themselves and then to the total, so the rounding error
// grows with DEPTH + k / DEPTH rather than with k. The order is fixed: every run gives the same bits.
//
// CHANNELS is 16, 32 or 64, chosen so that little is wasted; any number of channels works, and any number of pixels.
// If moments of x are given, batch norm and ReLU are applied to each value of x on its way into shared memory: the
// activated tensor never exists.

constexpr int DEPTH = 16;

template <int CHANNELS>
__global__ void __launch_bounds__(THREADS)
    conv(const float* x, const float* w, float* y, const float* mean, const float* rstd, const float* gamma,
         const float* beta, int images, int images_per_group, int height, int width, int channels, int out_height,
         int out_width, int out_channels, int kernel_size, int stride, int gradient) {
  constexpr int PIXELS = THREADS * 16 / CHANNELS;
  const Geometry g = {height,       width,       channels, out_height,   out_width,
                      out_channels, kernel_size, stride,   gradient != 0};
  const Activation activation = {mean, rstd, gamma, beta, images_per_group};
  const Tile tile = find_tile(PIXELS, images, images_per_group, out_height * out_width);
  const int depth = kernel_size * kernel_size * channels, first_channel = blockIdx.y * CHANNELS;
  const int t = threadIdx.x;

  __shared__ Pixel places[PIXELS];
  __shared__ __align__(16) float window[DEPTH][PIXELS + 4];
  __shared__ __align__(16) float weights[DEPTH][CHANNELS];
  for (int i = t; i < PIXELS; i += THREADS) places[i] = locate(tile.first + i, out_height, out_width);
  __syncthreads();

  const int my_pixel = t / (CHANNELS / 4) * 4, my_channel = t % (CHANNELS / 4) * 4;  // the first of 4 and 4
  float total[4][4] = {};
  for (int first_k = 0; first_k < depth; first_k += DEPTH) {
    // Neighbouring threads fetch neighbouring channels of a pixel.
    const int k = first_k + t % DEPTH;
    const Depth at = locate_depth(k, channels, kernel_size);
    for (int i = t / DEPTH; i < PIXELS; i += THREADS / DEPTH) {
      float value = 0;
      if (k < depth && tile.first + i < tile.end)
        value = fetch(x, places[i], at, g, activation);
      window[t % DEPTH][i] = value;
    }
    for (int i = t / DEPTH; i < CHANNELS; i += THREADS / DEPTH) {
      const int o = first_channel + i;
      weights[t % DEPTH][i] = k < depth && o < out_channels ? w[weight_address(at, o, g)] : 0;
    }
    __syncthreads();
    multiply_in_registers<DEPTH>(total, window, weights, my_pixel, my_channel);
    __syncthreads();  // nobody may overwrite a tile that another thread still reads
  }

  const int count = min(4, max(0, tile.end - tile.first - my_pixel));  // of my four pixels
#pragma unroll
  for (int j = 0; j < 4; j++) {
    const int o = first_channel + my_channel + j;
#pragma unroll
    for (int i = 0; i < 4; i++)
      if (i < count && o < out_channels) y[(tile.first + my_pixel + i) * out_channels + o] = total[i][j];
  }
}
