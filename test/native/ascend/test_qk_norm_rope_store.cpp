// Kernel qk_norm_rope_store on the twin, checks on, against the reference: heads of every shape, tails, batches of any mix,
// page order shuffled, 1 to 48 cores.
#include <numeric>

#include "ascend/host/tiling_qk_norm_rope_store.h"
#include "ascend/host/tiling_rows.h"
#include "kernel_testing.h"

using namespace sigmoe;
using namespace sigmoe::ascend;
using namespace sigmoe::ascend::testing;

extern "C" __global__ __aicore__ void sigmoe_qk_norm_rope_store(GM_ADDR qkv, GM_ADDR q_norm, GM_ADDR k_norm, GM_ADDR cos,
                                                                GM_ADDR sin, GM_ADDR positions, GM_ADDR seq_offsets,
                                                                GM_ADDR page_tables, GM_ADDR k, GM_ADDR v, GM_ADDR q_out,
                                                                QkNormRopeStoreTiling tiling);

namespace {

struct Case {
  AttentionShape shape;
  std::vector<std::pair<int, int>> spans;  // per sequence: positions [first, second) of this step
  bool norms = true;
  DType kv = DType::bf16;
};

struct Result {
  std::vector<float> q, k, v;
};

constexpr float kPoison = -12345.0f;

std::vector<float> floats_of(const std::vector<uint8_t>& bytes, DType dtype) {
  std::vector<float> out(bytes.size() / dtype_bytes(dtype));
  for (size_t i = 0; i < out.size(); ++i) {
    if (dtype == DType::f32)
      std::memcpy(&out[i], bytes.data() + 4 * i, 4);
    else
      out[i] = bf16_to_f32(reinterpret_cast<const uint16_t*>(bytes.data())[i]);
  }
  return out;
}

void check(const Case& c, const Cores& cores, uint64_t seed) {
  const AttentionShape& s = c.shape;
  const int n_seqs = static_cast<int>(c.spans.size()), half = s.rotary_dim / 2;
  std::vector<int32_t> positions, seq_offsets{0};
  int longest = 1;
  for (const auto& [first, end] : c.spans) {
    for (int p = first; p < end; ++p) positions.push_back(p);
    seq_offsets.push_back(static_cast<int32_t>(positions.size()));
    longest = std::max(longest, end);
  }
  const int n_tokens = static_cast<int>(positions.size()), max_pages = (longest + kPageTokens - 1) / kPageTokens,
            n_pages = n_seqs * max_pages;
  std::vector<int32_t> pages(n_pages);
  std::iota(pages.begin(), pages.end(), 0);
  std::mt19937_64 random(seed);
  std::shuffle(pages.begin(), pages.end(), random);

  const size_t cache_bytes = size_t(n_pages) * s.n_kv_heads * kPageTokens * s.head_dim * dtype_bytes(c.kv);
  Gm<float> qkv(gaussian(size_t(n_tokens) * (s.n_heads + 2 * s.n_kv_heads) * s.head_dim, seed + 1));
  Gm<float> q_norm(gaussian(s.head_dim, seed + 2)), k_norm(gaussian(s.head_dim, seed + 3));
  Gm<float> cos(gaussian(size_t(longest) * half, seed + 4)), sin(gaussian(size_t(longest) * half, seed + 5));
  Gm<float> q(size_t(n_tokens) * s.n_heads * s.head_dim, kPoison);
  Gm<uint8_t> k(cache_bytes, 0x4d), v(cache_bytes, 0x4d);
  Gm<int32_t> gm_positions(positions), gm_offsets(seq_offsets), gm_pages(pages);

  BatchView batch{n_tokens, n_seqs, max_pages, nullptr, positions.data(), seq_offsets.data(), pages.data()};
  Result expected{q.values(), {}, {}};
  std::vector<uint8_t> expected_k = k.values(), expected_v = v.values();
  reference_backend(c.kv)->qk_norm_rope_store(
      batch, s, qkv.values().data(), c.norms ? q_norm.values().data() : nullptr, c.norms ? k_norm.values().data() : nullptr,
      1e-6f, cos.values().data(), sin.values().data(), {expected_k.data(), expected_v.data(), c.kv}, expected.q.data());

  const QkNormRopeStoreTiling tiling = make_qk_norm_rope_store_tiling(batch, s, c.norms, c.norms, 1e-6f, c.kv, cores);
  CHECK(ub_bytes(tiling) <= kUbBytes);
  twin::launch(twin::Kind::aiv, qk_norm_rope_store_blocks(tiling, cores), [&] {
    sigmoe_qk_norm_rope_store(qkv.address(), q_norm.address(), k_norm.address(), cos.address(), sin.address(),
                              gm_positions.address(), gm_offsets.address(), gm_pages.address(), k.address(), v.address(),
                              q.address(), tiling);
  });
  CHECK(relative_error(q.values(), expected.q) < 1e-6);
  CHECK(v.values() == expected_v);
  // A sum in another order may round the other way now and then in BF16.
  CHECK(relative_error(floats_of(k.values(), c.kv), floats_of(expected_k, c.kv)) < (c.kv == DType::f32 ? 1e-6 : 3e-4));
}

}  // namespace

TEST_CASE("ascend qk_norm_rope_store: head shapes, with and without norms, both cache types") {
  for (const AttentionShape& shape : {AttentionShape{4, 1, 128, 64},
                                      {32, 4, 128, 64},
                                      {16, 4, 128, 64},
                                      {2, 2, 64, 64},
                                      {6, 2, 64, 0},
                                      {5, 1, 80, 40},
                                      {3, 3, 20, 10},
                                      {1, 1, 24, 24},
                                      {7, 7, 17, 6},
                                      {2, 1, 256, 192},
                                      {1, 1, 2, 2},
                                      {64, 8, 128, 32}})
    for (const bool norms : {true, false})
      for (const DType kv : {DType::bf16, DType::f32}) {
        CAPTURE(shape.n_heads);
        CAPTURE(shape.head_dim);
        CAPTURE(shape.rotary_dim);
        check({shape, {{130, 133}, {0, 1}}, norms, kv}, {20, 40}, 7);
      }
}

TEST_CASE("ascend qk_norm_rope_store: prefill, decode and chains together, on 1 to 48 cores") {
  const std::vector<std::pair<int, int>> mixed = {{0, 37}, {400, 401}, {126, 131}, {511, 512}, {0, 1}, {255, 257}};
  for (int n = 1; n <= 48; n += n < 4 ? 1 : 4) {
    CAPTURE(n);
    check({{8, 2, 128, 64}, mixed}, {std::max(1, n / 2), n}, n);
  }
  for (const Cores& cores : {Cores{20, 40}, Cores{24, 48}})
    for (const int batch : {1, 2, 7, 64}) {
      CAPTURE(batch);
      check({{32, 4, 128, 64}, std::vector<std::pair<int, int>>(batch, {300, 301})}, cores, 3);
    }
}

TEST_CASE("ascend qk_norm_rope_store: the tiling keeps to UB, uses the cores, and refuses what does not fit") {
  const BatchView one{1, 1, 1, nullptr, nullptr, nullptr, nullptr}, many{512, 1, 4, nullptr, nullptr, nullptr, nullptr};
  for (const Cores& cores : {Cores{20, 40}, Cores{24, 48}}) {
    const auto decode = make_qk_norm_rope_store_tiling(one, {32, 4, 128, 64}, true, true, 1e-6f, DType::bf16, cores);
    CHECK(qk_norm_rope_store_blocks(decode, cores) == 40);  // one head each: there are no more
    const auto prefill = make_qk_norm_rope_store_tiling(many, {32, 4, 128, 64}, true, true, 1e-6f, DType::bf16, cores);
    CHECK(qk_norm_rope_store_blocks(prefill, cores) == static_cast<uint32_t>(cores.aiv));
    CHECK(prefill.q_heads == 32);
    const auto wide = make_qk_norm_rope_store_tiling(many, {255, 255, 256, 256}, true, true, 1e-6f, DType::bf16, cores);
    CHECK(ub_bytes(wide) <= kUbBytes);
  }
  CHECK_THROWS_WITH_AS(make_qk_norm_rope_store_tiling(one, {1, 1, 4096, 64}, true, true, 1e-6f, DType::bf16, {20, 40}),
                       "heads of 4096 do not fit a vector core's memory", EngineError);
}
