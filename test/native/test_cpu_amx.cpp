// The AMX kernel on machines without AMX: its source compiled once more with the tile instructions done in software, and
// compared with the VDPBF16PS kernel. Tile shapes, strides, gathered rows and promotion are what this checks; that the
// instructions do what is written here, only a machine that has them can (all_paths() covers the real path there).
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace {

// The eight tile registers, as rows of 64 bytes.
struct SoftwareTiles {
  uint8_t bytes[8][16][64];

  void zero(int tile) { std::memset(bytes[tile], 0, sizeof bytes[tile]); }
  void load(int tile, const void* base, int64_t stride) {
    for (int row = 0; row < 16; ++row) std::memcpy(bytes[tile][row], static_cast<const uint8_t*>(base) + row * stride, 64);
  }
  void store(int tile, void* base, int64_t stride) const {
    for (int row = 0; row < 16; ++row) std::memcpy(static_cast<uint8_t*>(base) + row * stride, bytes[tile][row], 64);
  }
  // c (16, 16) f32 += a (16, 32) BF16 times b, pairs of k (16, 16, 2) BF16.
  void multiply(int c, int a, int b) {
    const auto bf16 = [&](int tile, int row, int at) {
      uint32_t bits = 0;
      std::memcpy(reinterpret_cast<uint8_t*>(&bits) + 2, bytes[tile][row] + at * 2, 2);
      float value;
      std::memcpy(&value, &bits, 4);
      return value;
    };
    for (int row = 0; row < 16; ++row)
      for (int n = 0; n < 16; ++n) {
        float sum;
        std::memcpy(&sum, bytes[c][row] + n * 4, 4);
        for (int k = 0; k < 32; ++k) sum += bf16(a, row, k) * bf16(b, k / 2, n * 2 + k % 2);
        std::memcpy(bytes[c][row] + n * 4, &sum, 4);
      }
  }
} g_tiles;

}  // namespace

#undef _tile_loadconfig
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#define _tile_loadconfig(config) (void)(config)
#define _tile_zero(tile) g_tiles.zero(tile)
#define _tile_loadd(tile, base, stride) g_tiles.load(tile, base, stride)
#define _tile_stored(tile, base, stride) g_tiles.store(tile, base, stride)
#define _tile_dpbf16ps(c, a, b) g_tiles.multiply(c, a, b)
#define kGemmAmx kGemmSoftwareTiles
#define kPeakAmx kPeakSoftwareTiles
#pragma GCC push_options
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx512vbmi")
#include "cpu/gemm_amx.cpp"
#pragma GCC pop_options
#undef kGemmAmx
#undef kPeakAmx

#include "cpu/packed_weight.h"
#include "cpu_testing.h"

using namespace sigmoe;
using namespace sigmoe::testing;

TEST_CASE("amx: the kernel on software tiles agrees with VDPBF16PS for every format and row count") {
  const std::vector<CpuPath> paths = cpu_paths();
  if (std::find(paths.begin(), paths.end(), CpuPath::avx512bf16) == paths.end()) {
    MESSAGE("skipped: no AVX512_BF16 on this machine");
    return;
  }
  SlabArena arena;
  KLayouts layouts;
  alignas(64) static std::byte scratch[kGemmScratchBytes];
  const auto weights = {random_weight(WeightFormat::bf16, 112, 160, {}, 0, 1),
                        random_weight(WeightFormat::fp8, 80, 300, blocks_of(300, 128, 44), 24, 2),
                        random_weight(WeightFormat::fp8, 64, 256, blocks_of(256, 128), 128, 3),
                        random_weight(WeightFormat::int4, 48, 192, blocks_of(192, 64), 1, 4)};
  for (const HostWeight& host : weights) {
    const auto builder = begin_packed_linear(host.desc, layouts.find_or_make(host.desc), arena);
    builder->put_rows(0, host.desc.n, host.rows.data(), host.stride());
    if (host.n_blocks() > 0) builder->put_scales(0, host.desc.n, host.scales.data());
    const auto owned = builder->finish();
    const PackedWeight& weight = static_cast<const PackedWeight&>(*owned);
    const int64_t packed_k = weight.layout->packed_k;
    for (const int m : {1, 15, 16, 17, 32, 33, 70}) {
      CAPTURE(weight_format_name(host.desc.format));
      CAPTURE(m);
      std::vector<uint16_t> x;
      for (const float value : gaussian(m * packed_k, 5)) x.push_back(f32_to_bf16(value));
      std::vector<const void*> rows;
      for (int r = 0; r < m; ++r) rows.push_back(x.data() + r * packed_k);
      for (int64_t g = 0; g < weight.n_groups(); ++g) {
        GemmArgs args;
        args.w = weight.group(g);
        args.rows = rows.data();
        args.m = m;
        args.c_stride = args.w.n_panels * kPanelRows;
        args.scratch = scratch;
        std::vector<float> expected(m * args.c_stride), result(expected.size(), -7.0f);
        args.c = expected.data();
        kGemmAvx512Bf16[static_cast<int>(weight.format)](args);
        args.c = result.data();
        kGemmSoftwareTiles[static_cast<int>(weight.format)](args);
        CHECK(relative_error(result, expected) < Tolerance::kFloat32);
      }
    }
  }
}
#endif
