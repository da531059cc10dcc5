// The weights of all convolutions, rounded and arranged for the tensor cores in one launch: once for the forward pass
// and once for the backward pass. So no block has to round and arrange weights that another block also needs.
//
// ptx.cuh says which words of b a lane holds: of column lane / 4, words lane % 4 and lane % 4 + 4 of eight along the
// sum. Here these words lie side by side, a pair for each lane, as (taps, steps of 8 words, blocks of 8 columns, 32
// lanes). Forward the sum runs over C_in and the columns are C_out; backward it is the other way round.

constexpr int ELEMENTS = 1024;

struct Packing {
  const float* w;  // (taps, C_in, C_out)
  uint2 *forward, *backward;
  long long taps, channels, out_channels;
};

template <bool BF16>
__global__ void pack_weights(const Packing* packings, const int* of_block, const int* first_of_block) {
  constexpr int VALUES = BF16 ? 2 : 1;
  const Packing of = packings[of_block[blockIdx.x]];
  const int channels = of.channels, out_channels = of.out_channels, first = first_of_block[blockIdx.x];
  const int pairs = of.taps * channels * out_channels / (2 * VALUES);
  const auto pack = [&](int i, int length, int width, int along, int across) -> uint2 {
    const int lane = i % 32, column = i / 32 % (width / 8) * 8 + lane / 4;
    const int step = i / (4 * width) % (length / (8 * VALUES)), tap = i / (4 * width) / (length / (8 * VALUES));
    const float* from = of.w + tap * channels * out_channels + column * across;
    const int low = (step * 8 + lane % 4) * VALUES, high = low + 4 * VALUES;
    return {make_word<BF16>(from[low * along], from[(low + VALUES - 1) * along]),
            make_word<BF16>(from[high * along], from[(high + VALUES - 1) * along])};
  };
  for (int i = first + threadIdx.x; i < min(pairs, first + ELEMENTS); i += THREADS) {
    of.forward[i] = pack(i, channels, out_channels, out_channels, 1);
    of.backward[i] = pack(i, out_channels, channels, 1, out_channels);
  }
}
