// Eight lanes with fused multiply-add. Compiled with -mavx2 -mfma; simd.h says what may be included here.
#if defined(__x86_64__)
#include <immintrin.h>

#include "cpu/simd.h"

namespace sigmoe {
namespace {

constexpr int kLanes = 8;
using vf = float __attribute__((vector_size(32)));
using vi = int32_t __attribute__((vector_size(32)));
using vu = uint32_t __attribute__((vector_size(32)));

inline vf splat(float x) { return (vf)_mm256_set1_ps(x); }
inline vf madd(vf a, vf b, vf c) { return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
inline vu low_words(vu v) { return (vu)_mm256_unpacklo_epi16(_mm256_setzero_si256(), (__m256i)v); }
inline vu high_words(vu v) { return (vu)_mm256_unpackhi_epi16(_mm256_setzero_si256(), (__m256i)v); }
inline void opaque(vf& v) { __asm__ volatile("" : "+v"(v)); }

constexpr int kTileRows = 6, kTilePanels = 1;
constexpr int kFewRows = 3, kFewPanels = 2;

#include "cpu/simd_f32.inl"

}  // namespace

const SimdKernels kSimdAvx2 = kKernels;

}  // namespace sigmoe
#endif
