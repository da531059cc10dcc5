"""The emulator itself: it runs right kernels, in any order, and notices wrong ones."""

import numpy as np
import pytest

from tests.kernels.emulator import EmulatedModule, EmulationError, schedule
from tests.kernels.tools import SCHEDULES, require_compiler

pytestmark = require_compiler

REVERSE = """
__global__ void reverse(const float* x, float* y, int n) {
  __shared__ float tile[96];
  const int i = blockIdx.x * 96 + threadIdx.x;
  if (i < n) tile[threadIdx.x] = x[i];
  __syncthreads();
  if (i < n) y[i] = tile[min(96, n - (int)blockIdx.x * 96) - 1 - threadIdx.x];
}
"""


def reverse(code=REVERSE, n=200):
    """Reverse 200 numbers in blocks of 96: two full blocks and a short one."""
    x, y = np.arange(n, dtype=np.float32), np.empty(n, np.float32)
    EmulatedModule(code, ["reverse"]).get_function("reverse")((3,), (96,), (x, y, np.int32(n)))
    return y


RIGHT = np.concatenate([np.arange(96)[::-1], np.arange(96, 192)[::-1], np.arange(192, 200)[::-1]])


@pytest.mark.parametrize("seed", SCHEDULES)
def test_barriers_and_shared_memory(seed):
    with schedule(seed):
        np.testing.assert_array_equal(reverse(), RIGHT)


def test_a_missing_barrier_reads_poison():
    assert np.isnan(reverse(REVERSE.replace("__syncthreads();", ""))).any()


def test_shared_memory_is_poisoned_again_for_every_block():
    code = REVERSE.replace("if (i < n) tile", "if (i < n && blockIdx.x == 0) tile")
    assert np.isnan(reverse(code)[96:]).all()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (("__syncthreads();", "if (threadIdx.x < 50) __syncthreads();"), "a thread returned while others wait"),
        (("__syncthreads();", "if (threadIdx.x < 50) return; __syncthreads();"), None),
        (("__syncthreads();", "if (threadIdx.x < 50) __syncthreads();\nelse __syncthreads();"), "different"),
        (("y[i] =", "y[i + 8] ="), "beyond the bounds"),
        (("y[i] =", "y[i + 5000] ="), "where no array lies"),
        (("y[i] =", "y[i - 5000] ="), "where no array lies"),
    ],
)
def test_broken_rules_are_reported(damage, message):
    if message is None:  # threads that returned are not waited for, and an unchanged kernel runs
        reverse(REVERSE.replace(*damage))
        return
    with pytest.raises(EmulationError, match=message):
        reverse(REVERSE.replace(*damage))


def test_a_deadlock_is_reported():
    """33 threads: the first warp waits for the block, the lane of the second for the first warp's lanes."""
    code = """
__global__ void hang() {
  if (threadIdx.x != 5) __syncthreads();
  else __syncwarp();
}"""
    with pytest.raises(EmulationError, match="deadlock"):
        EmulatedModule(code, ["hang"]).get_function("hang")((1,), (33,), ())


def test_reading_beyond_an_array_is_reported_or_poisons_the_result():
    code = "__global__ void shift(const float* x, float* y) { y[threadIdx.x] = x[threadIdx.x + 1]; }"
    kernel = EmulatedModule(code, ["shift"]).get_function("shift")
    x, y = np.ones(8, np.float32), np.empty(8, np.float32)
    kernel((1,), (8,), (x, y))
    assert np.isnan(y[7])
    assert (y[:7] == 1).all()
    x, y = np.ones(64, np.float32), np.empty(64, np.float32)  # 256 bytes: the guard begins at once
    with pytest.raises(EmulationError, match="where no array lies"):
        kernel((1,), (64,), (x, y))


def test_arguments_of_the_wrong_size_are_refused():
    x = np.ones(8, np.float32)
    kernel = EmulatedModule("__global__ void set(float* x, int n) { x[0] = n; }", ["set"]).get_function("set")
    kernel((1,), (1,), (x, np.int32(3)))
    assert x[0] == 3
    for arguments in [
        (x, 3),
        (x.astype(np.float64), np.int32(3)),
        (np.int32(3), x),
        (x,),
        (x[::2], np.int32(3)),
    ]:
        with pytest.raises(EmulationError):
            kernel((1,), (1,), arguments)


@pytest.mark.parametrize("seed", SCHEDULES)
def test_shuffles(seed):
    code = """
__global__ void sum(const float* x, float* y) {
  float v = x[threadIdx.x];
  for (int by = 16; by > 0; by /= 2) v += __shfl_down_sync(~0u, v, by);
  if (threadIdx.x % 32 == 0) y[threadIdx.x / 32] = v;
}"""
    x, y = np.arange(96, dtype=np.float32), np.empty(3, np.float32)
    with schedule(seed):
        EmulatedModule(code, ["sum"]).get_function("sum")((1,), (96,), (x, y))
    np.testing.assert_array_equal(y, x.reshape(3, 32).sum(axis=1))


PRODUCTS = """
__global__ void bf16(const float* a, const float* b, float* d) {  // (16, 16) times (16, 8)
  const int group = threadIdx.x / 4, pair = threadIdx.x % 4 * 2;
  unsigned fa[4], fb[2];
  float fd[4] = {0, 0, 0, 0};
  for (int i = 0; i < 4; i++) {
    const float* at = a + (group + i % 2 * 8) * 16 + pair + i / 2 * 8;
    fa[i] = pack_bf16(at[0], at[1]);
  }
  for (int i = 0; i < 2; i++) {
    const float* at = b + (pair + i * 8) * 8 + group;
    fb[i] = pack_bf16(at[0], at[8]);
  }
  mma_bf16(fd, fa, fb);
  for (int i = 0; i < 4; i++) d[(group + i / 2 * 8) * 8 + pair + i % 2] = fd[i];
}
__global__ void bf16_from_shared(const float* a, const float* b, float* d) {
  __shared__ __align__(16) unsigned short sa[16][16];
  __shared__ __align__(16) unsigned short sb[16][8];
  for (int i = threadIdx.x; i < 256; i += 32) sa[i / 16][i % 16] = pack_bf16(a[i], 0);
  for (int i = threadIdx.x; i < 128; i += 32) sb[i / 8][i % 8] = pack_bf16(b[i], 0);
  __syncwarp();
  const int l = threadIdx.x;
  unsigned fa[4], fb[4];
  float fd[4] = {0, 0, 0, 0};
  load_matrices(fa, &sa[l % 16][l / 16 * 8]);
  load_matrices_transposed(fb, &sb[l % 16][0]);
  const unsigned two[2] = {fb[0], fb[1]};
  mma_bf16(fd, fa, two);
  for (int i = 0; i < 4; i++) d[(l / 4 + i / 2 * 8) * 8 + l % 4 * 2 + i % 2] = fd[i];
}
__global__ void tf32(const float* a, const float* b, float* d) {  // (16, 8) times (8, 8)
  const int group = threadIdx.x / 4, k = threadIdx.x % 4;
  unsigned fa[4], fb[2];
  float fd[4] = {0, 0, 0, 0};
  for (int i = 0; i < 4; i++) fa[i] = to_tf32(a[(group + i % 2 * 8) * 8 + k + i / 2 * 4]);
  for (int i = 0; i < 2; i++) fb[i] = to_tf32(b[(k + i * 4) * 8 + group]);
  mma_tf32(fd, fa, fb);
  for (int i = 0; i < 4; i++) d[(group + i / 2 * 8) * 8 + k * 2 + i % 2] = fd[i];
}
"""


@pytest.mark.parametrize(("name", "depth"), [("bf16", 16), ("bf16_from_shared", 16), ("tf32", 8)])
def test_tensor_core_products(name, depth):
    """Small integers are exact in every format, so the layouts are right or the numbers are wrong."""
    rng = np.random.default_rng(0)
    a = rng.integers(-9, 9, (16, depth)).astype(np.float32)
    b = rng.integers(-9, 9, (depth, 8)).astype(np.float32)
    d = np.empty((16, 8), np.float32)
    EmulatedModule(PRODUCTS, [name]).get_function(name)((1,), (32,), (a, b, d))
    np.testing.assert_array_equal(d, a @ b)
