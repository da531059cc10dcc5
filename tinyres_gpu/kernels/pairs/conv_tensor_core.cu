// Convolution and its data gradient on the tensor cores: the product of conv.cu with operands rounded to TF32 or to
// bfloat16, and sums in float32. Tensors in memory stay float32; their values are rounded on the way to shared memory.
//
// A warp takes 16 of the block's 128 pixels and all of the block's CHANNELS; tensor_core.cuh has the warp's product.

constexpr int PIXELS = 16 * WARPS;

template <int CHANNELS, bool BF16>
__global__ void __launch_bounds__(THREADS)
    conv_tensor_core(const float* x, const float* w, float* y, const float* mean, const float* rstd,
                     const float* gamma, const float* beta, int images, int images_per_group, int height, int width,
                     int channels, int out_height, int out_width, int out_channels, int kernel_size, int stride,
                     int gradient) {
  constexpr int VALUES = BF16 ? 2 : 1;  // in a word
  const Geometry g = {height,       width,       channels, out_height,   out_width,
                      out_channels, kernel_size, stride,   gradient != 0};
  const Activation activation = {mean, rstd, gamma, beta, images_per_group};
  const Tile tile = find_tile(PIXELS, images, images_per_group, out_height * out_width);
  const int depth = kernel_size * kernel_size * channels, first_channel = blockIdx.y * CHANNELS;
  const int t = threadIdx.x, warp = t / 32, lane = t % 32;

  __shared__ Pixel places[PIXELS];
  __shared__ unsigned window[PIXELS][PITCH];
  __shared__ unsigned weights[CHANNELS][PITCH];
  for (int i = t; i < PIXELS; i += THREADS) places[i] = locate(tile.first + i, out_height, out_width);
  __syncthreads();

  float acc[CHANNELS / 8][4] = {};
  for (int first_k = 0; first_k < depth; first_k += WORDS * VALUES) {
    const int k = first_k + t % WORDS * VALUES;
    const Depth at[2] = {locate_depth(k, channels, kernel_size), locate_depth(k + 1, channels, kernel_size)};
    for (int i = t / WORDS; i < PIXELS; i += THREADS / WORDS) {
      float values[2] = {0, 0};
      for (int v = 0; v < VALUES; v++)
        if (k + v < depth && tile.first + i < tile.end)
          values[v] = fetch(x, places[i], at[v], g, activation);
      window[i][t % WORDS] = make_word<BF16>(values[0], values[1]);
    }
    for (int i = t / WORDS; i < CHANNELS; i += THREADS / WORDS) {
      const int o = first_channel + i;
      float values[2] = {0, 0};
      for (int v = 0; v < VALUES; v++)
        if (k + v < depth && o < out_channels) values[v] = w[weight_address(at[v], o, g)];
      weights[i][t % WORDS] = make_word<BF16>(values[0], values[1]);
    }
    __syncthreads();
    multiply<CHANNELS, BF16>(acc, window + warp * 16, weights);
    __syncthreads();
  }

  // acc[j][i] belongs to pixel lane / 4 (+ 8 for i = 2, 3) of the warp's 16 and channel 8 j + 2 (lane % 4) (+ 1).
  const int first_pixel = tile.first + warp * 16, count = min(16, max(0, tile.end - first_pixel));
#pragma unroll
  for (int j = 0; j < CHANNELS / 8; j++)
#pragma unroll
    for (int column = 0; column < 2; column++) {
      const int channel = j * 8 + lane % 4 * 2 + column, o = first_channel + channel;
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const int pixel = lane / 4 + half * 8, to = (first_pixel + pixel) * out_channels + o;
        if (pixel < count && o < out_channels) y[to] = acc[j][half * 2 + column];
      }
    }
}

// The weight gradient, as in conv_weight_gradient.cu: a row is a k of the window matrix, and the sum runs over pixels.
template <int CHANNELS, bool BF16>
__global__ void __launch_bounds__(THREADS)
    conv_weight_gradient_tensor_core(const float* x, const float* dy, float* partial, int images,
                                     int pixels_per_split, int height, int width, int channels, int out_height,
                                     int out_width, int out_channels, int kernel_size, int stride) {
  constexpr int VALUES = BF16 ? 2 : 1, ROWS = 16 * WARPS;
  const Geometry g = {height, width, channels, out_height, out_width, out_channels, kernel_size, stride, false};
  const int pixels = images * out_height * out_width, depth = kernel_size * kernel_size * channels;
  const int first_row = blockIdx.x * ROWS, first_channel = blockIdx.y * CHANNELS;
  const int begin = blockIdx.z * pixels_per_split, end = min(pixels, begin + pixels_per_split);
  const int t = threadIdx.x, warp = t / 32, lane = t % 32;

  __shared__ unsigned window[ROWS][PITCH];
  __shared__ unsigned gradient[CHANNELS][PITCH];
  const int my_row = first_row + t % ROWS;  // the row that this thread fetches in every step
  const Depth my_k = locate_depth(my_row, channels, kernel_size);

  float acc[CHANNELS / 8][4] = {};
  for (int first_pixel = begin; first_pixel < end; first_pixel += WORDS * VALUES) {
    for (int word = t / ROWS; word < WORDS; word += THREADS / ROWS) {
      float values[2] = {0, 0};
      for (int v = 0; v < VALUES; v++) {
        const int pixel = first_pixel + word * VALUES + v;
        if (pixel < end && my_row < depth)
          values[v] = fetch(x, locate(pixel, out_height, out_width), my_k, g, {});
      }
      window[t % ROWS][word] = make_word<BF16>(values[0], values[1]);
    }
    for (int i = t; i < CHANNELS * WORDS; i += THREADS) {
      const int o = first_channel + i % CHANNELS;
      float values[2] = {0, 0};
      for (int v = 0; v < VALUES; v++) {
        const int pixel = first_pixel + i / CHANNELS * VALUES + v;
        if (pixel < end && o < out_channels) values[v] = dy[pixel * out_channels + o];
      }
      gradient[i % CHANNELS][i / CHANNELS] = make_word<BF16>(values[0], values[1]);
    }
    __syncthreads();
    multiply<CHANNELS, BF16>(acc, window + warp * 16, gradient);
    __syncthreads();
  }

  float* mine = partial + (long long)blockIdx.z * depth * out_channels;
#pragma unroll
  for (int j = 0; j < CHANNELS / 8; j++)
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int row = first_row + warp * 16 + lane / 4 + i / 2 * 8;
      const int o = first_channel + j * 8 + lane % 4 * 2 + i % 2;
      if (row < depth && o < out_channels) mine[row * out_channels + o] = acc[j][i];
    }
}
