// y = x W^T for many rows of x, by wgmma. Bound: arithmetic from some 200 rows per weight on, the bytes of W below.
//
// Operands are swapped: 16-row tiles of W, as they are stored (weight.h), are the tensor core's 64-row operand and come from
// registers; up to 128 rows of x are the narrow one and come from shared memory. A block of 256 rows of W and a tile of rows of
// x walks k in blocks of 128 bytes: four producer warps fill a ring of stages (W by bulk copies; x by bulk copies, or gathered
// by token with 16-byte copies), two warpgroups multiply 128 rows of W each. FP8 sums are kept for 128 of k in the tensor core,
// then scaled into float32 registers while the next product runs. Blocks stay and take the items (rows of x, rows of W) in
// turn; the row tiles of an expert follow each other, so that W is read from memory once. A column of the result depends on its
// row of x and W alone: a row's bits depend neither on its neighbours nor on how many there are.
#include "cuda/packed.cuh"
#include "cuda/tensor_gemm.h"
#include "cuda/wgmma.cuh"

namespace sigmoe::cuda {
namespace {

constexpr int kStages = 4;
constexpr int kGroups = 2;                // warpgroups that multiply
constexpr int kBlocks = 2;                // of 64 rows of W, per warpgroup
constexpr int kTileRows = kMostTileRows;  // of x
constexpr int kWeightTiles = kGroups * kBlocks * 4;
constexpr int kThreads = (kGroups + 1) * 128;
constexpr int kChunkRun = 2048;  // bytes of a 16-row tile in a stage
constexpr int kInfos = kStages + 1;
enum Meeting { kConsumers = 1, kProducers = 2 };

struct Shared {
  uint8_t x[kStages][kTileRows * 128];
  uint8_t w[kStages][kWeightTiles * kChunkRun];
  uint8_t packed[kTileRows * 128];  // gate_up: the result on its way out
  float x_scales[kStages][kTileRows];
  float largest[kGroups * 4][kTileRows];  // gate_up: per warp
  float inverse[kTileRows];
  int32_t out_rows[kInfos][kTileRows];
  float row_weights[kInfos][kTileRows];
  int32_t tokens[kTileRows];
  uint64_t full[kStages], empty[kStages];
};

// One item: a tile of rows of x and kWeightTiles tiles of W.
struct Item {
  RowTile rows;
  int weight_tile;  // first
  bool last;        // of the block's
};

__device__ inline int count_items(const TensorGemmArgs& args) {
  const int per_rows = (args.weight.n_tiles + kWeightTiles - 1) / kWeightTiles;
  return per_rows * (args.tiles ? *args.n_tiles : (args.n_rows + kTileRows - 1) / kTileRows);
}

__device__ inline Item find_item(const TensorGemmArgs& args, int index) {
  const int per_rows = (args.weight.n_tiles + kWeightTiles - 1) / kWeightTiles;
  Item item;
  item.last = index + static_cast<int>(gridDim.x) >= count_items(args);
  if (args.tiles) {
    RowTile any = args.tiles[index / per_rows];
    const int within = index - any.first_tile * per_rows;
    item.rows = args.tiles[any.first_tile + within % any.n_tiles];
    item.weight_tile = within / any.n_tiles * kWeightTiles;
  } else {
    const int n_tiles = (args.n_rows + kTileRows - 1) / kTileRows;
    const int size = ((args.n_rows + n_tiles - 1) / n_tiles + 15) / 16 * 16;
    item.weight_tile = index / n_tiles * kWeightTiles;
    item.rows.expert = args.n_experts;
    item.rows.first = item.rows.packed_row = index % n_tiles * size;
    item.rows.n_rows = min(size, args.n_rows - item.rows.first);
  }
  return item;
}

// Rows of x that the tensor core is given for n_rows of them.
__device__ inline int operand_rows(int n_rows) {
  return n_rows <= 16 ? 16 : n_rows <= 32 ? 32 : n_rows <= 64 ? 64 : n_rows <= 96 ? 96 : 128;
}

// A place in the ring.
struct Position {
  int stage = 0;
  uint32_t parity = 0;
  __device__ void next() {
    if (++stage == kStages) stage = 0, parity ^= 1;
  }
};

__device__ inline ExpertTiles weight_of(const TensorGemmArgs& args, int expert) {
  return expert < args.n_experts ? args.experts[expert] : ExpertTiles{args.weight.tiles, args.weight.scales};
}

// ---- producers -------------------------------------------------------------------------------------------------------

template <WeightFormat F>
__device__ void produce(const TensorGemmArgs& args, Shared& s) {
  const int thread = threadIdx.x - kGroups * 128, lane = thread % 32, warp = thread / 32;
  constexpr bool scaled = F == WeightFormat::fp8;
  const int n_blocks = args.weight.n_groups * (kGroup / block_k(F)), n_items = count_items(args);
  const bool gathered = args.mode == GemmMode::gate_up;
  Position at;
  int info = 0, pending[2] = {-1, -1};  // stages whose 16-byte copies have not been awaited, newest first
  for (int index = blockIdx.x; index < n_items; index += gridDim.x) {
    const Item item = find_item(args, index);
    const RowTile& rows = item.rows;
    const int n_operand = operand_rows(rows.n_rows);

    // Rows past the last repeat it; nobody writes their results.
    int32_t token = rows.first + min(thread, rows.n_rows - 1), out_row = token;
    float row_weight = 1.0f;
    if (args.tiles) {
      if (rows.expert < args.n_experts) {
        const int slot = args.slot_order[token];
        token = slot / args.n_active;
        out_row = token * args.n_slots + slot % args.n_active;
        if (args.mode == GemmMode::down) row_weight = args.slot_weights[slot];
      } else {
        out_row = token * args.n_slots + args.n_active;
      }
    }
    if (gathered) {
      meet<kProducers, 128>();  // the last item's tokens have been read
      s.tokens[thread] = token;
      meet<kProducers, 128>();
    }
    // A bulk copy costs its thread some hundred cycles, so each warp has a part of them: four tiles of W, and x or its scales.
    const int n_own = max(0, min(4, args.weight.n_tiles - item.weight_tile - 4 * warp));
    const bool takes_x = !gathered && warp == 0, takes_scales = scaled && !gathered && warp == 1;
    uint32_t own_bytes = n_own * kChunkRun;
    if (takes_x) own_bytes += n_operand * 128;
    if (takes_scales) own_bytes += n_operand * 4;
    const uint8_t* source = reinterpret_cast<const uint8_t*>(weight_of(args, rows.expert).tiles) +
                            static_cast<size_t>(item.weight_tile + 4 * warp + lane) * n_blocks * kChunkRun;
    uint32_t source_step = kChunkRun, bytes = lane < n_own ? kChunkRun : 0;
    uint8_t* target = s.w[0] + (4 * warp + lane) * kChunkRun;
    uint32_t target_step = kWeightTiles * kChunkRun;
    if (lane == 4 && takes_x) {
      source = args.x.data + static_cast<size_t>(rows.packed_row) * 128, source_step = args.x.stride * 128;
      target = s.x[0], target_step = kTileRows * 128, bytes = n_operand * 128;
    } else if (lane == 4 && takes_scales) {
      source = reinterpret_cast<const uint8_t*>(args.x.scales + rows.packed_row), source_step = args.x.stride * 4;
      target = reinterpret_cast<uint8_t*>(s.x_scales[0]), target_step = kTileRows * 4, bytes = n_operand * 4;
    }
    for (int kb = 0; kb < n_blocks; ++kb) {
      barrier_wait(&s.empty[at.stage], at.parity ^ 1);
      if (kb == 0) {
        s.out_rows[info][thread] = out_row;
        s.row_weights[info][thread] = row_weight;
      }
      uint64_t* full = &s.full[at.stage];
      __syncwarp();
      if (lane == 0) barrier_expect(full, own_bytes);
      if (bytes > 0) bulk_load(target + at.stage * target_step, source, bytes, full);
      source += source_step;
      if (gathered) {
        const size_t x_block = static_cast<size_t>(kb) * args.x.stride;
#pragma unroll
        for (int i = 0; i < kTileRows / 16; ++i)
          if (16 * i < n_operand)
            copy_16_bytes(s.x[at.stage] + swizzled(thread / 8 + 16 * i, thread % 8),
                          args.x.data + x_block * 128 + swizzled(s.tokens[thread / 8 + 16 * i], thread % 8));
        if (scaled && thread < n_operand) copy_4_bytes(&s.x_scales[at.stage][thread], args.x.scales + x_block + token);
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
      at.next();
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

// ---- consumers -------------------------------------------------------------------------------------------------------

// The scales of a warpgroup's rows of W: of rows 0-7 and of rows 8-15 of its tiles (gate and up differ) per k block, or of each
// row, when one covers all of k: then they wait for the end.
struct WeightScales {
  const float* low = nullptr;
  const float* high = nullptr;
  bool per_block = false;

  __device__ void start(const TensorGemmArgs& args, const float* scales, int first_tile) {
    const WeightView& w = args.weight;
    per_block = scales && w.k_shift < 30;
    if (!per_block) return;
    const int row = max(row_of(w, first_tile, 0), 0), other = max(row_of(w, first_tile, 8), 0);
    low = scales + static_cast<size_t>(row >> w.row_shift) * w.scale_columns;
    high = scales + static_cast<size_t>(other >> w.row_shift) * w.scale_columns;
  }
  __device__ float2 of_block(const WeightView& w, int kb) const {
    if (!per_block) return {1.0f, 1.0f};
    const int column = kb * kGroup >> w.k_shift;
    return {__ldg(low + column), __ldg(high + column)};
  }
  static __device__ int row_of(const WeightView& w, int tile, int row) {
    if (tile >= w.n_tiles) tile = w.n_tiles - 1;
    return w.gate_up ? tile * 8 + row % 8 + (row < 8 ? 0 : w.n / 2) : tile * 16 + row;
  }
};

template <int N>
using Sums = float[kBlocks][N / 2];  // by block of 64 rows of W

// The lane's part of a stage's 64 rows of W.
struct Operand {
  uint4 chunks[4];
  __device__ void load(const Shared& s, int stage, int block) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4, group = threadIdx.x / 128;
    const uint4* tile = reinterpret_cast<const uint4*>(s.w[stage] + ((group * kBlocks + block) * 4 + warp) * kChunkRun) + lane;
#pragma unroll
    for (int c = 0; c < 4; ++c) chunks[c] = tile[32 * c];
  }
};

__device__ inline void release(Shared& s, int stage) {
  __syncwarp();
  if (threadIdx.x % 32 == 0) barrier_arrive(&s.empty[stage]);
}

// sum = the products of the item, FP8. The rows of x go in two halves: one's sums are scaled while the other's are computed,
// and the last while the other warpgroup multiplies. PairScales: rows 0-7 and 8-15 of a tile have scales of their own (gate,
// up).
template <int N, bool PairScales>
__device__ void multiply_fp8(const TensorGemmArgs& args, Shared& s, Position& at, const WeightScales& scales, Sums<N>& sum) {
  constexpr int kParts = N >= 64 ? 2 : 1, kPart = N / kParts;
  const int q = threadIdx.x % 4, n_blocks = args.weight.n_groups;
#pragma unroll
  for (int b = 0; b < kBlocks; ++b)
#pragma unroll
    for (int i = 0; i < N / 2; ++i) sum[b][i] = 0.0f;
  float part[kParts][kPart / 2];
  Operand a;
  const auto multiply = [&](int stage) {
#pragma unroll
    for (int p = 0; p < kParts; ++p) pin(part[p]);
    wgmma_fence();
#pragma unroll
    for (int p = 0; p < kParts; ++p) {
      const uint64_t b = swizzled_operand(s.x[stage] + p * kPart * 128);
#pragma unroll
      for (int c = 0; c < 4; ++c) wgmma_fp8<kPart>(part[p], a.chunks[c], b + 2 * c, c > 0);
      wgmma_commit();
    }
  };
  const auto promote = [&](int stage, int p, float* to, float2 scale) {
    pin(part[p]);
    const float* x_scales = s.x_scales[stage] + p * kPart + 2 * q;
    to += p * (kPart / 2);
#pragma unroll
    for (int j = 0; j < kPart / 8; ++j) {
      const float2 x = *reinterpret_cast<const float2*>(x_scales + 8 * j);
      const float low = x.x * scale.x, low_odd = x.y * scale.x;
      to[4 * j] += part[p][4 * j] * low;
      to[4 * j + 1] += part[p][4 * j + 1] * low_odd;
      to[4 * j + 2] += part[p][4 * j + 2] * (PairScales ? x.x * scale.y : low);
      to[4 * j + 3] += part[p][4 * j + 3] * (PairScales ? x.y * scale.y : low_odd);
    }
  };
  float2 scale = scales.of_block(args.weight, 0);
  barrier_wait(&s.full[at.stage], at.parity);
  a.load(s, at.stage, 0);
  for (int kb = 0; kb < n_blocks; ++kb) {
    const int stage = at.stage;
    multiply(stage);
    if constexpr (kParts == 2) {
      wgmma_wait<1>();
      promote(stage, 0, sum[0], scale);
    }
    wgmma_wait<0>();
    a.load(s, stage, 1);
    promote(stage, kParts - 1, sum[0], scale);
    multiply(stage);
    if constexpr (kParts == 2) {
      wgmma_wait<1>();
      promote(stage, 0, sum[1], scale);
    }
    at.next();
    wgmma_wait<0>();
    if (kb + 1 < n_blocks) {
      barrier_wait(&s.full[at.stage], at.parity);
      a.load(s, at.stage, 0);
    }
    promote(stage, kParts - 1, sum[1], scale);
    release(s, stage);
    scale = scales.of_block(args.weight, min(kb + 1, n_blocks - 1));
  }
}

// The same in BF16: the tensor core's own float32 sums are the result.
template <int N>
__device__ void multiply_bf16(const TensorGemmArgs& args, Shared& s, Position& at, Sums<N>& sum) {
  const int n_blocks = args.weight.n_groups * 2;
#pragma unroll
  for (int b = 0; b < kBlocks; ++b)
#pragma unroll
    for (int i = 0; i < N / 2; ++i) sum[b][i] = 0.0f;
  for (int kb = 0; kb < n_blocks; ++kb) {
    const int stage = at.stage;
    barrier_wait(&s.full[stage], at.parity);
    const uint64_t b = swizzled_operand(s.x[stage]);
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
      Operand a;
      a.load(s, stage, block);
      pin(sum[block]);
      wgmma_fence();
#pragma unroll
      for (int c = 0; c < 4; ++c) wgmma_bf16<N>(sum[block], a.chunks[c], b + 2 * c, true);
      wgmma_commit();
      wgmma_wait<0>();
      pin(sum[block]);
    }
    release(s, stage);
    at.next();
  }
}

// Scales that cover all of k.
template <int N>
__device__ void scale_rows(const TensorGemmArgs& args, const float* scales, int first_tile, Sums<N>& sum) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4, g = lane / 4;
#pragma unroll
  for (int block = 0; block < kBlocks; ++block)
#pragma unroll
    for (int high = 0; high < 2; ++high) {
      const int row = WeightScales::row_of(args.weight, first_tile + block * 4 + warp, g + 8 * high);
      const float scale =
          row < args.weight.n ? scales[static_cast<size_t>(row >> args.weight.row_shift) * args.weight.scale_columns] : 0.0f;
#pragma unroll
      for (int i = 0; i < N / 2; i += 4) {
        sum[block][i + 2 * high] *= scale;
        sum[block][i + 2 * high + 1] *= scale;
      }
    }
}

template <int N>
__device__ void write_rows(const TensorGemmArgs& args, const Shared& s, const Item& item, int info, const Sums<N>& sum) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4, group = threadIdx.x / 128, g = lane / 4, q = lane % 4;
  const int n = args.weight.n, first = (item.weight_tile + group * kBlocks * 4 + warp) * 16 + g;
#pragma unroll
  for (int j = 0; j < N / 8; ++j)
#pragma unroll
    for (int odd = 0; odd < 2; ++odd) {
      const int column = 8 * j + 2 * q + odd;
      if (column >= item.rows.n_rows) continue;
      float* out = args.out + static_cast<int64_t>(s.out_rows[info][column]) * n;
      const float weight = s.row_weights[info][column];
#pragma unroll
      for (int block = 0; block < kBlocks; ++block)
#pragma unroll
        for (int high = 0; high < 2; ++high) {
          const int row = first + block * 64 + 8 * high;
          if (row < n) out[row] = sum[block][4 * j + odd + 2 * high] * weight;
        }
    }
}

// SwiGLU, then packed for the down product: the block's 128 columns are one FP8 block (two of BF16).
template <WeightFormat F, int N>
__device__ void write_inner(const TensorGemmArgs& args, Shared& s, const Item& item, Sums<N>& sum) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4, group = threadIdx.x / 128, g = lane / 4, q = lane % 4;
  const int width = args.weight.n / 2, first_column = item.weight_tile * 8 + group * kBlocks * 32 + warp * 8 + g;
  const int n_rows = round_up_8(item.rows.n_rows);
  if (threadIdx.x == 0) bulk_store_read();  // the last result has left
  const bool real[kBlocks] = {first_column < width, first_column + 32 < width};
#pragma unroll
  for (int j = 0; j < N / 8; ++j)
#pragma unroll
    for (int odd = 0; odd < 2; ++odd) {
      float largest = 0.0f;
#pragma unroll
      for (int block = 0; block < kBlocks; ++block) {
        float& low = sum[block][4 * j + odd];
        const float high = sum[block][4 * j + odd + 2];
        low = real[block] ? low / (1.0f + __expf(-low)) * high : 0.0f;
        largest = fmaxf(largest, fabsf(low));
      }
      if constexpr (F == WeightFormat::fp8) {
#pragma unroll
        for (int step = 4; step < 32; step *= 2) largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, step));
        if (g == 0) s.largest[group * 4 + warp][8 * j + 2 * q + odd] = largest;
      }
    }
  if constexpr (F == WeightFormat::fp8) {
    meet<kConsumers, kGroups * 128>();
    if (threadIdx.x < N) {
      float largest = 0.0f;
#pragma unroll
      for (int i = 0; i < kGroups * 4; ++i) largest = fmaxf(largest, s.largest[i][threadIdx.x]);
      const float2 scale = fp8_scale(largest);
      s.inverse[threadIdx.x] = scale.y;
      if (static_cast<int>(threadIdx.x) < n_rows)
        args.inner.scales[static_cast<int64_t>(item.weight_tile / kWeightTiles) * args.inner.stride + item.rows.packed_row +
                          threadIdx.x] = scale.x;
    }
    meet<kConsumers, kGroups * 128>();
#pragma unroll
    for (int j = 0; j < N / 8; ++j)
#pragma unroll
      for (int odd = 0; odd < 2; ++odd) {
        const int r = 8 * j + 2 * q + odd;
        const float inverse = s.inverse[r];
#pragma unroll
        for (int block = 0; block < kBlocks; ++block) {
          const int place = packed_place_fp8(warp * 8 + g);
          s.packed[swizzled(r, (group * kBlocks + block) * 2 + place / 16) + place % 16] =
              static_cast<uint8_t>(pack_fp8(sum[block][4 * j + odd] * inverse, 0.0f));
        }
      }
    publish_to_async();
    meet<kConsumers, kGroups * 128>();
    if (threadIdx.x == 0)
      bulk_store(args.inner.data +
                     (static_cast<int64_t>(item.weight_tile / kWeightTiles) * args.inner.stride + item.rows.packed_row) * 128,
                 s.packed, n_rows * 128);
  } else {  // a warpgroup's 64 columns are a block: half of it per block of 64 rows of W; one warpgroup after the other
    for (int turn = 0; turn < kGroups; ++turn) {
      meet<kConsumers, kGroups * 128>();
      if (turn == group) {
#pragma unroll
        for (int j = 0; j < N / 8; ++j)
#pragma unroll
          for (int odd = 0; odd < 2; ++odd) {
            const int r = 8 * j + 2 * q + odd;
#pragma unroll
            for (int block = 0; block < kBlocks; ++block) {
              const int k = block * 32 + warp * 8 + g, place = packed_place_bf16(k % 16);
              *reinterpret_cast<__nv_bfloat16*>(s.packed + swizzled(r, k / 16 * 2 + place / 16) + place % 16) =
                  __float2bfloat16_rn(sum[block][4 * j + odd]);
            }
          }
        publish_to_async();
      }
      meet<kConsumers, kGroups * 128>();
      if (threadIdx.x == 0) {
        bulk_store(
            args.inner.data + (static_cast<int64_t>(item.weight_tile / kWeightTiles * kGroups + turn) * args.inner.stride +
                               item.rows.packed_row) *
                                  128,
            s.packed, n_rows * 128);
        if (turn + 1 < kGroups) bulk_store_read();
      }
    }
  }
  if (item.last && threadIdx.x == 0) bulk_store_done();
}

template <WeightFormat F, bool GateUp, int N>
__device__ void run_item(const TensorGemmArgs& args, Shared& s, Position& at, const Item& item, int info) {
  const int group = threadIdx.x / 128, first_tile = item.weight_tile + group * kBlocks * 4;
  Sums<N> sum;
  const float* scales = F == WeightFormat::fp8 ? weight_of(args, item.rows.expert).scales : nullptr;
  if constexpr (F == WeightFormat::fp8) {
    WeightScales weight_scales;
    weight_scales.start(args, scales, first_tile);
    multiply_fp8<N, GateUp>(args, s, at, weight_scales, sum);
    if (!weight_scales.per_block) scale_rows<N>(args, scales, first_tile, sum);
  } else {
    multiply_bf16<N>(args, s, at, sum);
  }
  if constexpr (GateUp)
    write_inner<F, N>(args, s, item, sum);
  else
    write_rows<N>(args, s, item, info, sum);
}

template <WeightFormat F, bool GateUp>
__global__ void __launch_bounds__(kThreads, 1) tensor_gemm_kernel(const __grid_constant__ TensorGemmArgs args) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ uint8_t raw[];
  Shared& s = *reinterpret_cast<Shared*>(raw + (1024 - shared_address(raw) % 1024) % 1024);
  let_next_start();
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) {
      barrier_init(&s.full[i], GateUp ? 8 : 4);
      barrier_init(&s.empty[i], kGroups * 4);
    }
    publish_to_async();
  }
  __syncthreads();
  wait_for_previous();
  if (threadIdx.x >= kGroups * 128) {
    give_registers<40>();
    produce<F>(args, s);
  } else {
    take_registers<232>();
    Position at;
    int info = 0;
    const int n_items = count_items(args);
    for (int index = blockIdx.x; index < n_items; index += gridDim.x) {
      const Item item = find_item(args, index);
      switch (operand_rows(item.rows.n_rows)) {
        case 16: run_item<F, GateUp, 16>(args, s, at, item, info); break;
        case 32: run_item<F, GateUp, 32>(args, s, at, item, info); break;
        case 64: run_item<F, GateUp, 64>(args, s, at, item, info); break;
        case 96: run_item<F, GateUp, 96>(args, s, at, item, info); break;
        default: run_item<F, GateUp, 128>(args, s, at, item, info);
      }
      if (++info == kInfos) info = 0;
    }
  }
#elif __CUDA_ARCH__ == 900
#error "Hopper's code needs the target 90a"
#endif
}

int n_multiprocessors() {
  static const int n = [] {
    int device = 0, count = 0;
    CUDA_CHECK(cudaGetDevice(&device));
    CUDA_CHECK(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device));
    return count;
  }();
  return n;
}

}  // namespace

bool has_tensor_gemm() {
  static const bool has = [] {
    cudaFuncAttributes attributes;
    CUDA_CHECK(cudaFuncGetAttributes(&attributes, tensor_gemm_kernel<WeightFormat::fp8, false>));
    return attributes.binaryVersion == 90;  // else a build of sm_80 code runs
  }();
  return has;
}

bool fits_tensor_gemm(const WeightView& w) {
  if (w.format == WeightFormat::bf16) return true;
  if (w.format != WeightFormat::fp8) return false;
  // One scale per row or tensor, or blocks that a warpgroup's rows do not straddle.
  return w.k_shift >= 30 || (w.k_shift >= 7 && w.row_shift >= 7 && (!w.gate_up || w.n / 2 % 128 == 0));
}

void launch_tensor_gemm(const Queue& queue, const TensorGemmArgs& args) {
  const bool fp8 = args.weight.format == WeightFormat::fp8, gate_up = args.mode == GemmMode::gate_up;
  const auto kernel = fp8 ? gate_up ? tensor_gemm_kernel<WeightFormat::fp8, true> : tensor_gemm_kernel<WeightFormat::fp8, false>
                      : gate_up ? tensor_gemm_kernel<WeightFormat::bf16, true>
                                : tensor_gemm_kernel<WeightFormat::bf16, false>;
  constexpr size_t kBytes = sizeof(Shared) + 1024;
  CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(kBytes)));
  launch(queue, kernel, n_multiprocessors(), kThreads, kBytes, args);
}

}  // namespace sigmoe::cuda
