// Mean and variance by merging sets of values.
//
// The variance is never computed as E[x^2] - E[x]^2: if the mean is much larger than the deviation, both terms
// agree in most digits and their difference is noise. Instead sets are *merged* (Chan, Golub, LeVeque, 1979).
// With delta = mean_b - mean_a,
//
//     count = count_a + count_b      mean = mean_a + delta count_b / count
//     m2    = m2_a + m2_b + delta^2 count_a count_b / count          (m2: the sum of squared deviations)

struct Moments {
  double count, mean, m2;
};

__device__ __forceinline__ Moments merge(Moments a, Moments b) {
  if (b.count == 0) return a;
  const double count = a.count + b.count, delta = b.mean - a.mean, share = b.count / count;
  return {count, a.mean + delta * share, a.m2 + b.m2 + delta * delta * a.count * share};
}
