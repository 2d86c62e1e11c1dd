// The router's logits, float32 throughout: x (T, D) times the gate, cut into kRouterSlices along k.
//
// Bound: latency of 2 MB of gate at few tokens, float32 arithmetic at many. A block has one tile of 16 experts and one slice of
// k: its warps hold that part of the gate in registers, fetched before the kernel ahead is done, and share out the tokens. A
// warp copies its next tokens' activations to shared memory while it multiplies the last ones'. A sum's order depends on k
// alone.
#include <algorithm>

#include "cuda/device.cuh"
#include "cuda/element.cuh"
#include "cuda/ops.h"
#include "cuda/route.h"

namespace sigmoe::cuda {
namespace {

constexpr int kLogitWarps = 8;
constexpr int kHeldChunks = 32;  // of the gate, kept in registers: all of a slice where D is 4096 and the gate BF16

// The lane's elements of one chunk: rows g and g + 8, kLane k each.
template <WeightFormat F>
struct LaneWeights {
  static constexpr int kLane = chunk_k(F) / 4;
  float rows[2][kLane];

  __device__ explicit LaneWeights(const uint4& w) {
    const uint32_t words[2][2] = {{w.x, w.z}, {w.y, w.w}};
#pragma unroll
    for (int h = 0; h < 2; ++h)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        if constexpr (F == WeightFormat::f32) {
          rows[h][i] = __uint_as_float(words[h][i]);
        } else {
          rows[h][2 * i] = bf16_low(words[h][i]);
          rows[h][2 * i + 1] = bf16_high(words[h][i]);
        }
      }
  }
};

// partial (kRouterSlices, T, E): block (tile, slice, token block). `aligned`: rows of x are copied 16 bytes at a time.
template <WeightFormat F, int TokenBlock>
__global__ void __launch_bounds__(kLogitWarps * 32, 1)
    logits_kernel(const float* x, WeightView gate, int n_tokens, bool aligned, float* partial) {
  constexpr int kChunks = kGroup / chunk_k(F), kLane = LaneWeights<F>::kLane, kHeldK = kHeldChunks * chunk_k(F);
  extern __shared__ __align__(16) float shared[];  // per warp two stages of (TokenBlock, kHeldK)
  let_next_start();
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, q = lane % 4;
  const int tile = blockIdx.x, slice = blockIdx.y;
  const int n_chunks = gate.n_groups * kChunks;
  const int begin = n_chunks * slice / kRouterSlices, end = n_chunks * (slice + 1) / kRouterSlices;
  const uint4* tiles = gate.tiles + static_cast<size_t>(tile) * n_chunks * 32 + lane;
  uint4 held[kHeldChunks];
  const auto hold = [&](int from) {
#pragma unroll
    for (int c = 0; c < kHeldChunks; ++c)
      held[c] = from + c < end ? tiles[static_cast<size_t>(from + c) * 32] : uint4{0, 0, 0, 0};
  };
  hold(begin);
  wait_for_previous();

  const int n_holds = (end - begin + kHeldChunks - 1) / kHeldChunks;
  const int step = static_cast<int>(gridDim.z) * kLogitWarps * TokenBlock;
  const int first = (static_cast<int>(blockIdx.z) * kLogitWarps + warp) * TokenBlock;
  const int n_stages = first < n_tokens ? (n_tokens - first + step - 1) / step * n_holds : 0;
  float* own = shared + warp * 2 * TokenBlock * kHeldK;
  // Stage i: hold i % n_holds of the tokens of round i / n_holds. Past the last token it is read again; nobody writes it.
  const auto copy_stage = [&](int i) {
    const int t0 = first + i / n_holds * step, k0 = (begin + i % n_holds * kHeldChunks) * chunk_k(F);
    float* to = own + i % 2 * TokenBlock * kHeldK;
    for (int piece = lane; piece < TokenBlock * kHeldK / 4; piece += 32) {
      const int j = piece / (kHeldK / 4), at = piece % (kHeldK / 4) * 4, k = k0 + at;
      const float* row = x + static_cast<int64_t>(min(t0 + j, n_tokens - 1)) * gate.k;
      if (aligned && k < gate.k)
        copy_16_bytes(to + j * kHeldK + at, row + k);
      else
        for (int e = 0; e < 4; ++e) to[j * kHeldK + at + e] = k + e < gate.k ? row[k + e] : 0.0f;
    }
  };
  if (n_stages > 0) copy_stage(0);
  commit_copies();
  float sum[TokenBlock][2] = {};
  for (int i = 0; i < n_stages; ++i) {
    __syncwarp();  // the stage before last has been read by every lane
    if (i + 1 < n_stages) copy_stage(i + 1);
    commit_copies();
    if (n_holds > 1) hold(begin + i % n_holds * kHeldChunks);
    wait_for_copies_but_last();
    __syncwarp();
    const float* from = own + i % 2 * TokenBlock * kHeldK + q * kLane;
#pragma unroll
    for (int c = 0; c < kHeldChunks; ++c) {
      const LaneWeights<F> w(held[c]);
#pragma unroll
      for (int j = 0; j < TokenBlock; ++j) {
        float value[kLane];
        if constexpr (kLane == 4) {
          const float4 v = *reinterpret_cast<const float4*>(from + j * kHeldK + c * chunk_k(F));
          value[0] = v.x, value[1] = v.y, value[2] = v.z, value[3] = v.w;
        } else {
          const float2 v = *reinterpret_cast<const float2*>(from + j * kHeldK + c * chunk_k(F));
          value[0] = v.x, value[1] = v.y;
        }
#pragma unroll
        for (int e = 0; e < kLane; ++e) {
          sum[j][0] += value[e] * w.rows[0][e];
          sum[j][1] += value[e] * w.rows[1][e];
        }
      }
    }
    if ((i + 1) % n_holds != 0) continue;
    const int t0 = first + i / n_holds * step;
#pragma unroll
    for (int j = 0; j < TokenBlock; ++j)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float value = sum[j][h];
        value += __shfl_xor_sync(kAllLanes, value, 1);
        value += __shfl_xor_sync(kAllLanes, value, 2);
        const int e = tile * 16 + g + 8 * h;
        if (q == 0 && t0 + j < n_tokens && e < gate.n)
          partial[(static_cast<int64_t>(slice) * n_tokens + t0 + j) * gate.n + e] = value;
        sum[j][h] = 0.0f;
      }
  }
}

template <WeightFormat F, int TokenBlock>
void launch_tokens(const Queue& queue, const float* x, const WeightView& gate, int n_tokens, float* partial) {
  constexpr int kBytes = kLogitWarps * 2 * TokenBlock * kHeldChunks * chunk_k(F) * static_cast<int>(sizeof(float));
  const auto kernel = logits_kernel<F, TokenBlock>;
  constexpr int kRounds = 4;  // of tokens per warp; more of them go to further blocks
  const dim3 grid(gate.n_tiles, kRouterSlices, std::min(divide_up(n_tokens, kLogitWarps * TokenBlock * kRounds), 64));
  launch(queue, kernel, grid, kLogitWarps * 32, kBytes, x, gate, n_tokens, gate.k % 4 == 0, partial);
}

template <WeightFormat F>
void launch_format(const Queue& queue, const float* x, const WeightView& gate, int n_tokens, float* partial) {
  if (n_tokens <= kLogitWarps) return launch_tokens<F, 1>(queue, x, gate, n_tokens, partial);
  if (n_tokens <= 2 * kLogitWarps) return launch_tokens<F, 2>(queue, x, gate, n_tokens, partial);
  launch_tokens<F, 3>(queue, x, gate, n_tokens, partial);
}

}  // namespace

void launch_router_logits(const Queue& queue, const float* x, const WeightView& gate, int n_tokens, float* partial) {
  if (gate.format == WeightFormat::f32)
    launch_format<WeightFormat::f32>(queue, x, gate, n_tokens, partial);
  else
    launch_format<WeightFormat::bf16>(queue, x, gate, n_tokens, partial);
}

}  // namespace sigmoe::cuda
