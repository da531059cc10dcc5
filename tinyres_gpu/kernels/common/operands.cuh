// The operands of the fused kernels. An activation or a gradient is not read from memory: it is computed from the
// tensors that it is made of while they are read. Each operand is read four channels at a time. `at_channel` is called
// first: it fetches the numbers that belong to these channels, and the loop over pixels that follows reuses them.

// ---- Forward: relu(bn(x)); without batch norm x itself, and without the ReLU if `rectified` is false.
struct Activated {
  const Stored* x;
  int format;
  const float4* norm;  // (groups, channels), or null
  bool rectified;
  Norms by;

  __device__ __forceinline__ void at_channel(int group_channel) {
    if (norm) by = load_norms(norm, group_channel);
  }
  struct Raw {
    uint4 x;
  };
  __device__ __forceinline__ Raw fetch(int at) const { return {::fetch(x, at, format)}; }
  __device__ __forceinline__ float4 make(const Raw& raw) const {
    const float4 v = decode(raw.x, format);
    if (!norm) return v;
    return rectified ? relu(bn(v, by)) : bn(v, by);
  }
  __device__ __forceinline__ float4 read(int at) const { return make(fetch(at)); }
};

// ---- Backward: the gradient at a tensor y that a batch norm reads, from the gradient dz behind that norm,
//
//     dy = base + a dz + b (y - mean) + c        with (a, b, c, mean) for each group and channel
//
// This is batch norm's backward (finish.cuh has the coefficients) as an affine map, plus `base`, the gradient that
// comes along the shortcut: the "1 +" of Eq. (5). Either part may be missing.
struct Arriving {
  const Stored *base, *dz, *y;  // null: missing
  int format, y_format;        // of base and dz, and of y
  const float4* affine;        // (groups, channels), if there is a dz
  Norms by;

  __device__ __forceinline__ void at_channel(int group_channel) {
    if (dz) by = load_norms(affine, group_channel);
  }
  struct Raw {
    uint4 base, dz, y;
  };
  __device__ __forceinline__ Raw fetch(int at) const {
    Raw raw = {};
    if (base) raw.base = ::fetch(base, at, format);
    if (dz) {
      raw.dz = ::fetch(dz, at, format);
      raw.y = ::fetch(y, at, y_format);
    }
    return raw;
  }
  __device__ __forceinline__ float4 make(const Raw& raw) const {
    float4 v = base ? decode(raw.base, format) : float4{0, 0, 0, 0};
    if (dz) {
      const float4 d = decode(raw.dz, format), s = decode(raw.y, y_format);
      v.x += fmaf(by.of[0].x, d.x, fmaf(by.of[0].y, s.x - by.of[0].w, by.of[0].z));
      v.y += fmaf(by.of[1].x, d.y, fmaf(by.of[1].y, s.y - by.of[1].w, by.of[1].z));
      v.z += fmaf(by.of[2].x, d.z, fmaf(by.of[2].y, s.z - by.of[2].w, by.of[2].z));
      v.w += fmaf(by.of[3].x, d.w, fmaf(by.of[3].y, s.w - by.of[3].w, by.of[3].z));
    }
    return v;
  }
  __device__ __forceinline__ float4 read(int at) const { return make(fetch(at)); }
};

// ---- The shortcut's signal, as a unit adds it: every stride-th pixel of an activated tensor, with zero channels
// appended (option A). With stride 1 and all channels the signal is the tensor itself.
struct Shortcut {
  Activated from;
  int channels, stride;

  __device__ __forceinline__ bool has(int c) const { return from.x && c < channels; }
  __device__ __forceinline__ Activated::Raw fetch(const Pixel& out, int c, int height, int width) const {
    const int from_height = height * stride, from_width = width * stride;
    const int at = ((out.image * from_height + out.row * stride) * from_width + out.column * stride) * channels + c;
    return from.fetch(at);
  }
};

// ---- The gradient that comes back along a shortcut to the activation that the shortcut shares with the branch. It
// reaches every stride-th pixel. At other pixels, and if there is no such gradient, it is zero.
struct ShortcutGradient {
  const Stored* from;
  int format, channels, stride;

  __device__ __forceinline__ float4 read(const Pixel& at, int c, int height, int width) const {
    if (!from) return {0, 0, 0, 0};
    int row = at.row, column = at.column;
    if (stride > 1) {  // dividing takes long
      if (row % stride != 0 || column % stride != 0) return {0, 0, 0, 0};
      row /= stride;
      column /= stride;
      height = (height - 1) / stride + 1;
      width = (width - 1) / stride + 1;
    }
    return load(from, ((at.image * height + row) * width + column) * channels + c, format);
  }
};
