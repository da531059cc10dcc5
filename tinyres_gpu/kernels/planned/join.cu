// The end of an original unit, Fig. 4(a): x' = relu(bn(t) + s). Here s is the unit's input, every second row and column
// of it (option A), or the batch norm of its projection (option B). This is a launch of its own, because the moments of
// t are not known before t is complete, and x' is read three times.
__global__ void join(const Stored* t, const float4* norm, const Stored* shortcut, const float4* shortcut_norm,
                     int shortcut_channels, int shortcut_stride, int rectified, Stored* y, int format,
                     int images_per_group, int height, int width, int channels, int quads) {
  const int i = blockIdx.x * THREADS + threadIdx.x;
  if (i >= quads) return;
  const Pixel at = locate(i / (channels / 4), height, width);
  const int c = i % (channels / 4) * 4, group = at.image / images_per_group;
  Shortcut added = {{shortcut, format, shortcut_norm, rectified != 0}, shortcut_channels, shortcut_stride};
  float4 s = {0, 0, 0, 0};
  if (added.has(c)) {
    added.from.at_channel(group * shortcut_channels + c);
    s = added.from.make(added.fetch(at, c, height, width));
  }
  const float4 f = bn(load(t, i * 4, format), load_norms(norm, group * channels + c));
  store(y, i * 4, format, relu(f + s));
}

// The two backward sums of a second batch norm that gets the same gradient dz: that of the projection, in a unit with
// option B.
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
  GradientSums found = {};
  for (int i = threadIdx.x / QUADS; i < rows && tile.first + i < tile.end; i += THREADS / QUADS) {
    const int at = (tile.first + i) * channels + c;
    const float4 v = load(dz, at, dz_format);
    found.sum = found.sum + v;
    found.along = found.along + v * normalise(load(t, at, t_format), by);
  }
  write_sums<CHANNELS>(partial, found, tile, c, channels, reduced);
  finish_if_last(to_finish, partial, arrivals, blockIdx.y * CHANNELS, CHANNELS);
}
