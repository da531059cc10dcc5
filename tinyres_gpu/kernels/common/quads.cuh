// Tensors are read and written four neighbouring channels at a time: 16 bytes of float32, the most that a thread can
// ask memory for at once. In a planned step the number of channels of every tensor is a multiple of four.

__device__ __forceinline__ float4 operator+(float4 a, float4 b) {
  return {a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w};
}
__device__ __forceinline__ float4 operator-(float4 a, float4 b) {
  return {a.x - b.x, a.y - b.y, a.z - b.z, a.w - b.w};
}
__device__ __forceinline__ float4 operator*(float4 a, float4 b) {
  return {a.x * b.x, a.y * b.y, a.z * b.z, a.w * b.w};
}
__device__ __forceinline__ float4 operator*(float4 a, float b) { return {a.x * b, a.y * b, a.z * b, a.w * b}; }

__device__ __forceinline__ float4 load(const float* x, int at) { return *(const float4*)(x + at); }
__device__ __forceinline__ float4 store(float* y, int at, float4 v) { return *(float4*)(y + at) = v; }

// ---- Tensors between launches may be stored in 16 bits; all computing is in float32. The format of a tensor is an
// argument, the same for all threads. `store` returns the rounded values, which will be read again.

using Stored = unsigned char;  // the memory of a tensor in any format
enum Format { FLOAT32, BFLOAT16, FLOAT16 };

__device__ __forceinline__ float2 unpack(unsigned bits, int format) {
  if (format == FLOAT16) return {from_float16(bits & 0xffff), from_float16(bits >> 16)};
  return {__uint_as_float(bits << 16), __uint_as_float(bits & 0xffff0000u)};
}
__device__ __forceinline__ unsigned pack(float low, float high, int format) {
  if (format == FLOAT16) return to_float16(low) | to_float16(high) << 16;
  return to_bfloat16(low) | to_bfloat16(high) << 16;
}
// Reading has two halves: a thread first fetches the bits of all values that it can use, and then turns the bits into
// numbers. So it waits for memory only once.
__device__ __forceinline__ uint4 fetch(const Stored* x, int at, int format) {
  if (format == FLOAT32) return *(const uint4*)(x + 4LL * at);
  const uint2 bits = *(const uint2*)(x + 2LL * at);
  return {bits.x, bits.y, 0, 0};
}
__device__ __forceinline__ float4 decode(uint4 bits, int format) {
  if (format == FLOAT32)
    return {__uint_as_float(bits.x), __uint_as_float(bits.y), __uint_as_float(bits.z), __uint_as_float(bits.w)};
  const float2 low = unpack(bits.x, format), high = unpack(bits.y, format);
  return {low.x, low.y, high.x, high.y};
}
__device__ __forceinline__ float4 load(const Stored* x, int at, int format) {
  return decode(fetch(x, at, format), format);
}
__device__ __forceinline__ float4 store(Stored* y, int at, int format, float4 v) {
  if (format == FLOAT32) return store((float*)y, at, v);
  const uint2 bits = {pack(v.x, v.y, format), pack(v.z, v.w, format)};
  *(uint2*)(y + 2LL * at) = bits;
  const float2 low = unpack(bits.x, format), high = unpack(bits.y, format);
  return {low.x, low.y, high.x, high.y};
}

// ---- Batch norm of four channels. `norm` is (groups, channels): mean, rstd, gamma and beta of each channel together.

struct Norms {
  float4 of[4];
};
__device__ __forceinline__ Norms load_norms(const float4* norm, int first) {
  return {{norm[first], norm[first + 1], norm[first + 2], norm[first + 3]}};
}
__device__ __forceinline__ float4 normalise(float4 x, const Norms& by) {
  return {normalise(x.x, by.of[0].x, by.of[0].y), normalise(x.y, by.of[1].x, by.of[1].y),
          normalise(x.z, by.of[2].x, by.of[2].y), normalise(x.w, by.of[3].x, by.of[3].y)};
}
__device__ __forceinline__ float4 bn(float4 x, const Norms& by) {
  return {bn(x.x, by.of[0].x, by.of[0].y, by.of[0].z, by.of[0].w),
          bn(x.y, by.of[1].x, by.of[1].y, by.of[1].z, by.of[1].w),
          bn(x.z, by.of[2].x, by.of[2].y, by.of[2].z, by.of[2].w),
          bn(x.w, by.of[3].x, by.of[3].y, by.of[3].z, by.of[3].w)};
}
__device__ __forceinline__ float4 relu(float4 x) {
  return {fmaxf(x.x, 0.f), fmaxf(x.y, 0.f), fmaxf(x.z, 0.f), fmaxf(x.w, 0.f)};
}
