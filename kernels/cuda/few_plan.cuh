// How gate-up tells down where its weights are, while both run: a word for each fact, 0 until it is written, so that a reader
// waits for nothing but the word itself. few_router.cu clears them.
#pragma once

#include "cuda/few_choice.cuh"
#include "cuda/few_rows.h"

namespace sigmoe::cuda::few {

// What down needs of the chosen experts (lane a < kActive has the a-th), by one warp.
__device__ inline void write_plan(const FewExperts& args, const Choice& choice, int chosen) {
  const int lane = threadIdx.x % 32;
  const float weight = weigh_expert(choice, chosen, args.normalise, args.scaling);
  if (lane >= kActive) return;
  const ExpertTiles expert = args.down_tiles[chosen];
  volatile unsigned long long* to = args.plan + 3 * lane;
  to[0] = reinterpret_cast<unsigned long long>(expert.tiles);
  to[1] = reinterpret_cast<unsigned long long>(expert.scales);
  to[2] = __float_as_uint(weight) | 1ull << 32;
}

// Slot's part of it, once it is there, by one warp.
__device__ inline ExpertTiles read_plan(const unsigned long long* plan, int slot, float& weight) {
  const int lane = threadIdx.x % 32;
  unsigned long long word = 1;
  if (lane < 3) {
    const volatile unsigned long long* from = plan + 3 * slot + lane;
    const long long start = clock64();
    while ((word = *from) == 0)
      if (clock64() - start > 4'000'000'000ll) __trap();
  }
  __syncwarp();
  const unsigned long long tiles = __shfl_sync(kAllLanes, word, 0), scales = __shfl_sync(kAllLanes, word, 1);
  weight = __uint_as_float(static_cast<uint32_t>(__shfl_sync(kAllLanes, word, 2)));
  return {reinterpret_cast<const uint4*>(tiles), reinterpret_cast<const float*>(scales)};
}

}  // namespace sigmoe::cuda::few
