// The weight gradient of a convolution that read relu(bn(x)). This activation is computed once more while x is read,
// and dy is computed from the tensors that it is made of while they are read (operands.cuh).
//
//     dw[k, o] = sum_pixels window[pixel, k] dy[pixel, o]
//
// As in conv_weight_gradient.cu the pixels are split over blocks, which write partial sums. No split lies in two
// groups, so that a thread needs the moments of only one group. A thread reads the same rows k and channels o through
// the whole launch. partial is (groups x splits, k, k, C_in, C_out), and finish.cu adds the splits up.

template <int CHANNELS, class Arithmetic>
__global__ void __launch_bounds__(THREADS, 2)
    fused_weight_gradient(const Stored* x, int x_format, const float4* norm, const Stored* base, const Stored* dz,
                          const Stored* y, int dz_format, int y_format, const float4* affine, float* partial,
                          int images, int images_per_group, int pixels_of_split, int height, int width, int channels,
                          int out_height, int out_width, int out_channels, int kernel_size, int stride) {
  using P = Product<CHANNELS, Arithmetic>;
  constexpr int ROW_QUADS = P::ROWS / 4, QUADS = CHANNELS / 4, STEPS = P::DEPTH / P::VALUES;
  const Geometry g = {height, width, channels, out_height, out_width, out_channels, kernel_size, stride, false};
  const Tile split = find_tile(pixels_of_split, images, images_per_group, out_height * out_width);
  const int end = min(split.end, split.first + pixels_of_split), depth = kernel_size * kernel_size * channels;
  const int first_row = blockIdx.y * P::ROWS, first_channel = blockIdx.z * CHANNELS, t = threadIdx.x;

  __shared__ Pixel places[P::DEPTH];
  __shared__ __align__(16) typename P::Shared shared;
  const int my_row = t % ROW_QUADS * 4, my_column = t % QUADS * 4;
  const Depth at = locate_depth(first_row + my_row, channels, kernel_size);
  const bool inside = first_row + my_row < depth;
  Activated activated = {x, x_format, norm, true};
  if (inside) activated.at_channel(split.group * channels + at.channel);
  Arriving arriving = {base, dz, y, dz_format, y_format, affine};
  arriving.at_channel(split.group * out_channels + first_channel + my_column);

  P product;
  for (int first = split.first; first < end; first += P::DEPTH) {
    if (t < P::DEPTH) places[t] = locate(first + t, out_height, out_width);
    __syncthreads();
    for (int step = t / ROW_QUADS; step < STEPS; step += THREADS / ROW_QUADS) {
      float4 v[P::VALUES] = {};
#pragma unroll
      for (int i = 0; i < P::VALUES; i++) {
        const int pixel = first + step * P::VALUES + i;
        const int from = inside && pixel < end ? address(places[step * P::VALUES + i], at, g) : -1;
        if (from >= 0) v[i] = activated.read(from);
      }
      P::put_rows(shared.tiles, my_row, step, v);
    }
    for (int step = t / QUADS; step < STEPS; step += THREADS / QUADS) {
      float4 v[P::VALUES] = {};
#pragma unroll
      for (int i = 0; i < P::VALUES; i++) {
        const int pixel = first + step * P::VALUES + i;
        if (pixel < end) v[i] = arriving.read(pixel * out_channels + first_channel + my_column);
      }
      P::put_columns(shared.tiles, my_column, step, v);
    }
    __syncthreads();
    product.multiply(shared.tiles);
    __syncthreads();
  }
  product.write(shared.outputs);
  __syncthreads();
  float* mine = partial + (long long)blockIdx.x * depth * out_channels;
  for (int i = t / QUADS; i < P::ROWS && first_row + i < depth; i += THREADS / QUADS)
    store(mine, (first_row + i) * out_channels + first_channel + my_column, load(shared.outputs[i], my_column));
}
