// The float32 kernels, written once over vectors of kLanes floats. The including file defines in its namespace:
//   kLanes; vf, vi, vu = vectors of float, int32_t, uint32_t; vf splat(float); vf madd(vf a, vf b, vf c) = a * b + c;
//   kTileRows, kTilePanels  accumulator block of the many-row kernel; kTileRows * kTilePanels * kParts registers
//   kFewRows, kFewPanels    likewise of the few-row kernel, which expands weights in registers
//   vu low_words(vu), high_words(vu): the low or high four words of every 16 bytes, each in the high half of a dword
//   opaque(vf&)             the compiler must not know the value any more
// and names its table by SIGMOE_SIMD_TABLE after it has included this.

constexpr int kParts = kPanelRows / kLanes;  // vectors across a panel
using vf_mem = float __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));
using vu_mem = uint32_t __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));
using vh = uint16_t __attribute__((vector_size(kLanes * 2)));
using vh_mem = uint16_t __attribute__((vector_size(kLanes * 2), aligned(2), may_alias));

inline vf load(const float* p) { return *reinterpret_cast<const vf_mem*>(p); }
inline void store(float* p, vf v) { *reinterpret_cast<vf_mem*>(p) = v; }
inline vf select(vi mask, vf yes, vf no) { return (vf)((mask & (vi)yes) | (~mask & (vi)no)); }

// ---- gemm --------------------------------------------------------------------------------------------------------

// Values of k in one line.
constexpr int line_k(LineFormat format) { return format == LineFormat::int8 ? 4 : 1 << static_cast<int>(format); }

// Weight number j of a line's dwords; simd.h has their order.
template <LineFormat F>
inline vf expand(vu dwords, int j) {
  if constexpr (F == LineFormat::f32) return (vf)dwords;
  if constexpr (F == LineFormat::bf16) return (vf)(j == 0 ? dwords << 16 : dwords & 0xffff0000u);
  if constexpr (F == LineFormat::fp8) {
    const vu halves = j < 2 ? low_words(dwords) : high_words(dwords);  // k0 k1 or k2 k3 in the high half of each row's dword
    // s eeee mmm at the top, moved down by four: sign, four copies of it to clear, exponent and mantissa in place.
    return (vf)(((vi)(j % 2 == 0 ? halves << 8 : halves) >> 4) & (vi)(vu{} + 0x87f00000u));
  }
  if constexpr (F == LineFormat::int8) {
    const vu halves = j < 2 ? low_words(dwords) : high_words(dwords);  // as FP8; shifting down keeps the sign
    return __builtin_convertvector((vi)(j % 2 == 0 ? halves << 8 : halves) >> 24, vf);
  }
  const vu nibble = (dwords >> (j / 2 * 4 + (j & 1) * 16)) & 15u;
  return (vf)(nibble | 0x4b000000u) - 8388616.0f;  // 2^23 + nibble as float32, less 2^23 + 8
}

// c += scale * acc for one panel of one row. unscale takes back what activations were multiplied by.
inline void promote(const PanelGroup& w, int panel, int segment, float unscale, const vf (&acc)[kParts], float* c) {
  const int64_t block = w.segment_block ? w.segment_block[segment] : 0;
  const float* scales = w.scales + panel * w.scale_panel_stride;
#pragma GCC unroll 4
  for (int part = 0; part < kParts; ++part) {
    vf scale = splat(1.0f);
    if (w.segment_block) scale = w.scale_per_row ? load(scales + block * kPanelRows + part * kLanes) : splat(scales[block]);
    store(c + part * kLanes, madd(acc[part], scale * unscale, load(c + part * kLanes)));
  }
}
constexpr float unscale_of(LineFormat format) { return format == LineFormat::fp8 ? kFp8ActivationScale : 1.0f; }

// Few rows: every line is read once and expanded in registers.
template <LineFormat F, int R, int NP>
void gemm_few(const GemmArgs& args, int first_row, int first_panel) {
  constexpr int kLineK = line_k(F);
  constexpr int kPrefetchBytes = 2048;
  const PanelGroup& w = args.w;
  const uint8_t* line = w.lines + first_panel * 64;
  const float* x[R];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) x[r] = static_cast<const float*>(args.rows[first_row + r]);

  for (int s = 0; s < w.n_segments; ++s) {
    vf acc[R][NP][kParts] = {};
    for (int64_t k = w.segment_begin[s]; k < w.segment_begin[s + 1]; k += kLineK, line += w.n_panels * 64) {
#pragma GCC unroll 4
      for (int p = 0; p < NP; ++p) {
        __builtin_prefetch(line + p * 64 + kPrefetchBytes);
#pragma GCC unroll 4
        for (int part = 0; part < kParts; ++part) {
          const vu dwords = *reinterpret_cast<const vu_mem*>(line + p * 64 + part * kLanes * 4);
#pragma GCC unroll 8
          for (int j = 0; j < kLineK; ++j) {
            const vf weight = expand<F>(dwords, j);
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) acc[r][p][part] = madd(splat(x[r][k + j]), weight, acc[r][p][part]);
          }
        }
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int p = 0; p < NP; ++p)
        promote(w, first_panel + p, s, unscale_of(F), acc[r][p],
                args.c + (first_row + r) * args.c_stride + (first_panel + p) * kPanelRows);
  }
}

// Many rows: one segment of NP panels lies expanded in `tile`, [k][panel][16].
template <int R, int NP>
void gemm_tile(const GemmArgs& args, int first_row, int first_panel, int segment, float unscale, const float* tile) {
  const int64_t begin = args.w.segment_begin[segment];
  const int n_k = args.w.segment_begin[segment + 1] - args.w.segment_begin[segment];
  const float* x[R];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) x[r] = static_cast<const float*>(args.rows[first_row + r]) + begin;

  vf acc[R][NP][kParts] = {};
  for (int k = 0; k < n_k; ++k) {
    vf weight[NP][kParts];
#pragma GCC unroll 4
    for (int p = 0; p < NP; ++p)
#pragma GCC unroll 4
      for (int part = 0; part < kParts; ++part) weight[p][part] = load(tile + (k * NP + p) * kPanelRows + part * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const vf value = splat(x[r][k]);
#pragma GCC unroll 4
      for (int p = 0; p < NP; ++p)
#pragma GCC unroll 4
        for (int part = 0; part < kParts; ++part) acc[r][p][part] = madd(value, weight[p][part], acc[r][p][part]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int p = 0; p < NP; ++p)
      promote(args.w, first_panel + p, segment, unscale, acc[r][p],
              args.c + (first_row + r) * args.c_stride + (first_panel + p) * kPanelRows);
}

// gemm_few or gemm_tile with the row count as a template argument: R counts down to the rows there are.
template <LineFormat F, int R>
void few_rows(const GemmArgs& args, int first_panel) {
  if constexpr (R > 1)
    if (args.m < R) return few_rows<F, R - 1>(args, first_panel);
  gemm_few<F, R, kFewPanels>(args, 0, first_panel);
}
template <int R, int NP>
void tile_rows(const GemmArgs& args, int first_row, int first_panel, int segment, float unscale, const float* tile) {
  if constexpr (R > 1)
    if (args.m - first_row < R) return tile_rows<R - 1, NP>(args, first_row, first_panel, segment, unscale, tile);
  gemm_tile<R, NP>(args, first_row, first_panel, segment, unscale, tile);
}

template <LineFormat F, int NP>
void expand_tile(const PanelGroup& w, int first_panel, int segment, float* tile) {
  constexpr int kLineK = line_k(F);
  const uint8_t* line = w.lines + (w.segment_begin[segment] / kLineK * w.n_panels + first_panel) * 64;
  const int n_lines = (w.segment_begin[segment + 1] - w.segment_begin[segment]) / kLineK;
  for (int i = 0; i < n_lines; ++i, line += w.n_panels * 64, tile += kLineK * NP * kPanelRows)
#pragma GCC unroll 4
    for (int p = 0; p < NP; ++p) {
      __builtin_prefetch(line + (n_lines * w.n_panels + p) * 64, 0,
                         2);  // of the next segment: arrives while this one is multiplied
#pragma GCC unroll 4
      for (int part = 0; part < kParts; ++part) {
        const vu dwords = *reinterpret_cast<const vu_mem*>(line + p * 64 + part * kLanes * 4);
#pragma GCC unroll 8
        for (int j = 0; j < kLineK; ++j) store(tile + (j * NP + p) * kPanelRows + part * kLanes, expand<F>(dwords, j));
      }
    }
}

template <LineFormat F, int NP>
void many_rows(const GemmArgs& args, int first_panel) {
  float* tile = static_cast<float*>(args.scratch);
  for (int s = 0; s < args.w.n_segments; ++s) {
    expand_tile<F, NP>(args.w, first_panel, s, tile);
    for (int row = 0; row < args.m; row += kTileRows) tile_rows<kTileRows, NP>(args, row, first_panel, s, unscale_of(F), tile);
  }
}

template <LineFormat F>
void gemm(const GemmArgs& args) {
  for (int r = 0; r < args.m; ++r)
    for (int i = 0; i < args.w.n_panels * kPanelRows; i += kLanes) store(args.c + r * args.c_stride + i, vf{});
  int p = 0;
  if (args.m <= kFewRows) {
    for (; p + kFewPanels <= args.w.n_panels; p += kFewPanels) few_rows<F, kFewRows>(args, p);
    for (; p < args.w.n_panels; ++p)  // panels left over, rarely any
      for (int r = 0; r < args.m; ++r) gemm_few<F, 1, 1>(args, r, p);
  } else {
    for (; p + kTilePanels <= args.w.n_panels; p += kTilePanels) many_rows<F, kTilePanels>(args, p);
    for (; p < args.w.n_panels; ++p) many_rows<F, 1>(args, p);
  }
}

// ---- rows --------------------------------------------------------------------------------------------------------

// e^x to about one unit in the last place; inputs below -87 give e^-87, above 88.3 e^88.3.
inline vf exp_vector(vf x) {
  x = select(x < splat(-87.0f), splat(-87.0f), x);
  x = select(x > splat(88.3f), splat(88.3f), x);
  const vf magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer, held in the low bits
  const vf shifted = madd(x, splat(1.44269504f), magic);
  const vf n = shifted - magic;
  vf r = madd(n, splat(-0.693359375f), x);
  r = madd(n, splat(2.12194440e-4f), r);
  vf p = splat(1.9875691500e-4f);
  p = madd(p, r, splat(1.3981999507e-3f));
  p = madd(p, r, splat(8.3334519073e-3f));
  p = madd(p, r, splat(4.1665795894e-2f));
  p = madd(p, r, splat(1.6666665459e-1f));
  p = madd(p, r, splat(5.0000001201e-1f));
  p = madd(p, r * r, r + 1.0f);
  const vi exponent = ((vi)shifted - 0x4b400000 + 127) << 23;
  return p * (vf)exponent;
}

inline float sum_lanes(vf v) {
  float sum = v[0];
  for (int i = 1; i < kLanes; ++i) sum += v[i];
  return sum;
}

// out[i] = body(a[i], b[i]); the end of a row goes through zero-padded copies. out may be a or b.
template <typename Body>
inline void for_row(const float* a, const float* b, int64_t n, float* out, Body body) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(out + i, body(load(a + i), load(b + i)));
  if (i == n) return;
  float pad_a[kLanes] = {}, pad_b[kLanes] = {}, pad_out[kLanes];
  for (int64_t j = i; j < n; ++j) pad_a[j - i] = a[j], pad_b[j - i] = b[j];
  store(pad_out, body(load(pad_a), load(pad_b)));
  for (int64_t j = i; j < n; ++j) out[j] = pad_out[j - i];
}

void rms_norm(const float* x, const float* weight, float eps, int64_t n, float* out) {
  vf squares[4] = {};
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes)
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) squares[j] = madd(load(x + i + j * kLanes), load(x + i + j * kLanes), squares[j]);
  float sum = sum_lanes((squares[0] + squares[1]) + (squares[2] + squares[3]));
  for (; i < n; ++i) sum += x[i] * x[i];
  const vf inverse = splat(1.0f / __builtin_sqrtf(sum / static_cast<float>(n) + eps));
  for_row(x, weight, n, out, [=](vf a, vf b) { return a * inverse * b; });
}

void sum_slots(const float* slots, int n_slots, int64_t n, float* out) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    vf sum = load(slots + i);
    for (int s = 1; s < n_slots; ++s) sum = sum + load(slots + s * n + i);
    store(out + i, sum);
  }
  for (; i < n; ++i) {
    float sum = slots[i];
    for (int s = 1; s < n_slots; ++s) sum += slots[s * n + i];
    out[i] = sum;
  }
}

void add(float* x, const float* y, int64_t n) {
  for_row(x, y, n, x, [](vf a, vf b) { return a + b; });
}

void scale(const float* x, float factor, int64_t n, float* out) {
  const vf f = splat(factor);
  for_row(x, x, n, out, [=](vf a, vf) { return a * f; });
}

void scale_add(float* x, float factor, const float* y, float y_factor, int64_t n) {
  const vf f = splat(factor), g = splat(y_factor);
  for_row(x, y, n, x, [=](vf a, vf b) { return madd(b, g, a * f); });
}

void swiglu(const float* gate, const float* up, int64_t n, float* out) {
  for_row(gate, up, n, out, [](vf g, vf u) { return g / (exp_vector(-g) + 1.0f) * u; });
}

inline vu bf16_bits(vf x) {
  const vu bits = (vu)x;
  const vu rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const vu is_nan = (vu)((bits & 0x7fffffffu) > (vu{} + 0x7f800000u));
  return (is_nan & ((bits >> 16) | 0x40u)) | (~is_nan & rounded);
}

void to_bf16(const float* x, int64_t n, uint16_t* out) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    *reinterpret_cast<vh_mem*>(out + i) = __builtin_convertvector(bf16_bits(load(x + i)), vh);
  for (; i < n; ++i) out[i] = static_cast<uint16_t>(bf16_bits(splat(x[i]))[0]);
}

float softmax_part(float* s, float factor, int64_t n, float* max) {
  const vf f = splat(factor);
  float highest = s[0] * factor;
  int64_t i = 0;
  if (n >= kLanes) {
    vf best = load(s) * f;
    for (i = kLanes; i + kLanes <= n; i += kLanes) {
      const vf value = load(s + i) * f;
      best = select(value > best, value, best);
    }
    for (int j = 0; j < kLanes; ++j) highest = best[j] > highest ? best[j] : highest;
  }
  for (; i < n; ++i) highest = s[i] * factor > highest ? s[i] * factor : highest;
  *max = highest;

  const vf top = splat(highest);
  for_row(s, s, n, s, [=](vf a, vf) { return exp_vector(a * f - top); });
  vf sums{};
  for (i = 0; i + kLanes <= n; i += kLanes) sums = sums + load(s + i);
  float sum = sum_lanes(sums);
  for (; i < n; ++i) sum += s[i];
  return sum;
}

// ---- ceilings ----------------------------------------------------------------------------------------------------

uint32_t read_all(const uint32_t* memory, int64_t n) {
  vu sums[4] = {};
  for (int64_t i = 0; i < n; i += 4 * kLanes)
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) sums[j] ^= *reinterpret_cast<const vu_mem*>(memory + i + j * kLanes);
  const vu all = sums[0] ^ sums[1] ^ sums[2] ^ sums[3];
  uint32_t result = 0;
  for (int i = 0; i < kLanes; ++i) result ^= all[i];
  return result;
}

constexpr int kPeakSums = kLanes == 4 ? 10 : 12;

float peak_loop(int64_t iterations) {
  vf sums[kPeakSums];
#pragma GCC unroll 12
  for (int j = 0; j < kPeakSums; ++j) sums[j] = splat(static_cast<float>(j));  // all different: none is computed once for two
  vf a = splat(1.0f), b = splat(0.5f);
  for (int64_t i = 0; i < iterations; ++i) {
    opaque(a);  // every product is made
    opaque(b);
#pragma GCC unroll 12
    for (int j = 0; j < kPeakSums; ++j) sums[j] = madd(a, b, sums[j]);
  }
  vf all{};
  for (int j = 0; j < kPeakSums; ++j) all = all + sums[j];
  return sum_lanes(all);
}

constexpr PeakLoop kPeak = {peak_loop, 2 * kLanes* kPeakSums};

constexpr SimdKernels kKernels = {
    {gemm<LineFormat::f32>, gemm<LineFormat::bf16>, gemm<LineFormat::fp8>, gemm<LineFormat::int4>, gemm<LineFormat::int8>},
    rms_norm,
    sum_slots,
    add,
    scale,
    scale_add,
    to_bf16,
    swiglu,
    softmax_part,
    read_all,
    kPeak};
