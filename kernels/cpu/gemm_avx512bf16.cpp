// BF16 products by VDPBF16PS, float32 sums. Activations are BF16 rows. Compiled with -mavx512bf16 -mavx512vbmi on top of
// the AVX-512 flags; simd.h says what may be included here. One instruction adds the pair (k, k + 1) of 16 output rows,
// so the order of a sum is the order of the lines, in both kernels below.
#if defined(__x86_64__)
#include <immintrin.h>

#include "cpu/simd.h"

namespace sigmoe {
namespace {

#include "cpu/bf16_lines.inl"

constexpr int kTileRows = 6, kFewRows = 4;

inline __m512 add_products(__m512 sum, const uint16_t* x, __m512i pairs) {
  int32_t pair;
  __builtin_memcpy(&pair, x, 4);
  return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_set1_epi32(pair), (__m512bh)pairs);
}

// Few rows: every line is read once and expanded in registers.
template <LineFormat F, int R, int NP>
void gemm_few(const GemmArgs& args, int first_row, int first_panel) {
  constexpr int kPrefetchBytes = 2048;
  const PanelGroup& w = args.w;
  const Expander<F> expand;
  const uint8_t* line = w.lines + first_panel * 64;
  const uint16_t* x[R];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) x[r] = static_cast<const uint16_t*>(args.rows[first_row + r]);

  for (int s = 0; s < w.n_segments; ++s) {
    __m512 acc[R][NP];
#pragma GCC unroll 16
    for (int i = 0; i < R * NP; ++i) acc[i / NP][i % NP] = _mm512_setzero_ps();
    for (int64_t k = w.segment_begin[s]; k < w.segment_begin[s + 1]; k += line_k(F), line += w.n_panels * 64) {
#pragma GCC unroll 4
      for (int p = 0; p < NP; ++p) {
        __builtin_prefetch(line + p * 64 + kPrefetchBytes);
        __m512i pairs[Expander<F>::kPairs];
        expand(line + p * 64, pairs);
#pragma GCC unroll 4
        for (int j = 0; j < Expander<F>::kPairs; ++j)
#pragma GCC unroll 8
          for (int r = 0; r < R; ++r) acc[r][p] = add_products(acc[r][p], x[r] + k + 2 * j, pairs[j]);
      }
    }
#pragma GCC unroll 4
    for (int p = 0; p < NP; ++p) {
      const __m512 scale = segment_scale(w, first_panel + p, s);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        float* c = args.c + (first_row + r) * args.c_stride + (first_panel + p) * kPanelRows;
        _mm512_storeu_ps(c, _mm512_fmadd_ps(acc[r][p], scale, _mm512_loadu_ps(c)));
      }
    }
  }
}

// Many rows: one segment of NP panels lies as pairs in `tile`, [k/2][panel][16].
template <int R, int NP>
void gemm_tile(const GemmArgs& args, int first_row, int first_panel, int segment, const uint8_t* tile) {
  const int64_t begin = args.w.segment_begin[segment];
  const int n_k = args.w.segment_begin[segment + 1] - args.w.segment_begin[segment];
  const uint16_t* x[R];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) x[r] = static_cast<const uint16_t*>(args.rows[first_row + r]) + begin;

  __m512 acc[R][NP];
#pragma GCC unroll 24
  for (int i = 0; i < R * NP; ++i) acc[i / NP][i % NP] = _mm512_setzero_ps();
  for (int k = 0; k < n_k; k += 2) {
    __m512i pairs[NP];
#pragma GCC unroll 4
    for (int p = 0; p < NP; ++p) pairs[p] = _mm512_load_si512(tile + (k / 2 * NP + p) * 64);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int p = 0; p < NP; ++p) acc[r][p] = add_products(acc[r][p], x[r] + k, pairs[p]);
  }
#pragma GCC unroll 4
  for (int p = 0; p < NP; ++p) {
    const __m512 scale = segment_scale(args.w, first_panel + p, segment);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      float* c = args.c + (first_row + r) * args.c_stride + (first_panel + p) * kPanelRows;
      _mm512_storeu_ps(c, _mm512_fmadd_ps(acc[r][p], scale, _mm512_loadu_ps(c)));
    }
  }
}

// gemm_few or gemm_tile with the row count as a template argument: R counts down to the rows there are.
template <LineFormat F, int R>
void few_rows(const GemmArgs& args, int first_panel) {
  if constexpr (R > 1)
    if (args.m < R) return few_rows<F, R - 1>(args, first_panel);
  gemm_few<F, R, kGroupPanels>(args, 0, first_panel);
}
template <int R, int NP>
void tile_rows(const GemmArgs& args, int first_row, int first_panel, int segment, const uint8_t* tile) {
  if constexpr (R > 1)
    if (args.m - first_row < R) return tile_rows<R - 1, NP>(args, first_row, first_panel, segment, tile);
  gemm_tile<R, NP>(args, first_row, first_panel, segment, tile);
}

template <LineFormat F, int NP>
void many_rows(const GemmArgs& args, int first_panel) {
  uint8_t* tile = static_cast<uint8_t*>(args.scratch);
  for (int s = 0; s < args.w.n_segments; ++s) {
    expand_panels<F, NP>(args.w, first_panel, s, tile);
    for (int row = 0; row < args.m; row += kTileRows) tile_rows<kTileRows, NP>(args, row, first_panel, s, tile);
  }
}

template <LineFormat F>
void gemm(const GemmArgs& args) {
  for (int r = 0; r < args.m; ++r)
    for (int p = 0; p < args.w.n_panels; ++p)
      _mm512_storeu_ps(args.c + r * args.c_stride + p * kPanelRows, _mm512_setzero_ps());
  int p = 0;
  if (args.m <= kFewRows) {
    for (; p + kGroupPanels <= args.w.n_panels; p += kGroupPanels) few_rows<F, kFewRows>(args, p);
    for (; p < args.w.n_panels; ++p)  // panels left over, rarely any
      for (int r = 0; r < args.m; ++r) gemm_few<F, 1, 1>(args, r, p);
  } else {
    for (; p + kGroupPanels <= args.w.n_panels; p += kGroupPanels) many_rows<F, kGroupPanels>(args, p);
    for (; p < args.w.n_panels; ++p) many_rows<F, 1>(args, p);
  }
}

float peak_loop(int64_t iterations) {
  constexpr int kSums = 12;
  __m512 sums[kSums];
#pragma GCC unroll 12
  for (int j = 0; j < kSums; ++j)
    sums[j] = _mm512_set1_ps(static_cast<float>(j));  // all different: none is computed once for two
  __m512i a = _mm512_set1_epi32(0x3f803f80), b = a;
  for (int64_t i = 0; i < iterations; ++i) {
    __asm__ volatile("" : "+v"(a), "+v"(b));  // the compiler does not know the values: every product is made
#pragma GCC unroll 12
    for (int j = 0; j < kSums; ++j) sums[j] = _mm512_dpbf16_ps(sums[j], (__m512bh)a, (__m512bh)b);
  }
  __m512 all = sums[0];
  for (int j = 1; j < kSums; ++j) all = _mm512_add_ps(all, sums[j]);
  float lanes[16];
  _mm512_storeu_ps(lanes, all);
  float sum = 0.0f;
  for (const float lane : lanes) sum += lane;
  return sum;
}

}  // namespace

const PeakLoop kPeakAvx512Bf16 = {peak_loop, 12 * 64};
const GemmFn kGemmAvx512Bf16[kLineFormats] = {nullptr, gemm<LineFormat::bf16>, gemm<LineFormat::fp8>, gemm<LineFormat::int4>,
                                              gemm<LineFormat::int8>};

}  // namespace sigmoe
#endif
