// The head of a planned step: pooling of the last activation, classifier and loss, and the gradient at that activation.

// y[n, c] = the mean over pixels of relu(bn(x)); one thread for four channels of an image.
__global__ void pool(const Stored* x, int format, const float4* norm, float* y, int images_per_group, int pixels,
                     int channels, int quads) {
  const int i = blockIdx.x * THREADS + threadIdx.x;
  if (i >= quads) return;
  const int image = i / (channels / 4), c = i % (channels / 4) * 4;
  Activated activated = {x, format, norm, true};
  activated.at_channel(image / images_per_group * channels + c);
  float4 total = {0, 0, 0, 0};
  for (int first = 0; first < pixels; first += 16) {
    float4 run = {0, 0, 0, 0};
    for (int p = first; p < min(pixels, first + 16); p++)
      run = run + activated.read((image * pixels + p) * channels + c);
    total = total + run;
  }
  store(y, i * 4, total * (1.f / pixels));
}

__device__ __forceinline__ float dot(const float* a, const float* b, int count, int a_step, int b_step) {
  float total = 0;
  for (int begin = 0; begin < count; begin += 16) {
    float run = 0;
    for (int i = begin; i < min(count, begin + 16); i++) run = fmaf(a[i * a_step], b[i * b_step], run);
    total += run;
  }
  return total;
}

// One block for each image: logits, softmax, loss, whether the largest logit is not the label's, and the gradient at
// the pooled features. `share` is 1 / mini-batch: the gradient is that of the mean loss. The largest logit is
// subtracted first.
__global__ void __launch_bounds__(THREADS, 2)
    classify(const float* pooled, const float* w, const float* b, const int* labels, float* dlogits, float* dpooled,
             float2* loss_and_error, int classes, int channels, float share) {
  __shared__ float logits[1024];
  const int image = blockIdx.x, label = labels[image];
  const float* x = pooled + image * channels;
  for (int k = threadIdx.x; k < classes; k += THREADS) logits[k] = dot(x, w + k * channels, channels, 1, 1) + b[k];
  __syncthreads();
  int best = 0;
  for (int k = 1; k < classes; k++)
    if (logits[k] > logits[best]) best = k;
  float sum = 0;
  for (int k = 0; k < classes; k++) sum += expf(logits[k] - logits[best]);
  const float log_sum = logf(sum), largest = logits[best], own = logits[label];
  __syncthreads();  // everybody has read the logits
  for (int k = threadIdx.x; k < classes; k += THREADS) {
    const float p = expf(logits[k] - largest - log_sum);
    logits[k] = dlogits[image * classes + k] = share * (p - (k == label ? 1.f : 0.f));
  }
  __syncthreads();
  for (int c = threadIdx.x; c < channels; c += THREADS)
    dpooled[image * channels + c] = dot(logits, w + c, classes, 1, channels);
  if (threadIdx.x == 0) loss_and_error[image] = {log_sum - (own - largest), best == label ? 0.f : 1.f};
}

// One thread for each number: the linear layer's gradients, and the mini-batch's summed loss and errors, which go to
// the iteration's place in `results` (iterations, 2).
__global__ void linear_gradient(const float* pooled, const float* dlogits, const float2* loss_and_error, float* dw,
                                float* db, double* results, const int* position, int images, int classes,
                                int channels) {
  const int i = blockIdx.x * THREADS + threadIdx.x, weights = classes * channels;
  if (i < weights) {
    dw[i] = dot(dlogits + i / channels, pooled + i % channels, images, classes, channels);
  } else if (i < weights + classes) {
    db[i - weights] = sum_in_order(dlogits + i - weights, images, classes);
  } else if (i == weights + classes) {
    double loss = 0, errors = 0;
    for (int n = 0; n < images; n++) {
      loss += loss_and_error[n].x;
      errors += loss_and_error[n].y;
    }
    results[*position * 2] = loss;
    results[*position * 2 + 1] = errors;
  }
}

// Each pixel gets the same share of the pooled features' gradient, which then passes the last ReLU: see pass_gate.
template <int CHANNELS>
__global__ void __launch_bounds__(THREADS, 2)
    pool_gradient(const float* dpooled, const Stored* t, const float4* norm, const Stored* gate, int t_format,
                  Stored* dz, int dz_format, float2* sums,
                  int images, int images_per_group, int pixels, int channels, int rows, const SumsToFinish* to_finish,
                  int* arrivals) {
  __shared__ float4 reduced[THREADS / 32][CHANNELS / 4];
  const Tile tile = find_tile(rows, images, images_per_group, pixels);
  const auto gradient = [&](int i, int c) {
    return load(dpooled, (tile.first + i) / pixels * channels + c) * (1.f / pixels);
  };
  const int first_channel = blockIdx.y * CHANNELS, c = first_channel + threadIdx.x % (CHANNELS / 4) * 4;
  const GradientSums found = pass_gate<CHANNELS>(t, norm, gate, t_format, dz, dz_format, tile, rows, first_channel,
                                                 channels, gradient);
  write_sums<CHANNELS>(sums, found, tile, c, channels, reduced);
  finish_if_last(to_finish, sums, arrivals, first_channel, CHANNELS);
}
