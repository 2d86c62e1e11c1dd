// y = x W^T for the experts of a step of 48 to 256 tokens, FP8 times FP8, on Hopper. Bound: memory, the bytes of W.
//
// One block per SM stays for the whole launch and walks its equal share of stream_list.cuh's list: 256 rows of a touched expert
// at a time, once per sixteen of its tokens. W goes from memory to registers, which are the tensor core's 64-row operand as
// they lie: two warpgroups keep kDepth groups of two such operands each on their way, 128 KB of an SM, through the ends of
// places and experts. The tokens are the narrow operand, whole in shared memory; one more warp gathers the next sixteen
// meanwhile.
//
// Sums are promoted to float32 every 128 of k, in the order of tensor_tile.cuh: the bits are tensor_gemm.cu's.
#include <algorithm>

#include "cuda/gemm_tile.cuh"
#include "cuda/narrow_tokens.cuh"

namespace sigmoe::cuda {
namespace {

using namespace narrow;

// load_once() that the compiler may not move across other loads or meetings of the warp: left to itself it collects the loads
// of all kDepth groups behind the last.
[[maybe_unused]] __device__ inline uint4 load_in_order(const uint4* address) {
  uint4 value;
  asm volatile("ld.relaxed.gpu.global.L1::no_allocate.L2::128B.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "l"(address)
               : "memory");
  return value;
}

// A row's two words of a lane for the first product of 64 bytes, and for the second.
struct Halves {
  uint2 first, second;
};

// Of a row's four pieces of four words, one of each lane, word q of each to lane q: W lies in memory for tensor cores that read
// it from shared memory (weight.h), where a product takes two whole pieces; so does this one, to have the same bits. What comes
// out is in other registers than loads wrote. Handed to the product as they are, all loads in flight share one of the
// hardware's counters, and each product waits for the newest of them.
[[maybe_unused]] __device__ inline Halves word_of_each(const uint4& piece) {
  const auto swapped = [](uint32_t word, int lanes) { return __shfl_xor_sync(kAllLanes, word, lanes); };
  const bool odd = threadIdx.x % 2 == 1, upper = threadIdx.x % 4 >= 2;
  // Words of one parity of both lanes of a pair: words 0 or 1, and words 2 or 3.
  const uint32_t one = swapped(odd ? piece.x : piece.y, 1), two = swapped(odd ? piece.z : piece.w, 1);
  const uint2 low = odd ? uint2{one, piece.y} : uint2{piece.x, one}, high = odd ? uint2{two, piece.w} : uint2{piece.z, two};
  const uint2 others = {swapped(upper ? low.x : high.x, 2), swapped(upper ? low.y : high.y, 2)};
  return upper ? Halves{others, high} : Halves{low, others};
}

template <bool GateUp>
__global__ void __launch_bounds__(kThreads, 1) narrow_kernel(const __grid_constant__ NarrowArgs args) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ uint8_t raw[];
  __shared__ Shared s;
  uint8_t* buffers = raw + (1024 - shared_address(raw) % 1024) % 1024;
  const GemmArgs& gemm = args.gemm;
  const WeightView& any = gemm.routed;
  const int lane = threadIdx.x % 32, group = threadIdx.x / 128;
  const int n_items = gemm.n_experts + 1, n_groups = any.n_groups;
  const stream::Lists lists(reinterpret_cast<char*>(buffers + 2 * buffer_bytes(n_groups)), n_items);
  if (threadIdx.x == 0) {
    for (int i = 0; i < 2; ++i) barrier_init(&s.full[i], 1), barrier_init(&s.empty[i], kWarps);
    publish_to_async();
  }
  // The lists are new to gate_up. Down may read them at once: gate_up lets it start only after waiting for them itself.
  if (GateUp) wait_for_previous();
  let_next_start();
  stream::list_items<kTokens, kPlaceTiles>(gemm, n_items, lists);
  const int n_places = lists.starts[n_items];
  const int begin = static_cast<int>(static_cast<int64_t>(n_places) * blockIdx.x / gridDim.x);
  const int end = static_cast<int>(static_cast<int64_t>(n_places) * (blockIdx.x + 1) / gridDim.x);
  if (threadIdx.x >= kWarps * 32) {
    give_registers<56>();
    if (threadIdx.x >= kWarps * 32 + 32) return;
    if (!GateUp) wait_for_previous();
    return copy_tokens<GateUp>(args, lists, n_items, begin, end, buffers, s);
  }

  take_registers<224>();

  // What the warp reads of a place: its first tile of each operand, and the scales of its rows 0-7 and 8-15 (gate and up have
  // their own), of group `lane`.
  const size_t tile_vectors = static_cast<size_t>(n_groups) * kChunks * 32;
  const int first_tile = group * kBlocks * 4 + threadIdx.x / 32 % 4;
  struct Place {
    const uint4* tiles;
    float2 scale;
    int tile;
  };
  Cursor ahead;
  const auto find = [&](int place) {
    Place found = {nullptr, {0.0f, 0.0f}, 0};
    if (place >= end) return found;
    ahead.seek(gemm, lists.starts, n_items, place);
    const ExpertTiles& item = lists.weights[ahead.item];
    found.tile = ahead.tile;
    found.tiles = item.tiles + (static_cast<size_t>(ahead.tile) * kPlaceTiles + first_tile) * tile_vectors +
                  vector_of<WeightFormat::fp8>(lane);
    const int low = GateUp ? ahead.tile : 2 * ahead.tile + group, high = GateUp ? low + any.n / 256 : low;
    if (lane < n_groups)
      found.scale = {item.scales[low * any.scale_columns + lane], item.scales[high * any.scale_columns + lane]};
    return found;
  };
  uint4 weights[kDepth][kBlocks][kChunks];
  const auto fetch = [&](int d, const uint4* tiles, int at) {
#pragma unroll
    for (int block = 0; block < kBlocks; ++block)
#pragma unroll
      for (int c = 0; c < kChunks; ++c)
        weights[d][block][c] = load_in_order(tiles + block * 4 * tile_vectors + (at * kChunks + c) * 32);
  };
  Place place = find(begin);
  if (place.tiles)
#pragma unroll
    for (int d = 0; d < kDepth; ++d) fetch(d, place.tiles, d);

  Cursor at;
  int index = -1, tokens_end = begin;
  for (int number = begin; number < end; ++number) {
    const Place next = find(number + 1);
    if (number >= tokens_end) {
      if (index >= 0 && lane == 0) barrier_arrive(&s.empty[index % 2]);
      ++index;
      at.seek(gemm, lists.starts, n_items, tokens_end);
      tokens_end = at.segment_end;
      barrier_wait(&s.full[index % 2], index / 2 % 2);
    }
    const uint8_t* x = buffers + index % 2 * buffer_bytes(n_groups);
    Sums sum = {};
    for (int first = 0; first < n_groups; first += kDepth) {
      // The groups kDepth further on, or the next place's first; behind the last place these again, for nobody.
      const int further = first + kDepth < n_groups ? first + kDepth : first;
      const uint4* refill = further == first && next.tiles ? next.tiles : place.tiles + further * kChunks * 32;
#pragma unroll
      for (int d = 0; d < kDepth; ++d) {
        Sums part;
        pin(part[0]);
        pin(part[1]);
        const uint64_t b = swizzled_operand(x + (first + d) * kXBytes);
        uint4 a[kBlocks][kChunks];
#pragma unroll
        for (int block = 0; block < kBlocks; ++block)
#pragma unroll
          for (int half = 0; half < kChunks / 2; ++half) {  // of the group's k
            const Halves low = word_of_each(weights[d][block][half]),
                         high = word_of_each(weights[d][block][kChunks / 2 + half]);
            a[block][2 * half] = {low.first.x, high.first.x, low.first.y, high.first.y};
            a[block][2 * half + 1] = {low.second.x, high.second.x, low.second.y, high.second.y};
          }
        fetch(d, refill, d);
        wgmma_fence();
#pragma unroll
        for (int block = 0; block < kBlocks; ++block)
#pragma unroll
          for (int c = 0; c < kChunks; ++c) wgmma_fp8<kTokens>(part[block], a[block][c], b + 2 * c, c > 0);
        wgmma_commit();
        wgmma_wait<0>();
        pin(part[0]);
        pin(part[1]);
        __syncwarp();
        const float2 scale = {__shfl_sync(kAllLanes, place.scale.x, first + d),
                              __shfl_sync(kAllLanes, place.scale.y, first + d)};
#pragma unroll
        for (int j = 0; j < kTokens / 8; ++j) {
#pragma unroll
          for (int block = 0; block < kBlocks; ++block) {
            sum[block][4 * j] += part[block][4 * j] * scale.x;
            sum[block][4 * j + 1] += part[block][4 * j + 1] * scale.x;
            sum[block][4 * j + 2] += part[block][4 * j + 2] * scale.y;
            sum[block][4 * j + 3] += part[block][4 * j + 3] * scale.y;
          }
        }
      }
    }
    const TokenBlock& tokens = s.token_blocks[index % 2];
    if constexpr (GateUp)
      write_inner(args, s, tokens, place.tile, sum);
    else
      write_rows(args, tokens, any.n, place.tile, sum);
    __syncwarp();
    place = next;
  }
#endif
}

int n_blocks() {
  static const int known = [] {
    int device = 0, n = 0;
    CUDA_CHECK(cudaGetDevice(&device));
    CUDA_CHECK(cudaDeviceGetAttribute(&n, cudaDevAttrMultiProcessorCount, device));
    return n;
  }();
  return known;
}

// Gate-up starts when the kernel ahead is over, down when gate-up has room for it. A block that started beside the last blocks
// of a linear ended its share of the walk 170 us after the others (measured; why is not: it may keep their division of the SM's
// memory, most of it shared, and loads on their way need lines of L1).
template <bool GateUp>
void launch_mode(Queue queue, const NarrowArgs& args) {
  if (GateUp) queue.overlap = false;
  const int bytes = 1024 + 2 * buffer_bytes(args.gemm.routed.n_groups) + stream::lists_bytes(args.gemm.n_experts + 1);
  launch(queue, narrow_kernel<GateUp>, n_blocks(), kThreads, bytes, args);
}

}  // namespace

int narrow_packed_rows(int n_slots, int n_experts, int n_shared) {
  const int n_lists = std::min(n_slots, n_experts);
  return (n_slots + n_shared + (n_lists + 1) * (kTokens - 1)) / kTokens * kTokens;
}

void launch_narrow_experts(const Queue& queue, const NarrowArgs& args) {
  if (args.gemm.mode == GemmMode::gate_up)
    launch_mode<true>(queue, args);
  else
    launch_mode<false>(queue, args);
}

}  // namespace sigmoe::cuda
