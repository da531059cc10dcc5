// Instructions that C++ has no name for, each behind a function. The emulator of the tests brings its own.
//
// mma_*: a warp multiplies small matrices on the tensor cores, d (16x8) += a (16xk) b (kx8) in float32. Each lane
// holds a few elements of each matrix. With group = lane / 4 and pair = 2 (lane % 4) it holds, for bfloat16 (k = 16),
//     a[0], a[1]: rows group, group + 8 at columns pair, pair + 1;    a[2], a[3]: the same at columns + 8
//     b[0], b[1]: rows pair, pair + 1 and the same + 8, of column group
//     d[0..3]:    (group, pair), (group, pair + 1), (group + 8, pair), (group + 8, pair + 1)
// with two bfloat16 values in a register, the lower index in the lower half. For TF32 (k = 8) a register has one value,
// at column (of a) or row (of b) lane % 4, and the same + 4. The layout of d is the same.

#ifndef TINYRES_EMULATOR

__device__ __forceinline__ void mma_bf16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ __forceinline__ void mma_tf32(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ __forceinline__ unsigned to_tf32(float value) {  // 8 bits of exponent, 10 of fraction, to the nearest
  unsigned bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
  return bits;
}

__device__ __forceinline__ unsigned pack_bf16(float low, float high) {  // 8 bits of exponent, 7 of fraction
  unsigned bits;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
  return bits;
}

// Load four 8x8 matrices of 16-bit values from shared memory. Lane l gives the address of row l % 8 of matrix l / 8, a
// multiple of 16 bytes. r[i] gets elements 2 (l % 4) and 2 (l % 4) + 1 of row l / 4 of matrix i. So one call loads all
// that a lane holds of a in mma_bf16. The transposed load exchanges rows and columns, as b needs it when k runs along
// the rows in memory.
__device__ __forceinline__ void load_matrices(unsigned (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"((unsigned)__cvta_generic_to_shared(row))
               : "memory");
}
__device__ __forceinline__ void load_matrices_transposed(unsigned (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"((unsigned)__cvta_generic_to_shared(row))
               : "memory");
}

// Ask for the 128 bytes around an address, and do not wait.
__device__ __forceinline__ void prefetch(const void* address) {
  asm volatile("prefetch.global.L1 [%0];" ::"l"(address));
}

#endif
