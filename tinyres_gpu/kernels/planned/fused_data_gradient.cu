// The data gradient of a convolution with everything around it. The convolution read relu(bn(t)); this launch
// turns the gradient at its output y into the gradient dz behind that batch norm, and the two sums that go with it:
//
//     dy  = base + a dz' + b (y - mean) + c      on the way in, see operands.cuh (dz' is behind y's batch norm)
//     da  = conv's gradient of dy (+ `added`)    the gradient of the shortcut, which reads the same activation
//     dz  = da where bn(t) > 0                   on the way out, see tile_sums.cuh
//
// If the next unit's shortcut or the weight gradient needs dy as one tensor, dy is written to `kept`: many blocks read
// each value, and the block that reads it at the middle tap of the window writes it. Without a norm the launch is the
// plain data gradient, that of a projection; the launch that follows takes it as `added`.

template <int CHANNELS, class Arithmetic>
__global__ void __launch_bounds__(THREADS, AT_ONCE<CHANNELS>)
    fused_data_gradient(const Stored* base, const Stored* dz, const Stored* y, int dz_format, int y_format,
                        const float4* affine, Stored* kept, const Weight<CHANNELS, Arithmetic>* w,
                        const Stored* added, int added_channels, int added_stride, const Stored* t,
                        const float4* norm, const Stored* gate, int t_format, Stored* dx, int dx_format,
                        float2* sums, int images, int images_per_group, int height, int width, int channels,
                        int out_height, int out_width, int out_channels, int kernel_size, int stride,
                        const SumsToFinish* to_finish, int* arrivals) {
  using P = Product<CHANNELS, Arithmetic>;
  constexpr int QUADS = CHANNELS / 4;
  const Geometry g = {height, width, channels, out_height, out_width, out_channels, kernel_size, stride, true};
  const Tile tile = find_tile(P::ROWS, images, images_per_group, out_height * out_width);
  const int count = min(P::ROWS, tile.end - tile.first), first_channel = blockIdx.y * CHANNELS;

  __shared__ Pixel places[P::ROWS];
  __shared__ __align__(16) typename P::Shared shared;
  __shared__ float4 reduced[THREADS / 32][QUADS];
  for (int i = threadIdx.x; i < P::ROWS; i += THREADS) places[i] = locate(tile.first + i, out_height, out_width);
  __syncthreads();

  P product;
  Arriving arriving = {base, dz, y, dz_format, y_format, affine};
  multiply_windows<CHANNELS, true>(product, shared.tiles, places, tile, arriving, w, first_channel, g,
                                   [=](int at, float4 v) {
                                     if (kept) store(kept, at, dz_format, v);
                                   });
  product.write(shared.outputs);
  __syncthreads();

  const ShortcutGradient shortcut = {added, dx_format, added_channels, added_stride};
  const auto gradient = [&](int i, int c) {
    return load(shared.outputs[i], c - first_channel) + shortcut.read(places[i], c, out_height, out_width);
  };
  const int c = first_channel + threadIdx.x % QUADS * 4;
  if (norm) {
    const GradientSums found = pass_gate<CHANNELS>(t, norm, gate, t_format, dx, dx_format, tile, P::ROWS,
                                                   first_channel, out_channels, gradient);
    write_sums<CHANNELS>(sums, found, tile, c, out_channels, reduced);
    finish_if_last(to_finish, sums, arrivals, first_channel, CHANNELS);
    return;
  }
  for (int i = threadIdx.x / QUADS; i < count; i += THREADS / QUADS)
    store(dx, (tile.first + i) * out_channels + c, dx_format, gradient(i, c));
}
