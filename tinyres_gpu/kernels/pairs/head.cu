// The end of a network: global average pooling, the linear layer, softmax and cross-entropy. All of this is tiny
// beside one convolution, so each kernel is just the formula: one thread for each output, sums in a fixed order.

// ---- Pooling: x is (N, pixels, C), y is (N, C).
__global__ void average_pool(const float* x, float* y, int pixels, int channels, int size) {
  const int i = blockIdx.x * 256 + threadIdx.x;
  if (i >= size) return;
  y[i] = sum_in_order(x + (long long)(i / channels) * pixels * channels + i % channels, pixels, channels) / pixels;
}
__global__ void average_pool_gradient(const float* dy, float* dx, int pixels, int channels, int size) {
  const int i = blockIdx.x * 256 + threadIdx.x;
  if (i < size) dx[i] = dy[i / (pixels * channels) * channels + i % channels] / pixels;
}

// ---- A product of two small matrices. Each matrix has two steps, by which it may be read transposed:
// c[i, j] = sum_k a[i a_row + k a_k] b[k b_k + j b_column]  (+ bias[j])
__global__ void small_product(const float* a, const float* b, const float* bias, float* c, int depth, int columns,
                              int a_row, int a_k, int b_k, int b_column, int size) {
  const int i = blockIdx.x * 256 + threadIdx.x;
  if (i >= size) return;
  const float* row = a + i / columns * a_row;
  const float* column = b + i % columns * b_column;
  float total = 0;
  for (int begin = 0; begin < depth; begin += 16) {
    float run = 0;
    for (int k = begin; k < min(depth, begin + 16); k++) run = fmaf(row[k * a_k], column[k * b_k], run);
    total += run;
  }
  c[i] = bias ? total + bias[i % columns] : total;
}

// ---- Softmax and cross-entropy, one thread for each image. The largest logit is subtracted first: exp is at most 1.
__global__ void softmax_cross_entropy(const float* logits, const long long* labels, float* p, float* losses,
                                      int classes, int images) {
  const int n = blockIdx.x * 256 + threadIdx.x;
  if (n >= images) return;
  const float* z = logits + n * classes;
  float largest = z[0], sum = 0;
  for (int k = 1; k < classes; k++) largest = fmaxf(largest, z[k]);
  for (int k = 0; k < classes; k++) sum += expf(z[k] - largest);
  const float log_sum = logf(sum);
  for (int k = 0; k < classes; k++) p[n * classes + k] = expf(z[k] - largest - log_sum);
  losses[n] = log_sum - (z[labels[n]] - largest);
}
__global__ void softmax_cross_entropy_gradient(const float* p, const long long* labels, float dloss, float* dlogits,
                                               int classes, int size) {
  const int i = blockIdx.x * 256 + threadIdx.x;
  if (i < size) dlogits[i] = dloss * (p[i] - (i % classes == labels[i / classes] ? 1.f : 0.f));
}

// ---- Add rows of numbers in order, `rows_per_run` at a time: the losses of a mini-batch, a bias's gradient.
// values is (rows, columns), sums is (runs, columns); the last run may be shorter.
__global__ void sum_rows(const float* values, float* sums, int rows, int rows_per_run, int columns, int size) {
  const int i = blockIdx.x * 256 + threadIdx.x;
  if (i >= size) return;
  const int first = i / columns * rows_per_run;
  const float* from = values + (long long)first * columns + i % columns;
  sums[i] = sum_in_order(from, min(rows_per_run, rows - first), columns);
}
