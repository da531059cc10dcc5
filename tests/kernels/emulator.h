// Run CUDA C++ kernels on the CPU: every CUDA thread is a fiber, a function with a stack of its own that can
// stop in the middle and go on later. A block is a set of fibers; a barrier is where each stops until all have.
//
// What it shows: wrong indices, missing or diverging barriers, shared memory read before it is written, wrong
// tensor-core fragments. How: shared memory starts as NaN, and threads, warps and blocks run in whatever order the
// schedule draws. What it cannot show: speed, bank conflicts, races between blocks, and races that need two threads
// to interleave between barriers rather than at them.
//
// Blocks run one after another, so `__shared__` can be a static variable; emulator.py adds a call of
// `poison_once` after each declaration. Needs g++ -std=c++17.
#pragma once
#define TINYRES_EMULATOR
#include <csignal>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static
#define __align__(bytes) __attribute__((aligned(bytes)))
struct alignas(8) float2 { float x, y; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct dim3 { unsigned x, y, z; };
using std::max;
using std::min;

namespace emulator {

// ---- Fibers: switch_stacks saves the registers that a function must preserve, and swaps stack pointers.

constexpr size_t STACK_BYTES = 64 * 1024;
constexpr unsigned MAX_THREADS = 1024, WARP = 32;

struct Fiber {
  void* stack_pointer = nullptr;
  unsigned char* stack = nullptr;
  unsigned number = 0;  // within the block
  dim3 index{};         // threadIdx
  bool done = false;
  bool counted = false;  // itself in as the last one, with no fence behind
};

#if defined(__x86_64__)
extern "C" void switch_stacks(void** save, void* load);
asm(R"(
.text
.local switch_stacks
switch_stacks:
  pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
  ret
)");
inline void prepare(Fiber& fiber, void (*start)()) {
  void** top = (void**)(fiber.stack + STACK_BYTES);
  *--top = nullptr;  // where `start` would return to; also keeps its stack aligned
  *--top = (void*)start;
  for (int saved = 0; saved < 6; saved++) *--top = nullptr;
  fiber.stack_pointer = top;
}
#else  // any other processor: the C library's slower switch
inline void switch_stacks(void** save, void* load) {
  ucontext_t here;
  *save = &here;
  swapcontext(&here, (ucontext_t*)load);
}
inline void prepare(Fiber& fiber, void (*start)()) {
  ucontext_t* context = (ucontext_t*)fiber.stack;
  getcontext(context);
  context->uc_stack.ss_sp = fiber.stack + sizeof(ucontext_t);
  context->uc_stack.ss_size = STACK_BYTES - sizeof(ucontext_t);
  context->uc_link = nullptr;
  makecontext(context, start, 0);
  fiber.stack_pointer = context;
}
#endif

// ---- The block that is running.

struct Barrier { unsigned arrived = 0, generation = 0; int line = 0; };

struct Warp {
  Barrier barrier;
  unsigned live = 0;
  uint64_t slot[WARP];           // what each lane shows the others
  float a[16][16], b[16][8];     // operands of the tensor core
};

struct Block {
  dim3 index{}, grid{}, size{};  // blockIdx, gridDim, blockDim
  unsigned live = 0;             // threads that have not returned
  unsigned long progress = 0;    // grows with each arrival and each return: none in a round is a deadlock
  Barrier barrier;
  std::vector<Warp> warps;
  std::vector<const void*> poisoned;
  const std::function<void()>* body = nullptr;
};

static Block block;
static Fiber fibers[MAX_THREADS];
static Fiber* current = nullptr;  // null while the scheduler runs
static void* scheduler = nullptr;
static unsigned schedule = 0;  // 0: in order; 1: backwards; even: shuffled rounds; odd: one warp far ahead
static std::mt19937 draw;
static char failure[256];

inline Warp& warp() { return block.warps[current->number / WARP]; }
inline unsigned lane() { return current->number % WARP; }
inline void pause() { switch_stacks(&current->stack_pointer, scheduler); }

[[noreturn]] inline void fail(int line, const char* what) {
  snprintf(failure, sizeof failure, "%s (line %d, block %u,%u,%u, thread %u)", what, line, block.index.x,
           block.index.y, block.index.z, current ? current->number : 0);
  for (;;) pause();  // the scheduler gives the launch up
}

inline void arrive_and_wait(Barrier& barrier, unsigned live, int line) {
  if (barrier.arrived && barrier.line != line) fail(line, "threads of one block wait at different barriers");
  barrier.line = line;
  block.progress++;
  const unsigned generation = barrier.generation;
  if (++barrier.arrived == live) {
    barrier.arrived = 0;
    barrier.generation++;
  } else {
    while (barrier.generation == generation) pause();
  }
}

inline void wait_for_block(int line) {
  if (current->counted) fail(line, "a thread came last and no fence follows");
  arrive_and_wait(block.barrier, block.live, line);
}

inline void run_thread() {
  (*block.body)();
  current->done = true;
  block.progress++;
  block.live--;
  warp().live--;
  if (block.barrier.arrived) fail(block.barrier.line, "a thread returned while others wait at a barrier");
  if (warp().barrier.arrived) fail(warp().barrier.line, "a lane returned while its warp waits for it");
  for (;;) pause();
}

template <class T> void poison_once(T& shared) {  // the first thread to come by fills it with NaN, or -1
  const auto& seen = block.poisoned;
  if (std::find(seen.begin(), seen.end(), &shared) != seen.end()) return;
  block.poisoned.push_back(&shared);
  memset((void*)&shared, 0xff, sizeof shared);
}

// ---- The schedule.

inline void resume(unsigned number) {
  if (fibers[number].done || failure[0]) return;
  current = &fibers[number];
  switch_stacks(&scheduler, current->stack_pointer);
  current = nullptr;
}

inline std::vector<unsigned> order(unsigned count) {
  std::vector<unsigned> numbers(count);
  for (unsigned i = 0; i < count; i++) numbers[i] = schedule == 1 ? count - 1 - i : i;
  if (schedule > 1) std::shuffle(numbers.begin(), numbers.end(), draw);
  return numbers;
}

inline void run_round(unsigned threads) {
  if (schedule < 2 || schedule % 2 == 0) {  // every thread goes on to its next barrier
    for (unsigned number : order(threads)) resume(number);
    return;
  }
  for (unsigned w : order(block.warps.size())) {  // a warp runs as far as it gets without the others
    for (unsigned long before = block.progress - 1; before != block.progress && !failure[0];) {
      before = block.progress;
      for (unsigned number = w * WARP; number < std::min(threads, (w + 1) * WARP); number++) resume(number);
    }
  }
}

inline int run_blocks(dim3 grid, dim3 size, const std::function<void()>& body) {
  const unsigned threads = size.x * size.y * size.z;
  failure[0] = 0;
  if (!threads || threads > MAX_THREADS || !grid.x || !grid.y || !grid.z || grid.y > 65535 || grid.z > 65535) {
    snprintf(failure, sizeof failure, "no GPU takes this grid of blocks, or this size of a block");
    return 1;
  }
  draw.seed(schedule);
  block.grid = grid;
  block.size = size;
  block.body = &body;
  for (unsigned number : order(grid.x * grid.y * grid.z)) {
    block.index = {number % grid.x, number / grid.x % grid.y, number / grid.x / grid.y};
    block.live = threads;
    block.barrier = Barrier();
    block.warps.assign((threads + WARP - 1) / WARP, Warp());
    block.poisoned.clear();
    for (unsigned i = 0; i < threads; i++) {
      Fiber& fiber = fibers[i];
      if (!fiber.stack) fiber.stack = (unsigned char*)aligned_alloc(16, STACK_BYTES);
      fiber.number = i;
      fiber.index = {i % size.x, i / size.x % size.y, i / size.x / size.y};
      fiber.done = fiber.counted = false;
      block.warps[i / WARP].live++;
      prepare(fiber, run_thread);
    }
    while (block.live && !failure[0]) {
      const unsigned long before = block.progress;
      run_round(threads);
      if (block.live && !failure[0] && block.progress == before)
        snprintf(failure, sizeof failure, "deadlock: only some threads reached the barrier of line %d",
                 block.barrier.line);
    }
    if (failure[0]) return 1;
  }
  return 0;
}

// ---- Memory: an array lies between stretches that nobody may touch; touching them ends the launch.

constexpr size_t GUARD_BYTES = 1 << 24;

inline size_t in_pages(size_t bytes) {
  const size_t page = sysconf(_SC_PAGESIZE);
  return (bytes + page - 1) / page * page;
}
inline unsigned char* allocate(size_t bytes) {
  void* all = mmap(nullptr, in_pages(bytes) + 2 * GUARD_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                   -1, 0);
  if (all == MAP_FAILED) return nullptr;
  unsigned char* usable = (unsigned char*)all + GUARD_BYTES;
  mprotect(usable, in_pages(bytes), PROT_READ | PROT_WRITE);
  return usable;
}
inline void release(unsigned char* usable, size_t bytes) {
  munmap(usable - GUARD_BYTES, in_pages(bytes) + 2 * GUARD_BYTES);
}

inline void memory_fault(int) {
  if (current) fail(0, "a thread reads or writes where no array lies");
  _exit(139);  // the emulator itself is wrong
}

inline int launch(dim3 grid, dim3 size, const std::function<void()>& body) {
  struct sigaction ours = {}, segmentation, bus;
  ours.sa_handler = memory_fault;
  ours.sa_flags = SA_NODEFER;  // the handler does not return
  sigaction(SIGSEGV, &ours, &segmentation);
  sigaction(SIGBUS, &ours, &bus);
  const int failed = run_blocks(grid, size, body);
  sigaction(SIGSEGV, &segmentation, nullptr);
  sigaction(SIGBUS, &bus, nullptr);
  return failed;
}

// ---- Called from Python: arguments come as an array of addresses, as in cuLaunchKernel.

template <class A> std::string describe() {  // kind and bytes: r/w is what a pointer may do, v a value
  if constexpr (std::is_pointer_v<A>) {
    using T = std::remove_pointer_t<A>;
    return (std::is_const_v<T> ? "r" : "w") + std::to_string(sizeof(T)) + " ";
  } else {
    return "v" + std::to_string(sizeof(A)) + " ";
  }
}
template <class... A> std::string signature(void (*)(A...)) { return (describe<A>() + ... + ""); }

template <class... A, size_t... I>
int call(void (*kernel)(A...), dim3 grid, dim3 size, void** arguments, std::index_sequence<I...>) {
  return launch(grid, size, [&] { kernel(*(std::remove_cv_t<A>*)arguments[I]...); });
}
template <class... A> int call(void (*kernel)(A...), const unsigned* grid, const unsigned* size, void** arguments) {
  return call(kernel, {grid[0], grid[1], grid[2]}, {size[0], size[1], size[2]}, arguments,
              std::index_sequence_for<A...>{});
}

// ---- What the lanes of a warp do together: each shows a value, all wait, each reads another's, all wait.

template <class T> T shuffle(T value, unsigned from, int line) {
  static_assert(sizeof(T) <= sizeof(uint64_t), "a lane shows at most 8 bytes");
  Warp& w = warp();
  memcpy(&w.slot[lane()], &value, sizeof value);
  arrive_and_wait(w.barrier, w.live, line);
  memcpy(&value, &w.slot[from % WARP], sizeof value);
  arrive_and_wait(w.barrier, w.live, -line);
  return value;
}

inline float from_bf16(uint32_t bits) {
  const uint32_t wide = bits << 16;
  float value;
  memcpy(&value, &wide, 4);
  return value;
}
inline uint32_t to_bf16(float value) {  // to the nearest, ties to even
  uint32_t bits;
  memcpy(&bits, &value, 4);
  if (std::isnan(value)) return 0x7fff;
  return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
inline float from_tf32(uint32_t bits) {  // the tensor core does not look at the low 13 bits
  bits &= 0xffffe000u;
  float value;
  memcpy(&value, &bits, 4);
  return value;
}
inline uint32_t to_tf32(float value) {  // to the nearest, ties away from zero
  uint32_t bits;
  memcpy(&bits, &value, 4);
  return std::isfinite(value) ? (bits + 0x1000u) & 0xffffe000u : bits;
}

// Tensor cores cut their float32 sums off (Fasi, Higham, Mikaitis, Pranesh: Numerical Behavior of NVIDIA Tensor Cores,
// 2021); that they also align the addends with few digits more is left out here.
inline float toward_zero(double value) {
  const float near = (float)value;
  return std::fabs(near) > std::fabs(value) ? std::nextafterf(near, 0.f) : near;
}

// d (16x8) += a (16xdepth) b (depthx8). `scatter` has put every lane's share of a and b in its place.
inline void multiply(float (&d)[4], unsigned depth, int line) {
  Warp& w = warp();
  arrive_and_wait(w.barrier, w.live, line);
  for (unsigned i = 0; i < 4; i++) {
    const unsigned row = lane() / 4 + i / 2 * 8, column = lane() % 4 * 2 + i % 2;
    double sum = d[i];
    for (unsigned k = 0; k < depth; k++) sum += (double)w.a[row][k] * w.b[k][column];
    d[i] = toward_zero(sum);
  }
  arrive_and_wait(w.barrier, w.live, -line);
}

inline void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                     int line = __builtin_LINE()) {  // m16n8k16
  const unsigned group = lane() / 4, pair = lane() % 4 * 2;
  for (unsigned half = 0; half < 2; half++) {  // two 16-bit values share a register
    for (unsigned i = 0; i < 4; i++)
      warp().a[group + i % 2 * 8][pair + i / 2 * 8 + half] = from_bf16(a[i] >> 16 * half & 0xffff);
    for (unsigned i = 0; i < 2; i++) warp().b[pair + i * 8 + half][group] = from_bf16(b[i] >> 16 * half & 0xffff);
  }
  multiply(d, 16, line);
}

inline void mma_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                     int line = __builtin_LINE()) {  // m16n8k8
  const unsigned group = lane() / 4, k = lane() % 4;
  for (unsigned i = 0; i < 4; i++) warp().a[group + i % 2 * 8][k + i / 2 * 4] = from_tf32(a[i]);
  for (unsigned i = 0; i < 2; i++) warp().b[k + i * 4][group] = from_tf32(b[i]);
  multiply(d, 8, line);
}

// ldmatrix: four 8x8 matrices of 16-bit values; lane i names row i % 8 of matrix i / 8.
inline void gather_matrices(uint32_t (&r)[4], const void* row, bool transposed, int line) {
  if ((uintptr_t)row % 16) fail(line, "a row of ldmatrix does not begin at a multiple of 16 bytes");
  Warp& w = warp();
  w.slot[lane()] = (uint64_t)(uintptr_t)row;
  arrive_and_wait(w.barrier, w.live, line);
  for (unsigned matrix = 0; matrix < 4; matrix++) {
    r[matrix] = 0;
    for (unsigned half = 0; half < 2; half++) {
      const unsigned along = lane() % 4 * 2 + half, across = lane() / 4;
      const unsigned i = transposed ? along : across, j = transposed ? across : along;
      r[matrix] |= (uint32_t)((const uint16_t*)(uintptr_t)w.slot[matrix * 8 + i])[j] << 16 * half;
    }
  }
  arrive_and_wait(w.barrier, w.live, -line);
}
inline void load_matrices(uint32_t (&r)[4], const void* row, int line = __builtin_LINE()) {
  gather_matrices(r, row, false, line);
}
inline void load_matrices_transposed(uint32_t (&r)[4], const void* row, int line = __builtin_LINE()) {
  gather_matrices(r, row, true, line);
}

}  // namespace emulator

#define threadIdx (emulator::current->index)
#define blockIdx (emulator::block.index)
#define blockDim (emulator::block.size)
#define gridDim (emulator::block.grid)
#define __syncthreads() emulator::wait_for_block(__LINE__)
#define __syncwarp() emulator::arrive_and_wait(emulator::warp().barrier, emulator::warp().live, __LINE__)
// Blocks run one after another, so nobody would notice a missing fence. So the pattern itself is demanded: whoever
// counts itself in as the last one makes a fence before the next barrier.
#define __threadfence() (emulator::current->counted = false)
#define __ldcg(address) (*(address))
template <class To, class From> To same_bits(From from) {
  To to;
  static_assert(sizeof to == sizeof from);
  memcpy(&to, &from, sizeof to);
  return to;
}
inline float __uint_as_float(unsigned bits) { return same_bits<float>(bits); }
inline unsigned __float_as_uint(float value) { return same_bits<unsigned>(value); }
inline void prefetch(const void* address) { (void)*(const volatile char*)address; }  // there must be something
inline int count_in(int* arrivals) {
  emulator::current->counted = *arrivals + 1 == (int)gridDim.x;
  return (*arrivals)++;
}
#define __shfl_xor_sync(mask, value, bits) emulator::shuffle(value, emulator::lane() ^ (bits), __LINE__)
#define __shfl_down_sync(mask, value, by) \
  emulator::shuffle(value, emulator::lane() + (by) < 32 ? emulator::lane() + (by) : emulator::lane(), __LINE__)

// ---- In place of tinyres_gpu/kernels/half.cuh and ptx.cuh.

inline float from_float16(unsigned bits) { return same_bits<_Float16>((uint16_t)bits); }
inline unsigned to_float16(float value) { return same_bits<uint16_t>((_Float16)value); }

using emulator::load_matrices;
using emulator::load_matrices_transposed;
using emulator::mma_bf16;
using emulator::mma_tf32;
using emulator::to_tf32;
inline unsigned pack_bf16(float low, float high) {
  return emulator::to_bf16(low) | emulator::to_bf16(high) << 16;
}
