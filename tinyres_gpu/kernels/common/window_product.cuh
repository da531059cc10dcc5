// The implicit product of window.cuh over fused operands: rows are output pixels, the sum runs over taps and
// channels, four neighbouring channels of one tap at a time.
//
// Weights lie as (k, k, C_in, C_out), so that neighbouring threads read neighbouring weights in both
// directions: forward along C_out; for the gradient along the sum, which then runs over C_out.

template <bool GRADIENT>
__device__ __forceinline__ float4 load_weights(const float* w, const Depth& k, int depth, int out, const Geometry& g) {
  if (GRADIENT)
    return load(w, ((k.tap_row * g.kernel_size + k.tap_column) * g.out_channels + out) * g.channels + k.channel);
  const float* from = w + depth * g.out_channels + out;
  return {from[0], from[g.out_channels], from[2 * g.out_channels], from[3 * g.out_channels]};
}

// `visit(at, v)` is called for each value of x that the middle tap reads, a pixel's own place: once in a whole launch.
template <int CHANNELS, bool GRADIENT, class P, class Operand, class Visit>
__device__ __forceinline__ void multiply_windows(P& product, typename P::Tiles& tiles, const Pixel* places,
                                                 const Tile& tile, Operand& x, const float* w, int first_channel,
                                                 const Geometry& g, Visit visit) {
  const int count = min(P::ROWS, tile.end - tile.first);
  const int depth = g.kernel_size * g.kernel_size * g.channels, t = threadIdx.x, quad = t % P::QUADS;
  for (int first_k = 0; first_k < depth; first_k += P::DEPTH) {
    const int k = first_k + quad * 4;
    const Depth at = locate_depth(k, g.channels, g.kernel_size);
    const bool middle = blockIdx.y == 0 && at.tap_row == g.kernel_size / 2 && at.tap_column == g.kernel_size / 2;
    if (k < depth) x.at_channel(tile.group * g.channels + at.channel);
    for (int i = t / P::QUADS; i < P::ROWS; i += THREADS / P::QUADS) {
      float4 v = {0, 0, 0, 0};
      const int from = k < depth && i < count ? address(places[i], at, g) : -1;
      if (from >= 0) {
        v = x.read(from);
        if (middle) visit(from, v);
      }
      P::put_row(tiles, i, quad, v);
    }
    for (int i = t; i < CHANNELS * P::QUADS; i += THREADS) {
      const int column = GRADIENT ? i / P::QUADS : i % CHANNELS, q = GRADIENT ? i % P::QUADS : i / CHANNELS;
      const int own_k = first_k + q * 4;
      float4 v = {0, 0, 0, 0};
      if (own_k < depth)
        v = load_weights<GRADIENT>(w, locate_depth(own_k, g.channels, g.kernel_size), own_k, first_channel + column, g);
      P::put_column(tiles, column, q, v);
    }
    __syncthreads();
    product.multiply(tiles);
    __syncthreads();  // nobody may overwrite a tile that another thread still reads
  }
}
