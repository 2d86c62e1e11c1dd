// BF16 products by TDPBF16PS, float32 sums, for every row count, so that one row is summed like many. A B tile is 32 k of
// one panel: the pairs [k/2][16] that expanded lines are. A tiles are gathered rows, 16 at a time, zeros below the last.
// Compiled with -mamx-tile -mamx-bf16 on top of the AVX512_VBMI flags; simd.h says what may be included here.
#if defined(__x86_64__)
#include <immintrin.h>

#include "cpu/simd.h"

namespace sigmoe {
namespace {

#include "cpu/bf16_lines.inl"

constexpr int kTileRows = 16;  // rows of an A and of a C tile
constexpr int kTileBytes = 16 * 64;
constexpr int kPanelTileBytes = kMaxSegment / 2 * 64;         // one expanded segment of one panel: up to four B tiles
constexpr int kRowTileBytes = kMaxSegment / 32 * kTileBytes;  // one segment of 16 rows: up to four A tiles

// Scratch: B tiles of four panels, A tiles of two row blocks, four C tiles.
constexpr int kAOffset = kGroupPanels * kPanelTileBytes;
constexpr int kCOffset = kAOffset + 2 * kRowTileBytes;
static_assert(kCOffset + 4 * kTileBytes <= kGemmScratchBytes);

// Tiles 0-3 are C, 4-5 A, 6-7 B; all 16 rows of 64 bytes. The shapes are a register of the thread: set once.
void configure_tiles() {
  static thread_local bool configured = false;
  if (configured) return;
  struct alignas(64) TileConfig {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
  } config{};
  config.palette = 1;
  for (int i = 0; i < 8; ++i) {
    config.row_bytes[i] = 64;
    config.rows[i] = 16;
  }
  _tile_loadconfig(&config);
  configured = true;
}

// Rows [first, first + 16) of a segment to A tiles [k/32][16][32].
void gather_rows(const GemmArgs& args, int first, int64_t begin, int n_k, uint8_t* out) {
  for (int r = 0; r < kTileRows; ++r)
    for (int k = 0; k < n_k; k += 32) {
      __m512i values = _mm512_setzero_si512();
      if (first + r < args.m) values = _mm512_loadu_si512(static_cast<const uint16_t*>(args.rows[first + r]) + begin + k);
      _mm512_store_si512(out + k / 32 * kTileBytes + r * 64, values);
    }
}

// c += scale * tile for one panel of up to 16 rows.
void promote(const GemmArgs& args, int first_row, int panel, __m512 scale, const float* tile) {
  for (int r = 0; r < kTileRows && first_row + r < args.m; ++r) {
    float* c = args.c + (first_row + r) * args.c_stride + panel * kPanelRows;
    _mm512_storeu_ps(c, _mm512_fmadd_ps(_mm512_load_ps(tile + r * kPanelRows), scale, _mm512_loadu_ps(c)));
  }
}

// Two row blocks by two panels of one segment; the second panel may repeat the first.
void multiply_block(const uint8_t* a, const uint8_t* b0, const uint8_t* b1, int64_t b_stride, int n_k, bool two_blocks,
                    float* c) {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int i = 0; i < n_k / 32; ++i) {
    _tile_loadd(6, b0 + i * 16 * b_stride, b_stride);
    _tile_loadd(7, b1 + i * 16 * b_stride, b_stride);
    _tile_loadd(4, a + i * kTileBytes, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    if (two_blocks) {
      _tile_loadd(5, a + kRowTileBytes + i * kTileBytes, 64);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, c, 64);
  _tile_stored(1, c + 256, 64);
  if (two_blocks) {
    _tile_stored(2, c + 512, 64);
    _tile_stored(3, c + 768, 64);
  }
}

template <LineFormat F>
void expand_group(const PanelGroup& w, int segment, uint8_t* out) {
  switch (w.n_panels) {
    case 1: return expand_panels<F, 1>(w, 0, segment, out);
    case 2: return expand_panels<F, 2>(w, 0, segment, out);
    case 3: return expand_panels<F, 3>(w, 0, segment, out);
    default: return expand_panels<F, 4>(w, 0, segment, out);
  }
}

template <LineFormat F>
void gemm(const GemmArgs& args) {
  configure_tiles();
  const PanelGroup& w = args.w;
  uint8_t* b = static_cast<uint8_t*>(args.scratch);
  uint8_t* a = b + kAOffset;
  float* c = reinterpret_cast<float*>(b + kCOffset);
  for (int r = 0; r < args.m; ++r)
    for (int p = 0; p < args.w.n_panels; ++p)
      _mm512_storeu_ps(args.c + r * args.c_stride + p * kPanelRows, _mm512_setzero_ps());

  for (int s = 0; s < w.n_segments; ++s) {
    const int64_t begin = w.segment_begin[s];
    const int n_k = w.segment_begin[s + 1] - w.segment_begin[s];
    const int64_t b_stride = w.n_panels * 64;               // from one row of a B tile to the next
    const uint8_t* pairs = w.lines + begin / 2 * b_stride;  // BF16 lines are pairs already
    if constexpr (F != LineFormat::bf16) {
      expand_group<F>(w, s, b);
      pairs = b;
    }
    for (int row = 0; row < args.m; row += 2 * kTileRows) {
      const bool two_blocks = row + kTileRows < args.m;
      gather_rows(args, row, begin, n_k, a);
      if (two_blocks) gather_rows(args, row + kTileRows, begin, n_k, a + kRowTileBytes);
      for (int p = 0; p < args.w.n_panels; p += 2) {
        const bool two_panels = p + 1 < args.w.n_panels;
        multiply_block(a, pairs + p * 64, pairs + (two_panels ? p + 1 : p) * 64, b_stride, n_k, two_blocks, c);
        for (int i = 0; i < (two_panels ? 2 : 1); ++i) {
          const __m512 scale = segment_scale(w, p + i, s);
          promote(args, row, p + i, scale, c + i * 256);
          if (two_blocks) promote(args, row + kTileRows, p + i, scale, c + 512 + i * 256);
        }
      }
    }
  }
}

float peak_loop(int64_t iterations) {
  configure_tiles();
  alignas(64) float c[256];
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_zero(4);
  _tile_zero(5);
  _tile_zero(6);
  _tile_zero(7);
  for (int64_t i = 0; i < iterations; ++i) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, c, 64);
  return c[0];
}

}  // namespace

const PeakLoop kPeakAmx = {peak_loop, 4 * 2 * 16 * 16 * 32};
const GemmFn kGemmAmx[kLineFormats] = {nullptr, gemm<LineFormat::bf16>, gemm<LineFormat::fp8>, gemm<LineFormat::int4>,
                                       gemm<LineFormat::int8>};

}  // namespace sigmoe
#endif
