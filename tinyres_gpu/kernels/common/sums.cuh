// Sums in a fixed order with little rounding: the numbers of a run of 16 are added up by themselves, then the sums of
// the runs. A full run needs no check of a bound, so its 16 loads can be under way together.

__device__ __forceinline__ float sum_in_order(const float* values, int count, int step) {
  float total = 0;
  int i = 0;
  while (i + 16 <= count) {
    float run = 0;
#pragma unroll
    for (int k = 0; k < 16; k++, i++) run += values[(long long)i * step];
    total += run;
  }
  float rest = 0;
  for (; i < count; i++) rest += values[(long long)i * step];
  return total + rest;
}
