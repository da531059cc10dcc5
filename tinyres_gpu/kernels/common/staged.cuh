// A convolution's window, staged: the pixels that a tile of outputs reads are brought to shared memory once, and all
// taps read them there. (window_product.cuh gathers each value anew for every tap: with a window of 3 x 3 each value is
// read, normalised, rectified, rounded and stored nine times.)
//
// Pixels are numbered through the rows of all images. With stride 1, the tap one row down and one column to the right
// of pixel p reads pixel p + width + 1. So a tile of neighbouring pixels reads a run of neighbouring pixels, which is
// longer by a row and a pixel at both ends. Where the image ends, the run goes on with pixels that no tap may read: a
// read of such a pixel is sent to a row of zeros instead. No other padding is needed, and images may have any height,
// and any width up to WIDEST.
//
// Weights come packed (pack.cu): the words that a lane has to hold for the tensor core lie side by side in memory, the
// same for all blocks, and need no shared memory. So between the barrier behind the staging and the end of the
// sum no thread waits for another.

constexpr int WIDEST = 32;  // width of the widest image, for a window of 3 x 3

template <int DEPTH, class Arithmetic> struct Staged {};  // DEPTH channels at a time

// The pixels of a tile and REACH more at both ends, each as a row of words, and the row of zeros.
template <int DEPTH, bool BF16, int REACH = WIDEST + 1> struct Stage {
  static constexpr int VALUES = BF16 ? 2 : 1, WORDS = DEPTH / VALUES, STEPS = WORDS / 8, QUADS = DEPTH / 4;
  static constexpr int PIXELS = 16 * WARPS, ZEROS = PIXELS + 2 * REACH;
  unsigned rows[ZEROS + 1][WORDS + 4];  // four words of each of 8 neighbouring rows lie in 32 different banks

  __device__ __forceinline__ void write_zeros() {
    if (threadIdx.x < WORDS) rows[ZEROS][threadIdx.x] = 0;
  }
};

template <int CHANNELS, int DEPTH, bool BF16>
struct Product<CHANNELS, Staged<DEPTH, TensorCore<BF16>>> : WarpSums<CHANNELS> {
  using Weight = uint2;
  using Tiles = Stage<DEPTH, BF16>;
  static constexpr int ROWS = Tiles::PIXELS;
  union Shared {
    Tiles tiles;
    float outputs[ROWS][CHANNELS + 4];
  };

  // acc += (16 pixels x DEPTH) times the weights of one tap. `row` is the lane's share of the pixels, as load_matrices
  // takes it, and `w` is the address of the lane's words of the weights. The words of the next step of the sum are
  // `columns` blocks of 8 output channels away. The digits that a tensor core cuts off (tensor_core.cuh) are negligible
  // beside bfloat16's rounding; for TF32 each tap's sum begins anew.
  __device__ __forceinline__ void multiply(const unsigned* row, const uint2* w, int columns) {
    unsigned a[Tiles::STEPS][4];
#pragma unroll
    for (int step = 0; step < Tiles::STEPS; step++) load_matrices(a[step], row + step * 8);
#pragma unroll
    for (int j = 0; j < CHANNELS / 8; j++) {
      float sum[4] = {};
#pragma unroll
      for (int step = 0; step < Tiles::STEPS; step++) {
        const uint2 words = w[(step * columns + j) * 32];
        const unsigned b[2] = {words.x, words.y};
        if (BF16) mma_bf16(this->acc[j], a[step], b);
        else mma_tf32(sum, a[step], b);
      }
#pragma unroll
      for (int i = 0; i < 4 && !BF16; i++) this->acc[j][i] += sum[i];
    }
  }
};

// Bring DEPTH channels of a tile's pixels, and of the pixels that its border reaches, to the stage. A thread fetches
// values of BATCH pixels before it waits for any of them; more would not fit its registers. `visit(at, v)` is called
// once in the whole launch for each value of a tile's own pixels.
template <int BATCH, int DEPTH, bool BF16, int REACH, class Operand, class Visit>
__device__ __forceinline__ void stage_pixels(Stage<DEPTH, BF16, REACH>& stage, int border, const Tile& tile, Operand& x,
                                             int first_channel, const Geometry& g, Visit visit) {
  using S = Stage<DEPTH, BF16, REACH>;
  constexpr int STRIDE = THREADS / S::QUADS;
  const int quad = threadIdx.x % S::QUADS, c = first_channel + quad * 4, reach = border * (g.width + 1);
  const int own_end = min(tile.end, tile.first + S::PIXELS), end = min(tile.end, own_end + reach);
  x.at_channel(tile.group * g.channels + c);
  for (int first = max(0, tile.first - reach) + (int)threadIdx.x / S::QUADS; first < end; first += BATCH * STRIDE) {
    typename Operand::Raw raw[BATCH];
#pragma unroll
    for (int i = 0; i < BATCH; i++)
      if (first + i * STRIDE < end) raw[i] = x.fetch((first + i * STRIDE) * g.channels + c);
#pragma unroll
    for (int i = 0; i < BATCH; i++) {
      const int pixel = first + i * STRIDE;
      if (pixel >= end) break;
      const float4 v = x.make(raw[i]);
      if (blockIdx.y == 0 && pixel >= tile.first && pixel < own_end) visit(pixel * g.channels + c, v);
      put_words<BF16>(stage.rows[reach + pixel - tile.first], quad, v);
    }
  }
}

// The staged row that pixel number `row` of a tile reads at the tap which lies `away` rows below the middle of the
// window and `aside` columns to the right. `there` says whether the tile has such a pixel.
template <bool GRADIENT, class S>
__device__ __forceinline__ const unsigned* find_row(const S& stage, int row, bool there, const Pixel& own, int away,
                                                    int aside, const Geometry& g) {
  const int border = g.kernel_size / 2, down = GRADIENT ? -away : away, right = GRADIENT ? -aside : aside;
  const bool inside =
      there && (unsigned)(own.row + down) < (unsigned)g.height && (unsigned)(own.column + right) < (unsigned)g.width;
  return stage.rows[inside ? row + (border + down) * g.width + border + right : S::ZEROS];
}

// Add to `product` the products of the staged channels, of which `first` is the first, at all taps. Lane l gives the
// address of pixel l % 16 of its warp.
template <bool GRADIENT, class P, class S>
__device__ __forceinline__ void multiply_taps(P& product, const S& stage, const Pixel* places, const Tile& tile,
                                              int first, const uint2* w, int first_channel, const Geometry& g) {
  const int lane = threadIdx.x % 32, row = threadIdx.x / 32 * 16 + lane % 16, columns = g.out_channels / 8;
  const int border = g.kernel_size / 2, a_tap = g.channels / (8 * S::VALUES) * columns * 32;
  const Pixel own = places[row];
  const bool there = tile.first + row < tile.end;
  w += (first / (8 * S::VALUES) * columns + first_channel / 8) * 32 + lane;
#pragma unroll 1  // several taps at once would need more registers than there are
  for (int away = -border; away <= border; away++)
#pragma unroll 1
    for (int aside = -border; aside <= border; aside++, w += a_tap) {
      const unsigned* from = find_row<GRADIENT>(stage, row, there, own, away, aside, g);
      product.multiply(from + lane / 16 * 4, w, columns);
    }
}

// Ask memory for the weights that a block will read, while its pixels are on their way. Otherwise the first blocks of a
// launch would wait for memory once for each tap.
template <int CHANNELS, class S>
__device__ __forceinline__ void prefetch_weights(const uint2* w, int first_channel, const Geometry& g) {
  constexpr int LINE = 16, LINES = CHANNELS / 8 * 32 / LINE;  // pairs of words in a line of 128 bytes; lines of a step
  const int steps = g.kernel_size * g.kernel_size * g.channels / (8 * S::VALUES), columns = g.out_channels / 8;
  for (int i = threadIdx.x; i < steps * LINES; i += THREADS)
    prefetch(w + (i / LINES * columns + first_channel / 8) * 32 + i % LINES * LINE);
}

// The `multiply_windows` of window_product.cuh, for windows of 1 x 1 and 3 x 3 with stride 1.
template <int CHANNELS, bool GRADIENT, int DEPTH, bool BF16, class Operand, class Visit>
__device__ __forceinline__ void multiply_windows(Product<CHANNELS, Staged<DEPTH, TensorCore<BF16>>>& product,
                                                 Stage<DEPTH, BF16>& stage, const Pixel* places, const Tile& tile,
                                                 Operand& x, const uint2* w, int first_channel, const Geometry& g,
                                                 Visit visit) {
  using S = Stage<DEPTH, BF16>;
  constexpr int BATCH = GRADIENT ? (BF16 && CHANNELS < 64 ? 2 : 1) : CHANNELS < 64 ? 4 : BF16 ? 2 : 1;
  prefetch_weights<CHANNELS, S>(w, first_channel, g);
  stage.write_zeros();
  for (int first = 0; first < g.channels; first += DEPTH) {
    stage_pixels<BATCH>(stage, g.kernel_size / 2, tile, x, first, g, visit);
    __syncthreads();
    multiply_taps<GRADIENT>(product, stage, places, tile, first, w, first_channel, g);
    __syncthreads();  // nobody may overwrite pixels that another thread still reads
  }
}
