// The end of an original unit, Fig. 4(a): x' = relu(bn(t) + s), with s the unit's input, every other pixel of it
// (option A), or a batch norm of its projection (option B). A pass of its own: t's moments are not known before t
// is complete, and x' is read three times.
__global__ void join(const Stored* t, const float4* norm, const Stored* shortcut, const float4* shortcut_norm,
                     int shortcut_channels, int shortcut_stride, int rectified, Stored* y, int format,
                     int images_per_group, int height, int width, int channels, int quads) {
  const int i = blockIdx.x * THREADS + threadIdx.x;
  if (i >= quads) return;
  const Pixel at = locate(i / (channels / 4), height, width);
  const int c = i % (channels / 4) * 4, group = at.image / images_per_group;
  Shortcut added = {{shortcut, format, shortcut_norm, rectified != 0}, shortcut_channels, shortcut_stride};
  if (c < shortcut_channels) added.from.at_channel(group * shortcut_channels + c);
  const float4 f = bn(load(t, i * 4, format), load_norms(norm, group * channels + c));
  store(y, i * 4, format, relu(f + added.read(at, c, height, width)));
}

// The two sums of a second batch norm that gets the same gradient dz: the projection's, in a unit with option B.
template <int CHANNELS>
__global__ void __launch_bounds__(THREADS, 2)
    projection_sums(const Stored* dz, int dz_format, const Stored* t, int t_format, const float4* norm,
                    float2* partial, int images, int images_per_group, int pixels, int channels, int rows,
                    const SumsToFinish* to_finish, int* arrivals) {
  constexpr int QUADS = CHANNELS / 4;
  __shared__ float4 reduced[THREADS / 32][QUADS];
  const Tile tile = find_tile(rows, images, images_per_group, pixels);
  const int c = blockIdx.y * CHANNELS + threadIdx.x % QUADS * 4;
  const Norms by = load_norms(norm, tile.group * channels + c);
  float4 sum = {0, 0, 0, 0}, along = {0, 0, 0, 0};
  for (int i = threadIdx.x / QUADS; i < rows && tile.first + i < tile.end; i += THREADS / QUADS) {
    const int at = (tile.first + i) * channels + c;
    const float4 v = load(dz, at, dz_format);
    sum = sum + v;
    along = along + v * normalise(load(t, at, t_format), by);
  }
  sum = sum_over_tile<CHANNELS>(sum, reduced);
  along = sum_over_tile<CHANNELS>(along, reduced);
  write_pair<CHANNELS>(partial, sum, along, tile, c, channels);
  finish_if_last(to_finish, partial, arrivals, blockIdx.y * CHANNELS, CHANNELS);
}
