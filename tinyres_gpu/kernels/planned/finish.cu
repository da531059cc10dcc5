// Launches that finish the partial results of other launches: see finish.cuh.

constexpr int ACROSS = 16;  // channels of a block; the number of channels of every network here is a multiple of 16

// One block of it to a processor is enough: without the second number NVRTC 12.9 and 13.0 hold back registers for
// sm_80 and spill.
__global__ void __launch_bounds__(THREADS, 1) finish_moments(const MomentsToFinish* of, const float2* partial) {
  __shared__ double shared[THREADS];
  finish(*of, partial, blockIdx.x * ACROSS, ACROSS, shared);
}

__global__ void __launch_bounds__(THREADS) finish_sums(const SumsToFinish* of, const float2* partial) {
  __shared__ double shared[THREADS];
  finish(*of, partial, blockIdx.x * ACROSS, ACROSS, shared);
}

// Add up the splits of weight gradients, many parameters in one launch: block i computes ELEMENTS numbers of
// sums[sum_of_block[i]], from number first_of_block[i] on.
constexpr int ELEMENTS = 1024;

struct SplitSum {
  const float* partial;  // (splits, size)
  float* gradient;       // (size,)
  long long splits, size;
};

__global__ void sum_splits(const SplitSum* sums, const int* sum_of_block, const int* first_of_block) {
  const SplitSum sum = sums[sum_of_block[blockIdx.x]];
  const int first = first_of_block[blockIdx.x];
  for (int i = first + threadIdx.x; i < min((int)sum.size, first + ELEMENTS); i += THREADS)
    sum.gradient[i] = sum_in_order(sum.partial + i, (int)sum.splits, (int)sum.size);
}
