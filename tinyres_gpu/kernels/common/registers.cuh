// The inner loop of a float32 matrix product: a thread owns 4 x 4 outputs in registers and reads four numbers of
// each operand for them. total += a^T b, where row d of a and of b belong to step d of the sum. The DEPTH products are
// added up by themselves first, so that the rounding error grows with DEPTH + k / DEPTH rather than with k.

template <int DEPTH, int A_PITCH, int B_PITCH>
__device__ __forceinline__ void multiply_in_registers(float (&total)[4][4], const float (*a)[A_PITCH],
                                                      const float (*b)[B_PITCH], int my_row, int my_column) {
  float part[4][4] = {};
#pragma unroll
  for (int d = 0; d < DEPTH; d++) {
    const float4 row = *(const float4*)&a[d][my_row], column = *(const float4*)&b[d][my_column];
    const float rows[4] = {row.x, row.y, row.z, row.w}, columns[4] = {column.x, column.y, column.z, column.w};
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
      for (int j = 0; j < 4; j++) part[i][j] = fmaf(rows[i], columns[j], part[i][j]);
  }
#pragma unroll
  for (int i = 0; i < 4; i++)
#pragma unroll
    for (int j = 0; j < 4; j++) total[i][j] += part[i][j];
}
