// Batch norm of one value. Every kernel computes batch norm by these functions, so that all get the same bits.

__device__ __forceinline__ float normalise(float x, float mean, float rstd) { return (x - mean) * rstd; }

__device__ __forceinline__ float bn(float x, float mean, float rstd, float gamma, float beta) {
  return fmaf(gamma, normalise(x, mean, rstd), beta);
}

__device__ __forceinline__ float activate(float x, float mean, float rstd, float gamma, float beta) {
  return fmaxf(bn(x, mean, rstd, gamma, beta), 0.f);
}
