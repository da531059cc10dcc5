// A convolution's weight gradient on the tensor cores, from pixels that are staged anyway (fused_gradients.cu):
//
//     dw[tap] (C_in x C_out) = sum_pixels a[pixel]^T dy[pixel - tap]
//
// The sum runs over pixels. A pixel is a row in shared memory, so both operands must be read across the rows.
// load_matrices_transposed does that for 32 pixels at a time; each lane gives the address of one of them. A block has
// CHANNELS input channels and CHUNKS times DEPTH output channels. A warp has 8 output channels of each chunk, and keeps
// the sums of all taps for them in its registers. If there are more warps than such pieces of work, the warps share the
// pixels.

template <int CHANNELS, int DEPTH, int CHUNKS, int KERNEL> struct WeightSums {
  static constexpr int TAPS = KERNEL * KERNEL, ROWS = KERNEL == 1 ? CHANNELS / 16 : 1;  // sets of 16 input channels
  static constexpr int ACROSS_WARPS = DEPTH / 8, GROUPS = CHANNELS / 16 / ROWS * ACROSS_WARPS, PARTS = WARPS / GROUPS;
  static_assert(GROUPS * PARTS == WARPS, "each warp has its share");
  using Collected = float[PARTS > 1 ? TAPS : 1][CHANNELS][DEPTH];
  float acc[CHUNKS][TAPS][ROWS][4];

  __device__ __forceinline__ WeightSums() : acc{} {}

  // Add a tile's contribution to one chunk.
  template <class Activations, class S>
  __device__ __forceinline__ void add(int chunk, const Activations& activations, const S& stage, const Pixel* places,
                                      const Tile& tile, const Geometry& g) {
    const int lane = threadIdx.x % 32;
    for (int first = part() * 32; first < S::PIXELS; first += PARTS * 32) {
      unsigned a[ROWS][2][4];
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const int row = first + half * 16 + lane % 8 + lane / 16 * 8;
        const unsigned* from = activations.rows[tile.first + row < tile.end ? row : Activations::ZEROS];
#pragma unroll
        for (int m = 0; m < ROWS; m++)
          load_matrices_transposed(a[m][half], from + (first_row() + m * 16 + lane / 8 % 2 * 8) / 2);
      }
      const bool there = tile.first + first + lane < tile.end;
      const Pixel& own = places[first + lane];
#pragma unroll
      for (int tap = 0; tap < TAPS; tap++) {
        const int away = tap / KERNEL - KERNEL / 2, aside = tap % KERNEL - KERNEL / 2;
        unsigned b[4];
        load_matrices_transposed(
            b, find_row<true>(stage, first + lane, there, own, away, aside, g) + first_column() / 2);
        const unsigned halves[2][2] = {{b[0], b[1]}, {b[2], b[3]}};
#pragma unroll
        for (int m = 0; m < ROWS; m++)
#pragma unroll
          for (int half = 0; half < 2; half++) mma_bf16(acc[chunk][tap][m], a[m][half], halves[half]);
      }
    }
  }

  // Write the sums to partial, (taps, channels, out_channels), from `first_channel` on.
  __device__ __forceinline__ void write(float* partial, int first_channel, int channels, Collected& collected) {
#pragma unroll
    for (int chunk = 0; chunk < CHUNKS; chunk++) {
      float* to = partial + first_channel * DEPTH * CHUNKS + chunk * DEPTH;
      if (PARTS == 1) {
        each(chunk, [&](int tap, int row, int column, float v) {
          to[(tap * channels + row) * DEPTH * CHUNKS + column] = v;
        });
        continue;
      }
      for (int turn = 0; turn < PARTS; turn++) {  // in order
        __syncthreads();
        if (turn != part()) continue;
        each(chunk, [&](int tap, int row, int column, float v) {
          float& sum = collected[tap][row][column];
          sum = turn == 0 ? v : sum + v;
        });
      }
      __syncthreads();
      for (int i = threadIdx.x; i < TAPS * CHANNELS * DEPTH; i += THREADS) {
        const int tap = i / (CHANNELS * DEPTH), row = i / DEPTH % CHANNELS, column = i % DEPTH;
        to[(tap * channels + row) * DEPTH * CHUNKS + column] = collected[tap][row][column];
      }
    }
  }

 private:
  static __device__ __forceinline__ int part() { return threadIdx.x / 32 / GROUPS; }
  static __device__ __forceinline__ int first_row() { return threadIdx.x / 32 % GROUPS / ACROSS_WARPS * ROWS * 16; }
  static __device__ __forceinline__ int first_column() { return threadIdx.x / 32 % ACROSS_WARPS * 8; }
  template <class Use> __device__ __forceinline__ void each(int chunk, Use use) const {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int tap = 0; tap < TAPS; tap++)
#pragma unroll
      for (int m = 0; m < ROWS; m++)
#pragma unroll
        for (int i = 0; i < 4; i++)
          use(tap, first_row() + m * 16 + lane / 4 + i / 2 * 8, first_column() + lane % 4 * 2 + i % 2,
              acc[chunk][tap][m][i]);
  }
};
