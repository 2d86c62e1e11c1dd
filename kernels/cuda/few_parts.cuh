// How the blocks of few_attention.cu add up a head: each stores its page's sums in the shared memory of the block that owns the
// head, with stores that count their bytes on that block's barrier. Nobody waits but the owner, and for nothing but the bytes.
#pragma once

#include "cuda/bulk_copy.cuh"
#include "cuda/few_page.cuh"

namespace sigmoe::cuda::few {

constexpr int kPartBytes = (kHeadDim + 2) * sizeof(float);  // sums of a head; its maximum (base 2) and total, behind all sums

// Parts that a block may get: of one head where all blocks have keys, of more heads where fewer have.
inline int most_parts(int max_pages) { return max_pages > 14 ? max_pages : 14; }

// Block head % n_blocks has the head; what it gets is ordered by (head, split).
struct Owner {
  int rank, first_part, n_parts;
  __device__ Owner(int head, int n_group, int n_blocks, int n_splits)
      : rank(head % n_blocks),
        first_part(head / n_blocks * n_splits),
        n_parts((n_group - rank + n_blocks - 1) / n_blocks * n_splits) {}

  __device__ float4* sums(float4* parts, int split) const { return parts + (first_part + split) * (kHeadDim / 4); }
  __device__ float2* states(float4* parts) const {
    return reinterpret_cast<float2*>(parts + n_parts * (kHeadDim / 4)) + first_part;
  }
};

__device__ inline void add_scaled(float4& sum, const float4& value, float scale) {
  sum.x += value.x * scale, sum.y += value.y * scale, sum.z += value.z * scale, sum.w += value.w * scale;
}

// A page's sums of a head, by one warp: its quarters in order.
__device__ inline void send(const Owner& owner, int split, int n_keys, int head, PageBuffer& page, int n_buffers,
                            AttentionShared& shared) {
#if __CUDA_ARCH__ >= 900
  const int lane = threadIdx.x % 32, n_quarters = min(kQuarters, (n_keys + kTileKeys - 1) / kTileKeys);
  float weight[kQuarters], best = -INFINITY, all = 0.0f;
  float4 value = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
  for (int w = 0; w < kQuarters; ++w) best = fmaxf(best, weight[w] = w < n_quarters ? shared.highest[w][head] : -INFINITY);
#pragma unroll
  for (int w = 0; w < kQuarters; ++w)
    if (w < n_quarters) {
      weight[w] = exp2f(weight[w] - best);
      all += shared.totals[w][head] * weight[w];
      add_scaled(value, sum_place(page, w, lane / 16, head, lane % 16), weight[w]);
    }
  const auto remote = [&](const void* address) {
    uint32_t at;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(at) : "r"(shared_address(address)), "r"(owner.rank));
    return at;
  };
  float4* parts = shared.parts(n_buffers);
  const uint32_t barrier = remote(&shared.arrived);
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1,%2,%3,%4}, [%5];" ::"r"(
                   remote(owner.sums(parts, split) + lane)),
               "f"(value.x), "f"(value.y), "f"(value.z), "f"(value.w), "r"(barrier)
               : "memory");
  if (lane == 0)
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [%0], {%1,%2}, [%3];" ::"r"(
                     remote(owner.states(parts) + split)),
                 "f"(best), "f"(all), "r"(barrier)
                 : "memory");
#endif
}

// All parts of this block's heads are here.
__device__ inline void wait_for_parts(uint64_t* barrier) {
#if __CUDA_ARCH__ >= 900
  const auto here = [&] {
    uint32_t done;
    asm volatile(
        "{\n.reg .pred p;\nmbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], 0;\nselp.u32 %0, 1, 0, p;\n}"
        : "=r"(done)
        : "r"(shared_address(barrier))
        : "memory");
    return done != 0;
  };
  const long long start = clock64();
  while (!here())
    if (clock64() - start > 4'000'000'000ll) __trap();
#endif
}

// A head of this block, by one warp: its splits in order.
__device__ inline void add_parts(const Owner& own, int n_splits, float4* parts, float* out) {
  const int lane = threadIdx.x % 32;
  float2* state = own.states(parts);
  float best = -INFINITY, all = 0.0f;
  for (int s = lane; s < n_splits; s += 32) best = fmaxf(best, state[s].x);
  for (int step = 16; step > 0; step /= 2) best = fmaxf(best, __shfl_xor_sync(kAllLanes, best, step));
  for (int s = lane; s < n_splits; s += 32) {
    const float weight = exp2f(state[s].x - best);
    state[s].x = weight;
    all += state[s].y * weight;
  }
  all = warp_sum(all);
  __syncwarp();
  float4 value = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll 4
  for (int s = 0; s < n_splits; ++s) add_scaled(value, own.sums(parts, s)[lane], state[s].x);
  reinterpret_cast<float4*>(out)[lane] = {value.x / all, value.y / all, value.z / all, value.w / all};
}

}  // namespace sigmoe::cuda::few
