// Numbers of 16 bits: float16 has 10 bits of fraction and a range of 6e-8 to 65504, bfloat16 has 7 and float32's
// range. Rounding is to the nearest, ties to even. The emulator of the tests brings its own float16.

#ifndef TINYRES_EMULATOR
__device__ __forceinline__ float from_float16(unsigned bits) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"((unsigned short)bits));
  return value;
}
__device__ __forceinline__ unsigned to_float16(float value) {
  unsigned short bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
}
#endif

__device__ __forceinline__ unsigned to_bfloat16(float value) {  // a NaN stays one: 0x7fff
  const unsigned bits = __float_as_uint(value);
  return value == value ? (bits + 0x7fff + (bits >> 16 & 1)) >> 16 : 0x7fff;
}
