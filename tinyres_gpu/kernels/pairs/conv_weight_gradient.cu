// The weight gradient of a convolution in float32: the implicit product of the transposed window matrix and dy,
//
//     dw[k, o] = sum_pixels window[pixel, k] dy[pixel, o]
//
// The sum runs over every pixel of the mini-batch and the result is small, so there would be too few tiles to
// fill a GPU. So the pixels are split into runs of `pixels_per_split`, each block adds up one run, and
// `sum_weight_gradients` adds the runs in order. There is no atomic addition, so the bits are the same every time.

constexpr int RUN = 16;  // pixels in a step; their products are summed by themselves first, see conv.cu

template <int CHANNELS>
__global__ void __launch_bounds__(THREADS)
    conv_weight_gradient(const float* x, const float* dy, float* partial, int images, int pixels_per_split,
                         int height, int width, int channels, int out_height, int out_width, int out_channels,
                         int kernel_size, int stride) {
  constexpr int ROWS = THREADS * 16 / CHANNELS;  // of dw, seen as a (depth, C_out) matrix
  const Geometry g = {height, width, channels, out_height, out_width, out_channels, kernel_size, stride, false};
  const int pixels = images * out_height * out_width, depth = kernel_size * kernel_size * channels;
  const int first_row = blockIdx.x * ROWS, first_channel = blockIdx.y * CHANNELS;
  const int begin = blockIdx.z * pixels_per_split, end = min(pixels, begin + pixels_per_split);
  const int t = threadIdx.x;

  __shared__ Depth places[ROWS];
  __shared__ __align__(16) float window[RUN][ROWS];
  __shared__ __align__(16) float gradient[RUN][CHANNELS];
  for (int i = t; i < ROWS; i += THREADS) places[i] = locate_depth(first_row + i, channels, kernel_size);
  __syncthreads();

  const int my_row = t / (CHANNELS / 4) * 4, my_channel = t % (CHANNELS / 4) * 4;
  float total[4][4] = {};
  for (int first_pixel = begin; first_pixel < end; first_pixel += RUN) {
    for (int i = t; i < RUN * ROWS; i += THREADS) {
      const int pixel = first_pixel + i / ROWS, row = i % ROWS;
      int from = -1;
      if (pixel < end && first_row + row < depth)
        from = address(locate(pixel, out_height, out_width), places[row], g);
      window[i / ROWS][row] = from >= 0 ? x[from] : 0;
    }
    for (int i = t; i < RUN * CHANNELS; i += THREADS) {
      const int pixel = first_pixel + i / CHANNELS, o = first_channel + i % CHANNELS;
      gradient[i / CHANNELS][i % CHANNELS] = pixel < end && o < out_channels ? dy[pixel * out_channels + o] : 0;
    }
    __syncthreads();
    multiply_in_registers<RUN>(total, window, gradient, my_row, my_channel);
    __syncthreads();
  }

  float* mine = partial + (long long)blockIdx.z * depth * out_channels;
#pragma unroll
  for (int i = 0; i < 4; i++)
#pragma unroll
    for (int j = 0; j < 4; j++) {
      const int row = first_row + my_row + i, o = first_channel + my_channel + j;
      if (row < depth && o < out_channels) mine[row * out_channels + o] = total[i][j];
    }
}

// One thread for each weight: add its partial sums in order, and write the total to its place in (C_out, C_in, k, k).
__global__ void sum_weight_gradients(const float* partial, float* dw, int splits, int channels, int out_channels,
                                     int kernel_size) {
  const int depth = kernel_size * kernel_size * channels, size = depth * out_channels;
  const int i = blockIdx.x * THREADS + threadIdx.x;
  if (i >= size) return;
  const Geometry g = {0, 0, channels, 0, 0, out_channels, kernel_size, 1, false};
  dw[weight_address(locate_depth(i / out_channels, channels, kernel_size), i % out_channels, g)] =
      sum_in_order(partial + i, splits, size);
}
