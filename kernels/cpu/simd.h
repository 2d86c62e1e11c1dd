// The contract between the ops and the files that are compiled once per SIMD path. Those files include this header and
// nothing else of ours, and no containers: an inline function compiled there with wide instructions could be the copy
// the linker keeps for everyone. So: plain structs, function pointers, no inline functions.
#pragma once

#include <cstdint>

namespace sigmoe {

constexpr int kPanelRows = 16;   // output rows of a packed weight that lie together
constexpr int kGroupPanels = 4;  // panels whose lines alternate, and that one gemm call computes
constexpr int kGroupRows = kPanelRows * kGroupPanels;
constexpr int kMaxSegment = 128;  // most values of k summed before a scale is applied
constexpr int kSegmentUnit = 32;  // segments are padded with zeros to a multiple of this

// How a 64-byte line of a packed weight stores 16 output rows, low bits first:
//   f32   dword r: k0 of row r
//   bf16  dword r: k0 k1
//   int4  dword r: nibbles k0 k2 k4 k6 k1 k3 k5 k7, even k in the low half
//   fp8   quarters of 16 bytes, four rows in each: k0 k1 of the four, then k2 k3 of the four
//   int8  as fp8
// All expand to pairs (k, k+1) of one row in a dword, as BF16 products want them, by shifts or by one interleaving of bytes.
enum class LineFormat : int { f32, bf16, fp8, int4, int8 };
constexpr int kLineFormats = 5;

// A group: up to four panels whose lines alternate, so that reading it is one stream. Line i of panel p lies at
// lines + (i * n_panels + p) * 64.
struct PanelGroup {
  const uint8_t* lines = nullptr;
  int n_panels = 0;                        // 1..kGroupPanels
  const int32_t* segment_begin = nullptr;  // (n_segments + 1) packed k in steps of at most kMaxSegment; AMX needs
                                           // multiples of kSegmentUnit, the others of 8
  const int32_t* segment_block = nullptr;  // (n_segments) scale block of each; null: scale 1
  int n_segments = 0;
  const float* scales = nullptr;   // first panel's (blocks), or (blocks, 16) when scale_per_row
  int64_t scale_panel_stride = 0;  // floats from one panel to the next
  bool scale_per_row = false;
};

// c (m, n_panels * 16), rows `c_stride` floats apart = rows x group^T. Element (r, n) is summed in one order whatever m
// and n_panels are: within a segment k by k (BF16: pair by pair), then total = fma(segment, scale, total).
struct GemmArgs {
  PanelGroup w;
  const void* const* rows = nullptr;  // (m) activations in packed k order, float32 or BF16 by the function called
  int m = 0;
  float* c = nullptr;
  int64_t c_stride = 0;
  void* scratch = nullptr;  // kGemmScratchBytes, 64-byte aligned, of the calling thread
};
constexpr int64_t kGemmScratchBytes = 64 * 1024;

using GemmFn = void (*)(const GemmArgs&);

// Loops that reach a ceiling of the machine, for benchmarks.
struct PeakLoop {
  float (*run)(int64_t iterations);  // products of registers, summed; returns something that depends on all of them
  int64_t flop;                      // of one iteration
};

// Kernels of one float32 path. Row functions take any length n >= 0; sums have one order for a given n.
struct SimdKernels {
  // FP8 codes become float32 bits with an exponent 120 too low; the activations of FP8 weights are therefore
  // stored times 2^60 and segment sums multiplied by 2^60. Both are exact.
  GemmFn gemm[kLineFormats];
  void (*rms_norm)(const float* x, const float* weight, float eps, int64_t n, float* out);
  void (*sum_slots)(const float* slots, int n_slots, int64_t n, float* out);  // slots (n_slots, n)
  void (*add)(float* x, const float* y, int64_t n);                           // x += y
  void (*scale)(const float* x, float factor, int64_t n, float* out);
  void (*scale_add)(float* x, float factor, const float* y, float y_factor, int64_t n);  // x = x * factor + y * y_factor
  void (*to_bf16)(const float* x, int64_t n, uint16_t* out);                             // to nearest, ties to even
  void (*swiglu)(const float* gate, const float* up, int64_t n, float* out);             // silu(gate) * up
  // s (n) <- exp(s * scale - max), in place; returns the sum, sets *max. n >= 1.
  float (*softmax_part)(float* s, float scale, int64_t n, float* max);
  uint32_t (*read_all)(const uint32_t* memory, int64_t n);  // XOR of n dwords, n a multiple of 64
  PeakLoop peak;
};

constexpr float kFp8ActivationScale = 0x1p60f;

extern const SimdKernels kSimdGeneric;
#if defined(__x86_64__)
extern const SimdKernels kSimdAvx2, kSimdAvx512;
// BF16 products. Null where the format has none (float32 weights).
extern const GemmFn kGemmAvx512Bf16[kLineFormats];
extern const GemmFn kGemmAmx[kLineFormats];
extern const PeakLoop kPeakAvx512Bf16, kPeakAmx;
#endif

}  // namespace sigmoe
