// A warp's matrix product on the tensor cores, with operands in TF32 or bfloat16 and sums in float32.
//
// A tensor core multiplies two small matrices that lie spread over the 32 lanes of a warp (ptx.cuh shows how).
// The content of a register is a word: one TF32 value, or two bfloat16 values that are neighbours along k. Counted
// in words both formats look the same: an instruction multiplies 16 rows of 8 words by 8 columns of 8 words. So
// the tiles in shared memory are arrays of words, and only the rounding and the instruction depend on the format.
//
// Rows of a tile are PITCH = 20 words apart: lane l reads row l / 4 at word l % 4, and 20 (l / 4) + l % 4 are 32
// different memory banks.

constexpr int WORDS = 16, PITCH = WORDS + 4, WARPS = THREADS / 32;

template <bool BF16> __device__ __forceinline__ unsigned make_word(float low, float high) {
  return BF16 ? pack_bf16(low, high) : to_tf32(low);
}

// Write four neighbours along k into a row of words; `quad` counts such fours from the beginning of the row.
template <bool BF16> __device__ __forceinline__ void put_words(unsigned* row, int quad, float4 v) {
  if (BF16) {
    row[quad * 2] = make_word<BF16>(v.x, v.y);
    row[quad * 2 + 1] = make_word<BF16>(v.z, v.w);
  } else {
    row[quad * 4] = make_word<BF16>(v.x, 0);
    row[quad * 4 + 1] = make_word<BF16>(v.y, 0);
    row[quad * 4 + 2] = make_word<BF16>(v.z, 0);
    row[quad * 4 + 3] = make_word<BF16>(v.w, 0);
  }
}

// acc (16 x CHANNELS) += rows (16 x WORDS) columns^T (CHANNELS x WORDS), by one warp.
//
// A tensor core does not round the results of its additions, it cuts them off: a long sum in its accumulator would
// drift towards zero. So each tile's sum begins anew and is added to acc by an ordinary addition.
template <int CHANNELS, bool BF16>
__device__ __forceinline__ void multiply(float (&acc)[CHANNELS / 8][4], const unsigned (*rows)[PITCH],
                                         const unsigned (*columns)[PITCH]) {
  constexpr int STEPS = WORDS / 8;
  const int row = threadIdx.x % 32 / 4, word = threadIdx.x % 4;
  unsigned a[STEPS][4];
#pragma unroll
  for (int step = 0; step < STEPS; step++)
#pragma unroll
    for (int i = 0; i < 4; i++) a[step][i] = rows[row + i % 2 * 8][step * 8 + word + i / 2 * 4];
#pragma unroll
  for (int j = 0; j < CHANNELS / 8; j++) {
    float sum[4] = {};
#pragma unroll
    for (int step = 0; step < STEPS; step++) {
      const unsigned b[2] = {columns[j * 8 + row][step * 8 + word], columns[j * 8 + row][step * 8 + word + 4]};
      if (BF16) mma_bf16(sum, a[step], b);
      else mma_tf32(sum, a[step], b);
    }
#pragma unroll
    for (int i = 0; i < 4; i++) acc[j][i] += sum[i];
  }
}
