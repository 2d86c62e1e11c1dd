// Sixteen lanes: one vector is one panel. Compiled with -mavx512{f,bw,vl,dq}; simd.h says what may be included here.
#if defined(__x86_64__)
#include <immintrin.h>

#include "cpu/simd.h"

namespace sigmoe {
namespace {

constexpr int kLanes = 16;
using vf = float __attribute__((vector_size(64)));
using vi = int32_t __attribute__((vector_size(64)));
using vu = uint32_t __attribute__((vector_size(64)));

inline vf splat(float x) { return (vf)_mm512_set1_ps(x); }
inline vf madd(vf a, vf b, vf c) { return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
inline vu low_words(vu v) { return (vu)_mm512_unpacklo_epi16(_mm512_setzero_si512(), (__m512i)v); }
inline vu high_words(vu v) { return (vu)_mm512_unpackhi_epi16(_mm512_setzero_si512(), (__m512i)v); }
inline void opaque(vf& v) { __asm__ volatile("" : "+v"(v)); }

constexpr int kTileRows = 6, kTilePanels = 4;
constexpr int kFewRows = 4, kFewPanels = 4;

#include "cpu/simd_f32.inl"

}  // namespace

const SimdKernels kSimdAvx512 = kKernels;

}  // namespace sigmoe
#endif
