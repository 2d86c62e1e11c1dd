// Weights in tensor-core order.
//
// A tile is 16 rows of W; along k it is a run of chunks of 32 bytes per row (8 k in F32, 16 in BF16, 32 in FP8 and INT8, 64 in
// INT4), 512 contiguous bytes each, of which one coalesced 16-byte load per lane brings what the lane feeds the tensor core. k
// is padded to a multiple of 128 with zeros, rows to whole tiles. In a gate_up weight rows 0-7 of tile t are gate rows 8t..,
// rows 8-15 the up rows of the same columns, so that SwiGLU happens in the registers of one lane.
//
// Lane (g, q) of a warp owns rows g and g + 8. All formats but FP8: bytes [8q, 8q+8) of both in every chunk, in the order of
// the tensor core's operand in registers (four bytes of row g, of row g + 8, the next four of both). FP8 is also read by
// Hopper's tensor cores from shared memory, which want eight rows apart from the next eight: of the four chunks of a group of
// 128 k, the first two have rows 0-7, the others rows 8-15, of 64 k each: a row's 64 bytes lie together in pieces of 16, the
// piece of lane q at place q ^ g / 2, and hold the lane's [8q, 8q+8) of the first 32 bytes and of the second. So two loads of a
// lane, of rows g and g + 8, are two chunks (chunk_of() in gemm_tile.cuh).
#pragma once

#include <cstdint>
#include <memory>

#include "backend/backend.h"
#include "cuda/kernel_choice.h"
#include "cuda/memory.h"

namespace sigmoe::cuda {

constexpr int chunk_k(WeightFormat format) {
  switch (format) {
    case WeightFormat::f32: return 8;
    case WeightFormat::bf16: return 16;
    case WeightFormat::fp8:
    case WeightFormat::int8: return 32;
    case WeightFormat::int4: return 64;
  }
  return 0;
}

// What kernels see. Passed by value.
struct WeightView {
  const uint4* tiles = nullptr;   // (n_tiles, n_groups * kGroup / chunk_k, 32 lanes) 16 bytes each
  const float* scales = nullptr;  // (n >> row_shift, scale_columns); null for f32 and bf16
  int n = 0, k = 0;
  int n_tiles = 0, n_groups = 0;
  int scale_columns = 0;
  uint8_t row_shift = 0;  // one scale covers 1 << row_shift rows ...
  uint8_t k_shift = 0;    // ... and 1 << k_shift columns
  WeightFormat format = WeightFormat::bf16;
  bool gate_up = false;
};

struct CudaWeight : LinearWeight {
  size_t bytes() const override { return held; }

  WeightView view;
  size_t held = 0;
  DeviceSpan tiles, scales;
};

inline const WeightView& view_of(const LinearWeight& weight) { return static_cast<const CudaWeight&>(weight).view; }

inline WeightShape shape_of(const WeightView& view) {
  return {view.n,         view.k,       view.n_tiles, view.n_groups, view.scale_columns,
          view.row_shift, view.k_shift, view.format,  view.gate_up};
}

// What a weight of this desc holds on the device when `format` is what it is kept in.
WeightView shape_of(const LinearDesc& desc, WeightFormat format);
size_t tile_bytes(const WeightView& view);

// Starts a weight; `exact` (the float32 mode) keeps what must be expanded in F32 instead of BF16.
std::unique_ptr<LinearBuilder> begin_weight(const LinearDesc& desc, WeightArena& arena, UploadQueue& uploads, bool exact);

// A weight of random values with standard deviation 0.02, made on the device: for benchmarks of shapes no file holds.
std::unique_ptr<LinearWeight> random_weight(const LinearDesc& desc, uint64_t seed, WeightArena& arena, UploadQueue& uploads);

}  // namespace sigmoe::cuda
