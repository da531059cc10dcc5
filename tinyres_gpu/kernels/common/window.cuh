// A convolution is a matrix product whose left matrix is never built.
//
// Write each output pixel's inputs in a row: for every tap of the window, the channels of the pixel that the tap
// reads. That row, `depth = taps x channels` long, times a (depth, C_out) matrix of weights is the output. The
// matrix of all rows holds every input nine times, so it should not be in memory. But a kernel that multiplies
// matrices only ever looks at one small tile at a time, and a tile can be gathered from the image when needed.
// This file has all that gathering needs: where in x does the entry at row `pixel`, column `k` of that matrix lie?
//
// Tensors are (N, H, W, C) in memory, so neighbouring k are neighbouring addresses.

constexpr int THREADS = 256;

struct Geometry {  // of one pass: x is the tensor that is read, in the forward and in the backward pass
  int height, width, channels;              // of x
  int out_height, out_width, out_channels;  // of the tensor that is computed
  int kernel_size, stride;
  bool gradient;  // whether the pass is the gradient with respect to the convolution's input
};

// The row (or column) of x that output row `out` reads at tap `tap`; -1: no row, but a zero of the padding.
// The gradient of the convolution goes the other way: input row `out` was read, at tap `tap`, by output row
// (out + border - tap) / stride, if stride divides the difference.
__device__ __forceinline__ int source(bool gradient, int out, int tap, int border, int stride, int size) {
  int at = gradient ? out + border - tap : out * stride + tap - border;
  if (gradient && stride > 1) {  // a division takes long
    if (at % stride != 0) return -1;
    at /= stride;
  }
  return at < size ? at : -1;  // a negative number means no row anyway
}

struct Pixel {
  int image, row, column;
};
__device__ __forceinline__ Pixel locate(int pixel, int height, int width) {
  return {pixel / (height * width), pixel / width % height, pixel % width};
}

struct Depth {  // column k of the matrix
  int tap_row, tap_column, channel;
};
__device__ __forceinline__ Depth locate_depth(int k, int channels, int kernel_size) {
  const int tap = k / channels;
  return {tap / kernel_size, tap % kernel_size, k % channels};
}

// Where in x the value for output `out` and column k lies, or -1 for a zero.
__device__ __forceinline__ int address(const Pixel& out, const Depth& k, const Geometry& g) {
  const int row = source(g.gradient, out.row, k.tap_row, g.kernel_size / 2, g.stride, g.height);
  const int column = source(g.gradient, out.column, k.tap_column, g.kernel_size / 2, g.stride, g.width);
  if (row < 0 || column < 0) return -1;
  return ((out.image * g.height + row) * g.width + column) * g.channels + k.channel;
}

// Where in w, stored (C_out, C_in, k, k), the weight from depth k to channel `out` lies. For the
// gradient the two channels exchange their roles.
__device__ __forceinline__ int weight_address(const Depth& k, int out, const Geometry& g) {
  const int plane = g.gradient ? k.channel * g.out_channels + out : out * g.channels + k.channel;
  return (plane * g.kernel_size + k.tap_row) * g.kernel_size + k.tap_column;
}

// ---- The value of the window matrix. If there are moments, it is activated while it is read: relu(gamma (x - mean)
// rstd + beta). Padding is zero *after* the activation.

struct Activation {
  const float *mean, *rstd, *gamma, *beta;  // mean and rstd are (groups, channels)
  int images_per_group;
};

__device__ __forceinline__ float fetch(const float* x, const Pixel& out, const Depth& k, const Geometry& g,
                                       const Activation& by) {
  const int from = address(out, k, g);
  if (from < 0) return 0;
  if (!by.mean) return x[from];
  const int c = k.channel, group = out.image / by.images_per_group * g.channels + c;
  return activate(x[from], by.mean[group], by.rstd[group], by.gamma[c], by.beta[c]);
}
