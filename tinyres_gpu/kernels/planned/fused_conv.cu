// A convolution with everything around it: y = conv(relu(bn(x)), w) + shortcut, and the moments of y.
//
// Batch norm and ReLU are applied while x is read, and the shortcut is added before y is written. The tile's share of
// the next batch norm's moments is found while y is at hand: the tile's mean, and the sum of squared deviations from
// this mean, in two passes over the tile in shared memory. finish.cuh merges the tiles.

template <int CHANNELS, class Arithmetic>
__global__ void __launch_bounds__(THREADS, AT_ONCE<CHANNELS>)
    fused_conv(const Stored* x, int x_format, const float4* norm, const Weight<CHANNELS, Arithmetic>* w,
               const Stored* shortcut, const float4* shortcut_norm, int shortcut_channels, int shortcut_stride,
               Stored* y, int y_format, float2* moments, int images, int images_per_group, int height, int width,
               int channels, int out_height, int out_width, int out_channels, int kernel_size, int stride,
               const MomentsToFinish* to_finish, int* arrivals) {
  using P = Product<CHANNELS, Arithmetic>;
  constexpr int QUADS = CHANNELS / 4, STEP = THREADS / QUADS;
  const Geometry g = {height, width, channels, out_height, out_width, out_channels, kernel_size, stride, false};
  const Tile tile = find_tile(P::ROWS, images, images_per_group, out_height * out_width);
  const int t = threadIdx.x, count = min(P::ROWS, tile.end - tile.first), first_channel = blockIdx.y * CHANNELS;

  __shared__ Pixel places[P::ROWS];
  __shared__ __align__(16) typename P::Shared shared;
  __shared__ float4 sums[THREADS / 32][QUADS];
  for (int i = t; i < P::ROWS; i += THREADS) places[i] = locate(tile.first + i, out_height, out_width);
  __syncthreads();

  P product;
  Activated activated = {x, x_format, norm, true};
  multiply_windows<CHANNELS, false>(product, shared.tiles, places, tile, activated, w, first_channel, g,
                                    [](int, float4) {});
  product.write(shared.outputs);
  __syncthreads();

  const int quad = t % QUADS, c = first_channel + quad * 4;
  Shortcut added = {{shortcut, y_format, shortcut_norm, true}, shortcut_channels, shortcut_stride};
  const bool adds = added.has(c);
  if (adds) added.from.at_channel(tile.group * shortcut_channels + c);
  float4 sum = {0, 0, 0, 0}, m2 = {0, 0, 0, 0};
  for (int first = t / QUADS; first < count; first += 2 * STEP) {
    Activated::Raw raw[2];  // two pixels are fetched before the thread waits for either
#pragma unroll
    for (int i = 0; i < 2; i++)
      if (adds && first + i * STEP < count)
        raw[i] = added.fetch(places[first + i * STEP], c, out_height, out_width);
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const int row = first + i * STEP;
      if (row >= count) break;
      float4 v = load(shared.outputs[row], quad * 4);
      if (adds) v = v + added.from.make(raw[i]);
      v = store(y, (tile.first + row) * out_channels + c, y_format, v);
      store(shared.outputs[row], quad * 4, v);
      sum = sum + v;
    }
  }
  if (!moments) return;
  const float4 mean = sum_over_tile<CHANNELS>(sum, sums) * (1.f / count);
  for (int i = t / QUADS; i < count; i += STEP) {
    const float4 deviation = load(shared.outputs[i], quad * 4) - mean;
    m2 = m2 + deviation * deviation;
  }
  m2 = sum_over_tile<CHANNELS>(m2, sums);
  write_pair<CHANNELS>(moments, mean, m2, tile, c, out_channels);
  finish_if_last(to_finish, moments, arrivals, first_channel, CHANNELS);
}
