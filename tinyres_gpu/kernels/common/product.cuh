// A block's matrix product, outputs (ROWS x CHANNELS) += rows^T columns, in float32. The fused kernels fill
// `Tiles`, call `multiply`, and find the sums in `outputs` after `write`. product_tensor_core.cuh has the same
// functions with the tensor cores' arithmetic, so that the fused kernels are written once.
//
// A tile holds DEPTH steps of the sum. It is filled with four neighbouring steps of one row (`put_row`), or with
// four neighbouring rows of VALUES steps (`put_rows`), whichever way the numbers lie in memory.

// How many blocks a processor should have room for at once: while one block waits for memory, others multiply. With
// more blocks each has fewer registers, and wide blocks would not have enough registers for their sums.
template <int CHANNELS> constexpr int AT_ONCE = CHANNELS == 16 ? 3 : 2;

struct Float32 {};

template <int CHANNELS, class Arithmetic> struct Product;

// The type as which a convolution's weights are read.
template <int CHANNELS, class Arithmetic> using Weight = typename Product<CHANNELS, Arithmetic>::Weight;

template <int CHANNELS> struct Product<CHANNELS, Float32> {
  using Weight = float;
  static constexpr int ROWS = THREADS * 16 / CHANNELS, DEPTH = 16, QUADS = DEPTH / 4, VALUES = 1;
  struct Tiles {
    float rows[DEPTH][ROWS + 4], columns[DEPTH][CHANNELS + 4];
  };
  union Shared {
    Tiles tiles;
    float outputs[ROWS][CHANNELS + 4];
  };
  float total[4][4];

  __device__ __forceinline__ Product() : total{} {}

  static __device__ __forceinline__ void put_row(Tiles& tiles, int row, int quad, float4 v) {
    put<ROWS + 4>(tiles.rows, row, quad, v);
  }
  static __device__ __forceinline__ void put_column(Tiles& tiles, int column, int quad, float4 v) {
    put<CHANNELS + 4>(tiles.columns, column, quad, v);
  }
  static __device__ __forceinline__ void put_rows(Tiles& tiles, int first, int step, const float4 (&v)[1]) {
    store(tiles.rows[step], first, v[0]);
  }
  static __device__ __forceinline__ void put_columns(Tiles& tiles, int first, int step, const float4 (&v)[1]) {
    store(tiles.columns[step], first, v[0]);
  }
  __device__ __forceinline__ void multiply(const Tiles& tiles) {
    multiply_in_registers<DEPTH>(total, tiles.rows, tiles.columns, my_row(), my_column());
  }
  __device__ __forceinline__ void write(float (*outputs)[CHANNELS + 4]) const {
#pragma unroll
    for (int i = 0; i < 4; i++)
      store(outputs[my_row() + i], my_column(), {total[i][0], total[i][1], total[i][2], total[i][3]});
  }

 private:
  static __device__ __forceinline__ int my_row() { return threadIdx.x / (CHANNELS / 4) * 4; }
  static __device__ __forceinline__ int my_column() { return threadIdx.x % (CHANNELS / 4) * 4; }
  template <int PITCH>
  static __device__ __forceinline__ void put(float (*tile)[PITCH], int at, int quad, float4 v) {
    tile[quad * 4][at] = v.x;
    tile[quad * 4 + 1][at] = v.y;
    tile[quad * 4 + 2][at] = v.z;
    tile[quad * 4 + 3][at] = v.w;
  }
};
