// Activations as the many-row products read them, and the list of what those products have to do.
//
// Blocks of 128 bytes of k (128 FP8 values or 64 BF16), k-block major: block kb of row r at (kb * stride + r) * 128. Within a
// block k is in the order that W has for the tensor core (packed.cuh), and 16-byte pieces are swizzled by r % 8, so that 8 or
// more consecutive rows from a multiple of 8 on are an operand as they lie. FP8: x = code * scale, with one scale per row: E4M3
// keeps its precision over the 14 binades below a row's largest value, which is exact.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "cuda/launch.h"
#include "cuda/weight.h"

namespace sigmoe::cuda {

// Of activations, that a block of the product takes at a time.
constexpr int kMostTileRows = 144;
constexpr int tile_rows(WeightFormat format) { return format == WeightFormat::fp8 ? kMostTileRows : 128; }

// k of one 128-byte block.
constexpr int block_k(WeightFormat format) { return format == WeightFormat::fp8 ? 128 : 64; }

struct PackedRows {
  uint8_t* data = nullptr;  // (k blocks, stride, 128 bytes)
  float* scales = nullptr;  // (stride) f32; null for BF16
  int stride = 0;           // rows of a k block, a multiple of 8

  // Tiles read whole even where rows end: kMostTileRows more than there are.
  static size_t data_bytes(int n_blocks, int stride) { return (static_cast<size_t>(n_blocks) * stride + kMostTileRows) * 128; }
};

// A run of rows that meet one expert.
struct RowTile {
  int32_t expert = 0;      // in [0, E); E: the shared expert, or the only weight there is
  int32_t first = 0;       // its rows are slot_order[first ..], or tokens first .. for the shared expert
  int32_t n_rows = 0;      // in [1, kMostTileRows]
  int32_t packed_row = 0;  // where they lie between the two products of an expert; a multiple of 8
  int32_t first_tile = 0;  // of the same expert
  int32_t n_tiles = 0;
  int32_t padding[2] = {};
};

constexpr int round_up_8(int n) { return (n + 7) / 8 * 8; }
// Tiles of up to `rows` and packed rows of n_slots routed slots over n_experts and n_shared tokens at the shared expert, at
// most.
constexpr int most_tiles(int rows, int n_slots, int n_experts, int n_shared) {
  return n_slots / rows + (n_slots < n_experts ? n_slots : n_experts) + n_shared / rows + 1;
}
constexpr int most_packed_rows(int n_slots, int n_experts, int n_shared) {
  return round_up_8(n_slots + 7 * (n_slots < n_experts ? n_slots : n_experts)) + round_up_8(n_shared);
}

struct ExpertTiles;

// What the tile list is made of; tiles null: no list is wanted.
struct TilePlan {
  const int32_t* expert_offsets = nullptr;  // (E + 1)
  const ExpertTiles* experts = nullptr;     // (E): those without weights get no tiles
  int n_experts = 0;
  int n_shared = 0;   // tokens at the shared expert; 0: none
  int tile_rows = 0;  // of a tile, at most
  RowTile* tiles = nullptr;
  int32_t* n_tiles = nullptr;
};

// Packs rows of x (., k) f32, picked by row_ids when given, and makes the plan. No rows: the plan alone.
void launch_pack_rows(const Queue& queue, WeightFormat format, const float* x, const int32_t* row_ids, int n_rows, int k,
                      const PackedRows& out, const TilePlan& plan);

// FP8: packs what gate_up left, (out.stride, n_groups * 128) bf16, for the down product (pack_inner.cu).
void launch_pack_inner(const Queue& queue, const __nv_bfloat16* rows, int n_groups, const PackedRows& out);

}  // namespace sigmoe::cuda
