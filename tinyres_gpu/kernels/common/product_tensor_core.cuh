// The functions of product.cuh on the tensor cores: a warp has 16 of the block's 128 rows, and all columns.

template <bool BF16> struct TensorCore {};
using Tf32 = TensorCore<false>;
using Bf16 = TensorCore<true>;

// The sums of a warp, as ptx.cuh lays them out: for every 8 columns, a lane has two neighbouring columns in two rows.
template <int CHANNELS> struct WarpSums {
  float acc[CHANNELS / 8][4];

  __device__ __forceinline__ WarpSums() : acc{} {}
  __device__ __forceinline__ void write(float (*outputs)[CHANNELS + 4]) const {
    const int lane = threadIdx.x % 32, row = threadIdx.x / 32 * 16 + lane / 4, column = lane % 4 * 2;
#pragma unroll
    for (int j = 0; j < CHANNELS / 8; j++)
#pragma unroll
      for (int i = 0; i < 4; i++) outputs[row + i / 2 * 8][j * 8 + column + i % 2] = acc[j][i];
  }
};

template <int CHANNELS, bool BF16> struct Product<CHANNELS, TensorCore<BF16>> : WarpSums<CHANNELS> {
  using Weight = float;
  static constexpr int VALUES = BF16 ? 2 : 1;  // in a word
  static constexpr int ROWS = 16 * WARPS, DEPTH = WORDS * VALUES, QUADS = DEPTH / 4;
  struct Tiles {
    unsigned rows[ROWS][PITCH], columns[CHANNELS][PITCH];
  };
  union Shared {
    Tiles tiles;
    float outputs[ROWS][CHANNELS + 4];
  };

  static __device__ __forceinline__ void put_row(Tiles& tiles, int row, int quad, float4 v) {
    put_words<BF16>(tiles.rows[row], quad, v);
  }
  static __device__ __forceinline__ void put_column(Tiles& tiles, int column, int quad, float4 v) {
    put_words<BF16>(tiles.columns[column], quad, v);
  }
  static __device__ __forceinline__ void put_rows(Tiles& tiles, int first, int step, const float4 (&v)[VALUES]) {
    put_transposed(tiles.rows + first, step, v);
  }
  static __device__ __forceinline__ void put_columns(Tiles& tiles, int first, int step, const float4 (&v)[VALUES]) {
    put_transposed(tiles.columns + first, step, v);
  }
  __device__ __forceinline__ void multiply(const Tiles& tiles) {
    ::multiply<CHANNELS, BF16>(this->acc, tiles.rows + threadIdx.x / 32 * 16, tiles.columns);
  }

 private:
  static __device__ __forceinline__ void put_transposed(unsigned (*words)[PITCH], int step, const float4 (&v)[VALUES]) {
    const float4 low = v[0], high = v[VALUES - 1];
    words[0][step] = make_word<BF16>(low.x, high.x);
    words[1][step] = make_word<BF16>(low.y, high.y);
    words[2][step] = make_word<BF16>(low.z, high.z);
    words[3][step] = make_word<BF16>(low.w, high.w);
  }
};
