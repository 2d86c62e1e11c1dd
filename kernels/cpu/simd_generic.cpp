// Four lanes, for any processor: SSE2 on x86-64, NEON on arm64, scalar code elsewhere.
#include "cpu/simd.h"

#if defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace sigmoe {
namespace {

constexpr int kLanes = 4;
using vf = float __attribute__((vector_size(16)));
using vi = int32_t __attribute__((vector_size(16)));
using vu = uint32_t __attribute__((vector_size(16)));

inline vf splat(float x) { return vf{x, x, x, x}; }
#if defined(__aarch64__)
inline vf madd(vf a, vf b, vf c) { return (vf)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b); }
#else
inline vf madd(vf a, vf b, vf c) { return a * b + c; }
#endif

using Words = uint16_t __attribute__((vector_size(16)));
inline vu low_words(vu v) { return (vu)__builtin_shufflevector(Words{}, (Words)v, 0, 8, 1, 9, 2, 10, 3, 11); }
inline vu high_words(vu v) { return (vu)__builtin_shufflevector(Words{}, (Words)v, 4, 12, 5, 13, 6, 14, 7, 15); }

#if defined(__x86_64__)
inline void opaque(vf& v) { __asm__ volatile("" : "+x"(v)); }
#elif defined(__aarch64__)
inline void opaque(vf& v) { __asm__ volatile("" : "+w"(v)); }
#else
inline void opaque(vf& v) { __asm__ volatile("" : "+m"(v)); }
#endif

constexpr int kTileRows = 2, kTilePanels = 1;
constexpr int kFewRows = 2, kFewPanels = 1;

#include "cpu/simd_f32.inl"

}  // namespace

const SimdKernels kSimdGeneric = kKernels;

}  // namespace sigmoe
