// Both gradients of a convolution in one launch: the results of fused_data_gradient.cu and fused_weight_gradient.cu,
// where the tensors that both of them need are read only once. With the gradient dy at the convolution's output,
//
//     da[p] = sum_tap w[tap] dy[p - tap]             dw[tap] = sum_p a[p]^T dy[p - tap]
//
// and both need the same rows of dy for pixel p and a tap: the data gradient reads along a row, the weight gradient
// across the rows. The weight gradient also needs the tensor t before the activation, which is read anyway for the mask
// of the data gradient.
//
// A block goes through the tiles of its split of the pixels, one after the other, and keeps its sums of dw in registers
// meanwhile. The sums for batch norm's backward are also those of a split: `sums` is (groups, splits, channels). The
// operands of the products are bfloat16. DEPTH times CHUNKS is the number of the convolution's output channels.

template <int CHANNELS, int DEPTH, int CHUNKS, int KERNEL>
__global__ void __launch_bounds__(THREADS, 2)
    fused_gradients(const Stored* base, const Stored* dz, const Stored* y, int dz_format, int y_format,
                    const float4* affine, Stored* kept, const uint2* w, const Stored* added, int added_channels,
                    int added_stride, const Stored* t, const float4* norm, const Stored* gate, int t_format,
                    Stored* dx, int dx_format, float2* sums, const Stored* x, int x_format, const float4* x_norm,
                    float* partial, int images, int images_per_group, int pixels_of_split, int height, int width,
                    int out_channels, const SumsToFinish* to_finish, int* arrivals) {
  using P = Product<CHANNELS, Staged<DEPTH, Bf16>>;
  using Sums = WeightSums<CHANNELS, DEPTH, CHUNKS, KERNEL>;
  using Activations = Stage<CHANNELS, true, 0>;
  constexpr int QUADS = CHANNELS / 4;
  const Geometry g = {height, width, DEPTH * CHUNKS, height, width, out_channels, KERNEL, 1, true};
  const Geometry like_x = {height, width, out_channels};
  const Tile split = find_tile(pixels_of_split, images, images_per_group, height * width);
  const int end = min(split.end, split.first + pixels_of_split), first_channel = blockIdx.y * CHANNELS;

  struct Staging {
    Stage<DEPTH, true, KERNEL == 1 ? 0 : WIDEST + 1> gradient;
    Activations activations;
  };
  union Shared {
    Staging staging;
    float outputs[P::ROWS][CHANNELS + 4];
    typename Sums::Collected collected;
  };
  __shared__ Pixel places[P::ROWS];
  __shared__ __align__(16) Shared shared;
  __shared__ GradientSums of_warp[THREADS / 32][QUADS];
  auto& [gradient, activations] = shared.staging;

  prefetch_weights<CHANNELS, Activations>(w, first_channel, g);
  const ShortcutGradient shortcut = {added, dx_format, added_channels, added_stride};
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  if (lane < QUADS) of_warp[warp][lane] = {};
  Sums weight_sums;
  Tile tile = split;
  for (; tile.first < end; tile.first += P::ROWS) {
    for (int i = threadIdx.x; i < P::ROWS; i += THREADS) places[i] = locate(tile.first + i, height, width);
    gradient.write_zeros();
    activations.write_zeros();
    Activated activated = {x, x_format, x_norm, true};
    stage_pixels<CHANNELS == 64 ? 1 : 2>(activations, 0, tile, activated, first_channel, like_x, [](int, float4) {});
    P product;
    Arriving arriving = {base, dz, y, dz_format, y_format, affine};
#pragma unroll
    for (int chunk = 0; chunk < CHUNKS; chunk++) {
      stage_pixels<1>(gradient, KERNEL / 2, tile, arriving, chunk * DEPTH, g, [=](int at, float4 v) {
        if (kept) store(kept, at, dz_format, v);
      });
      __syncthreads();
      weight_sums.add(chunk, activations, gradient, places, tile, g);
      multiply_taps<true>(product, gradient, places, tile, chunk * DEPTH, w, first_channel, g);
      __syncthreads();
    }
    product.write(shared.outputs);
    __syncthreads();
    const auto da = [&](int i, int c) {
      return load(shared.outputs[i], c - first_channel) + shortcut.read(places[i], c, height, width);
    };
    const GradientSums found = pass_gate<CHANNELS>(t, norm, gate, t_format, dx, dx_format, tile, P::ROWS,
                                                   first_channel, out_channels, da);
    const float4 sum = sum_over_lanes<CHANNELS>(found.sum), along = sum_over_lanes<CHANNELS>(found.along);
    if (lane < QUADS) {
      const GradientSums before = of_warp[warp][lane];
      of_warp[warp][lane] = {before.sum + sum, before.along + along};
    }
    __syncthreads();  // the next tile is staged where this one's outputs were read
  }
  if (threadIdx.x < QUADS) {
    GradientSums all = of_warp[0][threadIdx.x];
    for (int i = 1; i < THREADS / 32; i++) {
      all.sum = all.sum + of_warp[i][threadIdx.x].sum;
      all.along = all.along + of_warp[i][threadIdx.x].along;
    }
    write_pair<CHANNELS>(sums, all.sum, all.along, split, first_channel + threadIdx.x * 4, out_channels);
  }
  weight_sums.write(partial + (long long)blockIdx.x * KERNEL * KERNEL * out_channels * DEPTH * CHUNKS, first_channel,
                    out_channels, shared.collected);
  finish_if_last(to_finish, sums, arrivals, first_channel, CHANNELS);
}
