// Tensors are read and written four neighbouring channels at a time: 16 bytes of float32, which is as much as a
// thread can ask memory for at once. The planned step's tensors all have a multiple of four channels.

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

// ---- Batch norm of four channels. `norm` is (groups, channels): mean, rstd, gamma and beta of each together.

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
