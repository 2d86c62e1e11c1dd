// Packed lines to BF16 pairs, for the paths that multiply in BF16: dword r of a vector is (k, k + 1) of output row r.
// Needs AVX512BW and AVX512_VBMI.

// Values of k in one line.
constexpr int line_k(LineFormat format) { return format == LineFormat::int8 ? 4 : 1 << static_cast<int>(format); }

// The BF16 value of every E4M3 magnitude, exact for denormals: low and high bytes apart, as byte lookups want them.
struct Fp8Tables {
  alignas(64) uint8_t low[128], high[128];
};
constexpr Fp8Tables make_fp8_tables() {
  Fp8Tables tables{};
  for (unsigned code = 0; code < 128; ++code) {
    unsigned exponent = code >> 3, fraction = code & 7;
    if (exponent == 0 && fraction != 0) {  // a denormal: fraction * 2^-9
      for (exponent = 1; fraction < 8; --exponent) fraction <<= 1;
      fraction &= 7;
    } else if (code == 0) {
      exponent = -120u;
    }
    const unsigned bits = (exponent + 120) << 7 | fraction << 4;
    tables.low[code] = static_cast<uint8_t>(bits);
    tables.high[code] = static_cast<uint8_t>(bits >> 8);
  }
  return tables;
}
alignas(64) constexpr Fp8Tables kFp8Tables = make_fp8_tables();

// -8 .. 7 as BF16, twice: the lookup reads five bits of which four are the nibble.
alignas(64) constexpr uint16_t kInt4Table[32] = {0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040, 0xc000, 0xbf80,
                                                 0x0000, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0,
                                                 0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040, 0xc000, 0xbf80,
                                                 0x0000, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0};

// Pairs of integers, each in the high byte of a word, to pairs of BF16, which holds them exactly: both as float32, of which
// the low halves are zero.
inline __m512i bytes_to_bf16(__m512i words) {
  using Ints = int32_t __attribute__((vector_size(64)));
  using Bits = uint32_t __attribute__((vector_size(64)));
  const Bits low = (Bits) __builtin_convertvector((Ints)((Bits)words << 16) >> 24, __m512);
  const Bits high = (Bits) __builtin_convertvector((Ints)words >> 24, __m512);
  return (__m512i)(low >> 16 | high);
}

// Expands lines of one format; made once per call so that the tables stay in registers.
template <LineFormat F>
struct Expander {
  static constexpr int kPairs = line_k(F) / 2;  // vectors of pairs per line
  __m512i t0, t1, t2, t3;

  Expander() {
    if constexpr (F == LineFormat::fp8) {
      t0 = _mm512_load_si512(kFp8Tables.low);
      t1 = _mm512_load_si512(kFp8Tables.low + 64);
      t2 = _mm512_load_si512(kFp8Tables.high);
      t3 = _mm512_load_si512(kFp8Tables.high + 64);
    } else {
      t0 = t1 = t2 = t3 = _mm512_load_si512(kInt4Table);
    }
  }

  void operator()(const uint8_t* line, __m512i (&pairs)[kPairs]) const {
    const __m512i codes = _mm512_load_si512(line);
    if constexpr (F == LineFormat::bf16) pairs[0] = codes;
    if constexpr (F == LineFormat::fp8) {
      const __m512i low = _mm512_permutex2var_epi8(t0, codes, t1);  // bit 7 of an index is not looked at
      const __m512i magnitude = _mm512_permutex2var_epi8(t2, codes, t3);
      const __m512i high = _mm512_ternarylogic_epi32(magnitude, codes, _mm512_set1_epi8(-128), 0xf8);  // m | (codes & sign)
      pairs[0] = _mm512_unpacklo_epi8(low, high);                                                      // k0, k1
      pairs[1] = _mm512_unpackhi_epi8(low, high);                                                      // k2, k3
    }
    if constexpr (F == LineFormat::int8) {
      pairs[0] = bytes_to_bf16(_mm512_unpacklo_epi8(_mm512_setzero_si512(), codes));  // k0, k1
      pairs[1] = bytes_to_bf16(_mm512_unpackhi_epi8(_mm512_setzero_si512(), codes));  // k2, k3
    }
    if constexpr (F == LineFormat::int4) {
      pairs[0] = _mm512_permutexvar_epi16(codes, t0);
      pairs[1] = _mm512_permutexvar_epi16(_mm512_srli_epi16(codes, 4), t0);
      pairs[2] = _mm512_permutexvar_epi16(_mm512_srli_epi16(codes, 8), t0);
      pairs[3] = _mm512_permutexvar_epi16(_mm512_srli_epi16(codes, 12), t0);
    }
  }
};

// One segment of NP panels to pairs, [k/2][panel][16]. Asks for the lines of the next segment, which arrive while this one
// is multiplied.
template <LineFormat F, int NP>
void expand_panels(const PanelGroup& w, int first_panel, int segment, uint8_t* out) {
  const Expander<F> expand;
  const uint8_t* line = w.lines + (static_cast<int64_t>(w.segment_begin[segment] / line_k(F)) * w.n_panels + first_panel) * 64;
  const int n_lines = (w.segment_begin[segment + 1] - w.segment_begin[segment]) / line_k(F);
  constexpr int kPairs = Expander<F>::kPairs;
  for (int i = 0; i < n_lines; ++i, line += w.n_panels * 64, out += kPairs * NP * 64)
#pragma GCC unroll 4
    for (int p = 0; p < NP; ++p) {
      __m512i pairs[kPairs];
      __builtin_prefetch(line + (n_lines * w.n_panels + p) * 64, 0, 2);
      expand(line + p * 64, pairs);
#pragma GCC unroll 4
      for (int j = 0; j < kPairs; ++j) _mm512_store_si512(out + (j * NP + p) * 64, pairs[j]);
    }
}

// Scales of a panel's 16 rows in one segment.
inline __m512 segment_scale(const PanelGroup& w, int panel, int segment) {
  if (!w.segment_block) return _mm512_set1_ps(1.0f);
  const int64_t block = w.segment_block[segment];
  const float* scales = w.scales + panel * w.scale_panel_stride;
  return w.scale_per_row ? _mm512_loadu_ps(scales + block * kPanelRows) : _mm512_set1_ps(scales[block]);
}
