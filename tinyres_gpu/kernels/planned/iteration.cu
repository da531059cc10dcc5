// The beginning of a planned step: it counts the iteration and makes the mini-batch. Everything that changes from
// iteration to iteration lies in the GPU's memory, so that the very same launches serve all iterations.

__global__ void next_iteration(int* position, const float* rates, float* learning_rate) {
  if (threadIdx.x != 0) return;
  *position += 1;
  *learning_rate = rates[*position];
}

// Make mini-batch `*position` from the data set of bytes: image `places[...]` is padded by four zeros on each side,
// cropped, mirrored if `flip`, and normalised, with the same bits as in tinyres/data/augmentation.py. A crop is packed
// as top + 16 left + 256 flip. Zeros are padded before normalising or after it, as the recipe says. The data set is
// (images, 3, H, W); the mini-batch is (N, H, W, 4), and its fourth channel is zero. One thread for each pixel.
__global__ void augment(const unsigned char* dataset, const long long* dataset_labels, const float* mean,
                        const float* std, const int* places, const int* crops, const int* position, float* batch,
                        int* labels, int images, int images_of_row, int height, int width, int mean_per_pixel,
                        int pad_first) {
  const int i = blockIdx.x * THREADS + threadIdx.x, size = height * width;
  if (i >= images * size) return;
  const Pixel at = locate(i, height, width);
  const int drawn = *position * images_of_row + at.image, place = places[drawn], crop = crops[drawn];
  const int row = crop % 16 + at.row - 4;
  const int column = crop / 16 % 16 + (crop >= 256 ? width - 1 - at.column : at.column) - 4;
  const bool inside = row >= 0 && row < height && column >= 0 && column < width;
  float values[3] = {0, 0, 0};
  for (int c = 0; c < 3; c++) {
    const int normalised_at = pad_first ? at.row * width + at.column : row * width + column;
    const float pixel = inside ? dataset[((long long)place * 3 + c) * size + row * width + column] : 0;
    if (inside || pad_first) values[c] = (pixel - mean[mean_per_pixel ? c * size + normalised_at : c]) / std[c];
  }
  store(batch, i * 4, {values[0], values[1], values[2], 0});
  if (at.row == 0 && at.column == 0) labels[at.image] = (int)dataset_labels[place];
}
