// The many-row products on Hopper: what a block works on, its ring of stages in shared memory, and the warps that fill it.
// tensor_tile.cuh multiplies from it.
//
// Operands are swapped: 16-row tiles of W, as they are stored (weight.h), are the tensor core's 64-row operand, and up to 144
// rows of x (128 with BF16 weights) the narrow one. A block of rows of W and a tile of rows of x walks k in blocks of 128
// bytes: four producer warps fill the stages (W by bulk copies; x by bulk copies, or gathered by token with 16-byte copies),
// two warpgroups multiply half of the rows of W each. FP8 sums are kept for 128 of k in the tensor core, then scaled into
// float32 registers while the next product runs. Two blocks may be a pair, with two tiles of rows of x for the same rows of W:
// each brings half of W to both, a third less from the cache. In a burst that gains little, but prompts are read at the card's
// power limit, and bytes are power. A column of the result depends on its row of x and W alone: a row's bits depend neither on
// its neighbours nor on how many there are.
#pragma once

#include "cuda/packed.cuh"
#include "cuda/tensor_gemm.h"
#include "cuda/wgmma.cuh"

namespace sigmoe::cuda {

constexpr int kGroups = 2;  // warpgroups that multiply
constexpr int kThreads = (kGroups + 1) * 128;
constexpr int kChunkRun = 2048;  // bytes of a 16-row tile in a stage
constexpr int kInfos = 5;        // items that producers may be ahead, and one
enum Meeting { kConsumers = 1, kProducers = 2 };

// 16-row tiles of W that a block multiplies, Blocks times 64 rows per warpgroup.
template <int Blocks>
constexpr int kWeightTiles = kGroups* Blocks * 4;

// Blocks: times 64 rows of W, per warpgroup. Rows of x to a tile, at most. Stages of the ring; OutBytes: room for results on
// their way out.
template <int Blocks, int Rows = 128, int Stages = 4, int OutBytes = 16>
struct Shared {
  static constexpr int kBlocks = Blocks, kRows = Rows, kStages = Stages;
  static_assert(Stages < kInfos && Rows <= kMostTileRows);
  uint8_t x[Stages][Rows * 128];
  uint8_t w[Stages][kWeightTiles<Blocks> * kChunkRun];
  uint8_t out[OutBytes];
  float2 w_scales[Stages][kGroups];  // of a warpgroup's rows 0-7 and 8-15 of its tiles: gate and up differ
  int32_t out_rows[kInfos][Rows];
  float factors[kInfos][Rows];  // of a row's results: its scale in x, for down times its expert's weight
  RowTile items[kInfos];
  int32_t weight_tiles[kInfos];  // first, of an item
  int32_t tokens[Rows];
  uint64_t full[Stages], empty[Stages];
};

// One item: a tile of rows of x and kWeightTiles tiles of W, over all of k or a part of it.
struct Item {
  RowTile rows;
  int weight_tile;  // first
  bool shared;      // the other block of the pair has the same W, or else one of its own
};

template <class S>
__device__ inline int count_items(const TensorGemmArgs& args) {
  constexpr int kTiles = kWeightTiles<S::kBlocks>;
  const int per_rows = (args.weight.n_tiles + kTiles - 1) / kTiles;
  return per_rows * (args.tiles ? *args.n_tiles : (args.n_rows + S::kRows - 1) / S::kRows) / args.n_paired;
}

// Of a block, or of a pair of them, for which the blocks of rows of W come out even.
template <class S>
__device__ inline Item find_item(const TensorGemmArgs& args, int index) {
  constexpr int kTiles = kWeightTiles<S::kBlocks>;
  const int per_rows = (args.weight.n_tiles + kTiles - 1) / kTiles;
  const int per_tile = per_rows / args.n_paired;  // items, for every row tile
  Item item;
  int n_tiles, first_tile = 0;
  if (args.tiles) {
    item.rows = args.tiles[index / per_tile];
    n_tiles = item.rows.n_tiles, first_tile = item.rows.first_tile;
  } else {
    n_tiles = (args.n_rows + S::kRows - 1) / S::kRows;
  }
  const int within = index - first_tile * per_tile;
  int tile = within % n_tiles, weight = within / n_tiles;
  item.shared = false;
  if (args.n_paired == 2) {
    // n_tiles items are two blocks of rows of W, the first half of them one block with the row tiles in pairs, the second half
    // the other. Between them, where n_tiles is odd, comes the last row tile, with a block of W for each of the pair.
    const int rank = blockIdx.x % 2, n_pairs = n_tiles / 2, own = tile;
    item.shared = n_tiles % 2 == 0 || own != n_pairs;
    const bool second = own >= n_tiles - n_pairs;
    tile = item.shared ? (second ? own - (n_tiles - n_pairs) : own) * 2 + rank : n_tiles - 1;
    weight = weight * 2 + (item.shared ? second : rank);
  }
  item.weight_tile = weight * kTiles;
  if (args.tiles) {
    item.rows = args.tiles[first_tile + tile];
  } else {
    const int size = ((args.n_rows + n_tiles - 1) / n_tiles + 15) / 16 * 16;
    item.rows.expert = args.n_experts;
    item.rows.first = item.rows.packed_row = tile * size;
    item.rows.n_rows = min(size, args.n_rows - item.rows.first);
  }
  return item;
}

// Rows of x that the tensor core is given for n_rows of them: a multiple of 16, not every one of them unless Fine.
template <bool Fine>
__device__ inline int operand_rows(int n_rows) {
  if (Fine) return (n_rows + 15) / 16 * 16;
  return n_rows <= 16 ? 16 : n_rows <= 32 ? 32 : n_rows <= 64 ? 64 : n_rows <= 96 ? 96 : n_rows <= 128 ? 128 : kMostTileRows;
}

template <WeightFormat F, GemmMode M>
constexpr bool takes_any_16 = F == WeightFormat::fp8&& M != GemmMode::linear;

// A place in the ring.
struct Position {
  int stage = 0;
  uint32_t parity = 0;
  int n_paired = 1;  // blocks that fill this one's stages: a stage that has been left is theirs
  __device__ void next(int n_stages) {
    if (++stage == n_stages) stage = 0, parity ^= 1;
  }
};

__device__ inline ExpertTiles weight_of(const TensorGemmArgs& args, int expert) {
  return expert < args.n_experts ? args.experts[expert] : ExpertTiles{args.weight.tiles, args.weight.scales};
}

// Row `row` of a tile of 16 as a row of W.
__device__ inline int weight_row(const WeightView& w, int tile, int row) {
  if (tile >= w.n_tiles) tile = w.n_tiles - 1;
  return w.gate_up ? tile * 8 + row % 8 + (row < 8 ? 0 : w.n / 2) : tile * 16 + row;
}
// Whether W has scales that change along k; if not, they wait for the end.
__device__ inline bool has_block_scales(const WeightView& w) { return w.format == WeightFormat::fp8 && w.k_shift < 30; }

// The blocks of 128 bytes of k that are this block's: all, or its share when args.n_splits blocks of a cluster divide them.
struct KRange {
  int begin, end;
  __device__ KRange(const TensorGemmArgs& args, WeightFormat format) {
    const int n_blocks = args.weight.n_groups * (kGroup / block_k(format)), rank = blockIdx.x % args.n_splits;
    begin = n_blocks * rank / args.n_splits;
    end = n_blocks * (rank + 1) / args.n_splits;
  }
};

// ---- producers -------------------------------------------------------------------------------------------------------

template <WeightFormat F, GemmMode M = GemmMode::linear, class S>
__device__ void produce(const TensorGemmArgs& args, S& s, const KRange& range) {
  constexpr int Blocks = S::kBlocks;
  const int thread = threadIdx.x - kGroups * 128, lane = thread % 32, warp = thread / 32;
  constexpr bool gathered = M == GemmMode::gate_up;
  const int n_blocks = args.weight.n_groups * (kGroup / block_k(F)), n_items = count_items<S>(args);
  Position at;
  int info = 0, pending[2] = {-1, -1};  // stages whose 16-byte copies have not been awaited, newest first
  const int n_cluster = args.n_splits * args.n_paired;
  for (int index = blockIdx.x / n_cluster; index < n_items; index += gridDim.x / n_cluster) {
    const Item item = find_item<S>(args, index);
    const RowTile& rows = item.rows;
    const int n_operand = operand_rows<takes_any_16<F, M>>(rows.n_rows);

    // Rows past the last repeat it; nobody writes their results. A thread has one, the first ones another.
    constexpr int kOwn = (S::kRows + 127) / 128;
    int32_t out_rows[kOwn];
    float factors[kOwn];
    if (gathered) meet<kProducers, 128>();  // the last item's tokens have been read
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      if (thread + 128 * i >= S::kRows) break;
      const int own_row = min(thread + 128 * i, rows.n_rows - 1);
      int32_t token = rows.first + own_row;
      out_rows[i] = token;
      factors[i] = 1.0f;
      if (M != GemmMode::linear) {
        if (rows.expert < args.n_experts) {
          const int slot = args.slot_order[token];
          token = slot / args.n_active;
          out_rows[i] = token * args.n_slots + slot % args.n_active;
          if (M == GemmMode::down) factors[i] = args.slot_weights[slot];
        } else {
          out_rows[i] = token * args.n_slots + args.n_active;
        }
      }
      if (F == WeightFormat::fp8) factors[i] *= args.x.scales[M == GemmMode::down ? rows.packed_row + own_row : token];
      if (gathered) s.tokens[thread + 128 * i] = token;
    }
    uint32_t places[S::kRows / 16];  // in a k block of x, of the pieces that this thread gathers
    if (gathered) {
      meet<kProducers, 128>();
#pragma unroll
      for (int i = 0; i < S::kRows / 16; ++i) places[i] = swizzled(s.tokens[thread / 8 + 16 * i], thread % 8);
    }
    // A bulk copy costs its thread some hundred cycles, so each warp has a part of them: some tiles of W, and one has x.
    constexpr int kOwnTiles = kWeightTiles<Blocks> / 4;
    const int n_own = max(0, min(kOwnTiles, args.weight.n_tiles - item.weight_tile - kOwnTiles * warp));
    const bool takes_x = !gathered && warp == 0;
    uint32_t own_bytes = n_own * kChunkRun;
    if (takes_x) own_bytes += n_operand * 128;
    const uint8_t* source = reinterpret_cast<const uint8_t*>(weight_of(args, rows.expert).tiles) +
                            static_cast<size_t>(item.weight_tile + kOwnTiles * warp + lane) * n_blocks * kChunkRun;
    const bool to_both = item.shared && lane < kOwnTiles;
    uint32_t source_step = kChunkRun, bytes = lane < n_own && (!to_both || lane % 2 == blockIdx.x % 2) ? kChunkRun : 0;
    uint8_t* target = s.w[0] + (kOwnTiles * warp + lane) * kChunkRun;
    uint32_t target_step = kWeightTiles<Blocks> * kChunkRun;
    if (lane == kOwnTiles && takes_x) {
      source = args.x.data + static_cast<size_t>(rows.packed_row) * 128, source_step = args.x.stride * 128;
      target = s.x[0], target_step = S::kRows * 128, bytes = n_operand * 128;
    }
    source += static_cast<size_t>(range.begin) * source_step;
    // The scales of W: four threads have one each, a k block ahead.
    const bool brings_scale = warp == 3 && lane < 2 * kGroups;
    const float* w_scales = nullptr;
    if (brings_scale && has_block_scales(args.weight)) {
      const int row = max(weight_row(args.weight, item.weight_tile + lane / 2 * Blocks * 4, lane % 2 * 8), 0);
      w_scales =
          weight_of(args, rows.expert).scales + static_cast<size_t>(row >> args.weight.row_shift) * args.weight.scale_columns;
    }
    const auto w_scale_of = [&](int kb) { return w_scales ? __ldg(w_scales + (kb * kGroup >> args.weight.k_shift)) : 1.0f; };
    float w_scale = w_scale_of(range.begin);
    for (int kb = range.begin; kb < range.end; ++kb) {
      barrier_wait(&s.empty[at.stage], at.parity ^ 1);
      if (kb == range.begin) {
#pragma unroll
        for (int i = 0; i < kOwn; ++i)
          if (thread + 128 * i < S::kRows)
            s.out_rows[info][thread + 128 * i] = out_rows[i], s.factors[info][thread + 128 * i] = factors[i];
        if (thread == 0) s.items[info] = rows, s.weight_tiles[info] = item.weight_tile;
      }
      if (brings_scale) reinterpret_cast<float*>(s.w_scales[at.stage])[lane] = w_scale;
      uint64_t* full = &s.full[at.stage];
      __syncwarp();
      if (lane == 0) barrier_expect(full, own_bytes);
      if (bytes > 0 && to_both)
        bulk_load_both(target + at.stage * target_step, source, bytes, full);
      else if (bytes > 0)
        bulk_load(target + at.stage * target_step, source, bytes, full);
      source += source_step;
      if (gathered) {
        const uint8_t* x_block = args.x.data + static_cast<size_t>(kb) * args.x.stride * 128;
#pragma unroll
        for (int i = 0; i < S::kRows / 16; ++i)
          if (16 * i < n_operand) copy_16_bytes(s.x[at.stage] + swizzled(thread / 8 + 16 * i, thread % 8), x_block + places[i]);
        commit_copies();
        if (pending[1] >= 0) {
          wait_for_copies_but<2>();
          publish_to_async();
          __syncwarp();
          if (lane == 0) barrier_arrive(&s.full[pending[1]]);
        }
        pending[1] = pending[0];
        pending[0] = at.stage;
      }
      if (kb + 1 < range.end) w_scale = w_scale_of(kb + 1);
      at.next(S::kStages);
    }
    if (++info == kInfos) info = 0;
  }
  if (gathered) {
    wait_for_copies();
    publish_to_async();
    __syncwarp();
    for (int i = 1; i >= 0; --i)
      if (pending[i] >= 0 && lane == 0) barrier_arrive(&s.full[pending[i]]);
  }
}

// Start of a kernel: the block's shared memory with its barriers.
template <class S, bool Gathered>
__device__ S& prepare(uint8_t* raw, int n_paired) {
  S& s = *reinterpret_cast<S*>(raw + (1024 - shared_address(raw) % 1024) % 1024);
  if (threadIdx.x == 0) {
    for (int i = 0; i < S::kStages; ++i) {
      barrier_init(&s.full[i], Gathered ? 8 : 4);
      barrier_init(&s.empty[i], kGroups * 4 * n_paired);
    }
    publish_to_async();
  }
  __syncthreads();
  if (n_paired == 2) cluster_meet();  // the other's barriers are there, too
  return s;
}

}  // namespace sigmoe::cuda
