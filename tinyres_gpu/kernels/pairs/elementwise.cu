// One thread for each number: the ReLU, option A's subsampling, and the merges of Fig. 2.

__global__ void relu(const float* x, float* y, int size) {
  const int i = blockIdx.x * 256 + threadIdx.x;
  if (i < size) y[i] = fmaxf(x[i], 0.f);
}
__global__ void relu_gradient(const float* y, const float* dy, float* dx, int size) {
  const int i = blockIdx.x * 256 + threadIdx.x;
  if (i < size) dx[i] = y[i] > 0 ? dy[i] : 0;  // y > 0 where x > 0
}

// ---- Option A: every stride-th pixel, zero channels appended. x is (N, H, W, C), y (N, H', W', C').
__global__ void subsample(const float* x, float* y, int height, int width, int channels, int out_height,
                          int out_width, int out_channels, int stride, int size) {
  const int i = blockIdx.x * 256 + threadIdx.x;
  if (i >= size) return;
  const int c = i % out_channels;
  const Pixel at = locate(i / out_channels, out_height, out_width);
  const int from = ((at.image * height + at.row * stride) * width + at.column * stride) * channels + c;
  y[i] = c < channels ? x[from] : 0;
}
__global__ void subsample_gradient(const float* dy, float* dx, int height, int width, int channels, int out_height,
                                   int out_width, int out_channels, int stride, int size) {
  const int i = blockIdx.x * 256 + threadIdx.x;
  if (i >= size) return;
  const Pixel at = locate(i / channels, height, width);
  const bool taken = at.row % stride == 0 && at.column % stride == 0;
  const int pixel = (at.image * out_height + at.row / stride) * out_width + at.column / stride;
  dx[i] = taken ? dy[pixel * out_channels + i % channels] : 0;
}

// ---- Identity and scaling: y = a s + b F, Eqs. (3) and (6); the gradient of each path is dy times a number.
__global__ void scaled_sum(const float* s, const float* f, float a, float b, float* y, int size) {
  const int i = blockIdx.x * 256 + threadIdx.x;
  if (i < size) y[i] = a * s[i] + b * f[i];
}
__global__ void scale(const float* dy, float a, float* ds, int size) {
  const int i = blockIdx.x * 256 + threadIdx.x;
  if (i < size) ds[i] = a * dy[i];
}

// ---- Dropout: y = mask s + F.
__global__ void masked_sum(const float* s, const float* f, const bool* mask, float* y, int size) {
  const int i = blockIdx.x * 256 + threadIdx.x;
  if (i < size) y[i] = (mask[i] ? s[i] : 0) + f[i];
}
__global__ void masked(const float* dy, const bool* mask, float* ds, int size) {
  const int i = blockIdx.x * 256 + threadIdx.x;
  if (i < size) ds[i] = mask[i] ? dy[i] : 0;
}

// ---- The gates: a is W_g * s without its bias, g = sigmoid(a + b). EXCLUSIVE: y = (1 - g) s + g F; shortcut-only
// gates: y = (1 - g) s + F.
template <bool EXCLUSIVE>
__global__ void gated_sum(const float* s, const float* f, const float* a, const float* bias, float* g, float* y,
                          int channels, int size) {
  const int i = blockIdx.x * 256 + threadIdx.x;
  if (i >= size) return;
  g[i] = 1 / (1 + expf(-(a[i] + bias[i % channels])));
  y[i] = (1 - g[i]) * s[i] + (EXCLUSIVE ? g[i] * f[i] : f[i]);
}
// ds is the direct part of the gradient at s. The part through the gate comes from da, by the convolution's backward.
template <bool EXCLUSIVE>
__global__ void gated_sum_gradient(const float* s, const float* f, const float* g, const float* dy, float* ds,
                                   float* df, float* da, int size) {
  const int i = blockIdx.x * 256 + threadIdx.x;
  if (i >= size) return;
  ds[i] = (1 - g[i]) * dy[i];
  if (EXCLUSIVE) df[i] = g[i] * dy[i];
  da[i] = (EXCLUSIVE ? f[i] - s[i] : -s[i]) * dy[i] * g[i] * (1 - g[i]);
}
