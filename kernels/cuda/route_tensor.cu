// The router's logits of many rows on Hopper's tensor cores, at the accuracy of float32.
//
// Bound: arithmetic, three BF16 products. The gate is BF16 already; a float32 of x is the sum of three BF16 parts, of 8 bits
// each, exactly. A block takes up to 64 tokens and 256 experts: four warps split x on its way into shared memory, two
// warpgroups hold half of the experts each and multiply, their operand straight from the gate's tiles (weight.h) a step ahead.
// A step is 64 of k, its small parts first; the tensor core, which does not round its sums to nearest, starts every step anew,
// and steps, then the slices of k, are added in float32. That order is the same however the slices are dealt to blocks and at
// every number of rows, so a row's logits depend on the row alone.
#include "cuda/packed.cuh"
#include "cuda/route.h"
#include "cuda/wgmma.cuh"

namespace sigmoe::cuda {
namespace {

constexpr int kGroups = 2;  // warpgroups that multiply
constexpr int kParts = 3;   // of a float32
constexpr int kStepK = 64;  // 128 bytes of BF16
[[maybe_unused]] constexpr int kStepChunks = kStepK / chunk_k(WeightFormat::bf16);
constexpr int kRingStages = 4;
constexpr int kBlockThreads = (kGroups + 1) * 128;

// N tokens; per warpgroup Blocks times 64 experts.
template <int N, int Blocks>
struct Stages {
  uint8_t x[kRingStages][kParts][N * 128];
  float total[Blocks * N / 2][kGroups * 128];  // of the slices so far, by a thread's sums
  uint64_t full[kRingStages], empty[kRingStages];
};

struct LogitsArgs {
  const float* x;  // (T, k)
  WeightView gate;
  int n_tokens;
  bool whole;  // a block adds up all slices: out (T, E); else it has one of them: out (kRouterSlices, T, E)
  float* out;
};

// Rows [first, first + N) of x, the steps [begin, end) of k. Rows past the last repeat it; nobody writes their results.
template <int N, int Blocks>
__device__ void split_rows(const LogitsArgs& args, Stages<N, Blocks>& s, int first, int begin, int end) {
  constexpr int kRows = N / 8;        // of a thread
  constexpr int kAhead = 64 / N * 2;  // steps that are under way
  const int thread = threadIdx.x - kGroups * 128, r = thread / 16, column = thread % 16, k = args.gate.k;
  const int to[2] = {swizzled(r, column / 4 * 2) + column % 4 * 4, swizzled(r, column / 4 * 2 + 1) + column % 4 * 4};
  float4 coming[kAhead][kRows];
  const auto load = [&](float4(&into)[kRows], int step) {
    const int at = step * kStepK + 4 * column;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int64_t row = min(first + r + 8 * i, args.n_tokens - 1);
      into[i] = step < end && at < k ? *reinterpret_cast<const float4*>(args.x + row * k + at) : float4{0, 0, 0, 0};
    }
  };
#pragma unroll
  for (int i = 0; i < kAhead; ++i) load(coming[i], begin + i);
  int stage = 0;
  uint32_t parity = 1;
  for (int from = begin; from < end; from += kAhead)
#pragma unroll
    for (int ahead = 0; ahead < kAhead; ++ahead) {
      if (from + ahead >= end) break;
      float4 now[kRows];
#pragma unroll
      for (int i = 0; i < kRows; ++i) now[i] = coming[ahead][i];
      load(coming[ahead], from + ahead + kAhead);
      barrier_wait(&s.empty[stage], parity);
#pragma unroll
      for (int i = 0; i < kRows; ++i)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          float low = half ? now[i].z : now[i].x, high = half ? now[i].w : now[i].y;
#pragma unroll
          for (int part = 0; part < kParts; ++part) {
            const uint32_t pair = pack_bf16(low, high);
            *reinterpret_cast<uint32_t*>(s.x[stage][part] + 8 * 128 * i + to[half]) = pair;
            low -= bf16_low(pair);
            high -= bf16_high(pair);
          }
        }
      publish_to_async();
      __syncwarp();
      if (thread % 32 == 0) barrier_arrive(&s.full[stage]);
      if (++stage == kRingStages) stage = 0, parity ^= 1;
    }
}

template <int N, int Blocks>
__device__ void write_logits(const LogitsArgs& args, int first, int first_tile, const float (&sum)[Blocks][N / 2], float* out) {
  const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4, n = args.gate.n;
#pragma unroll
  for (int j = 0; j < N / 8; ++j)
#pragma unroll
    for (int odd = 0; odd < 2; ++odd) {
      const int t = first + 8 * j + 2 * q + odd;
      if (t >= args.n_tokens) continue;
#pragma unroll
      for (int block = 0; block < Blocks; ++block)
#pragma unroll
        for (int high = 0; high < 2; ++high)
          if (const int e = (first_tile + block * 4) * 16 + g + 8 * high; e < n)
            out[static_cast<int64_t>(t) * n + e] = sum[block][4 * j + odd + 2 * high];
    }
}

// Block (tile of tokens, slice of k, experts).
template <int N, int Blocks>
__global__ void __launch_bounds__(kBlockThreads, 1) tensor_logits_kernel(const __grid_constant__ LogitsArgs args) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ uint8_t raw[];
  Stages<N, Blocks>& s = *reinterpret_cast<Stages<N, Blocks>*>(raw + (1024 - shared_address(raw) % 1024) % 1024);
  let_next_start();
  if (threadIdx.x == 0) {
    for (int i = 0; i < kRingStages; ++i) {
      barrier_init(&s.full[i], 4);
      barrier_init(&s.empty[i], kGroups * 4);
    }
    publish_to_async();
  }
  __syncthreads();
  const int n_steps = args.gate.n_groups * (kGroup / kStepK), first = blockIdx.x * N;
  const int first_slice = args.whole ? 0 : blockIdx.y, last_slice = args.whole ? kRouterSlices - 1 : blockIdx.y;
  const auto begin_of = [&](int slice) { return n_steps * slice / kRouterSlices; };
  if (threadIdx.x >= kGroups * 128) {
    wait_for_previous();
    split_rows<N, Blocks>(args, s, first, begin_of(first_slice), begin_of(last_slice + 1));
  } else {
    const int lane = threadIdx.x % 32;
    const int first_tile = blockIdx.z * kGroups * Blocks * 4 + threadIdx.x / 128 * Blocks * 4 + threadIdx.x / 32 % 4;
    int step = begin_of(first_slice), stage = 0;
    const int last = begin_of(last_slice + 1);
    uint32_t parity = 0;
    const uint4* next[Blocks];
#pragma unroll
    for (int block = 0; block < Blocks; ++block)  // tiles past the last repeat it; nobody writes their results
      next[block] =
          args.gate.tiles + lane +
          (static_cast<size_t>(min(first_tile + block * 4, args.gate.n_tiles - 1)) * n_steps + step) * kStepChunks * 32;
    uint4 coming[kStepChunks];
    const auto load = [&](int block) {
#pragma unroll
      for (int c = 0; c < kStepChunks; ++c) coming[c] = load_once(next[block] + 32 * c);
      next[block] += 32 * kStepChunks;
    };
    if (step < last) load(0);
    if (!args.whole)  // few rows: the rest of the gate is on its way to the cache before they exist
#pragma unroll
      for (int block = 0; block < Blocks; ++block)
        for (int line = lane; line < (last - step - 1) * kStepChunks * 4; line += 32)
          prefetch_line(next[block] - lane + line * 8);
    wait_for_previous();
    float sum[Blocks][N / 2] = {};
    for (int slice = first_slice; slice <= last_slice; ++slice) {
      for (; step < begin_of(slice + 1); ++step) {
        barrier_wait(&s.full[stage], parity);
#pragma unroll
        for (int block = 0; block < Blocks; ++block) {
          uint4 a[kStepChunks];
#pragma unroll
          for (int c = 0; c < kStepChunks; ++c) a[c] = coming[c];
          if (block + 1 < Blocks)
            load(block + 1);
          else if (step + 1 < last)
            load(0);
          float part[N / 2];
          pin(part);
          wgmma_fence();
#pragma unroll
          for (int p = kParts - 1; p >= 0; --p)
#pragma unroll
            for (int c = 0; c < kStepChunks; ++c)
              wgmma_bf16<N>(part, a[c], swizzled_operand(s.x[stage][p]) + 2 * c, p < kParts - 1 || c > 0);
          wgmma_commit();
          wgmma_wait<0>();
          pin(part);
#pragma unroll
          for (int i = 0; i < N / 2; ++i) sum[block][i] += part[i];
        }
        __syncwarp();
        if (lane == 0) barrier_arrive(&s.empty[stage]);
        if (++stage == kRingStages) stage = 0, parity ^= 1;
      }
      if (first_slice == last_slice) break;
#pragma unroll
      for (int block = 0; block < Blocks; ++block)
#pragma unroll
        for (int i = 0; i < N / 2; ++i) {
          float& total = s.total[block * N / 2 + i][threadIdx.x];
          if (slice > first_slice) sum[block][i] = total + sum[block][i];
          if (slice < last_slice) total = sum[block][i], sum[block][i] = 0.0f;
        }
    }
    write_logits<N, Blocks>(args, first, first_tile, sum,
                            args.out + static_cast<int64_t>(first_slice) * args.n_tokens * args.gate.n);
  }
#endif
}

template <int N, int Blocks>
void launch_tile(const Queue& queue, const LogitsArgs& args) {
  constexpr int kBytes = sizeof(Stages<N, Blocks>) + 1024;
  const auto kernel = tensor_logits_kernel<N, Blocks>;
  const dim3 grid(divide_up(args.n_tokens, N), args.whole ? 1 : kRouterSlices,
                  divide_up(args.gate.n_tiles, kGroups * Blocks * 4));
  launch(queue, kernel, grid, kBlockThreads, kBytes, args);
}

}  // namespace

// A block for all slices where tiles of tokens alone fill most of the device.
bool adds_slices(int n_tokens) { return n_tokens > 64 * 90; }

void launch_tensor_logits(const Queue& queue, const float* x, const WeightView& gate, int n_tokens, float* out) {
  const LogitsArgs args{x, gate, n_tokens, adds_slices(n_tokens), out};
  if (n_tokens <= 512)  // many small blocks, for latency
    launch_tile<32, 1>(queue, args);
  else
    launch_tile<64, 2>(queue, args);
}

}  // namespace sigmoe::cuda
