// The attention kernels on the twin with every check on, against the naive reference: KV lengths from 1 over several pages and
// splits, pages in any order with NaN where nothing was stored, 1 to 16 query heads to a KV head, head sizes, decode rows,
// chains and prefill chunks in one batch, 1 to 24 groups of cores.
#include <numeric>

#include "ascend/host/tiling_attention.h"
#include "kernel_testing.h"

using namespace sigmoe;
using namespace sigmoe::ascend;
using namespace sigmoe::ascend::testing;

extern "C" void sigmoe_attention_bf16(uint8_t* q, uint8_t* k, uint8_t* v, uint8_t* positions, uint8_t* seq_offsets,
                                      uint8_t* page_tables, uint8_t* work, uint8_t* out, uint8_t* shadow, uint8_t* scales,
                                      AttentionTiling tiling);

extern "C" void sigmoe_attention_f32(uint8_t* q, uint8_t* k, uint8_t* v, uint8_t* positions, uint8_t* seq_offsets,
                                     uint8_t* page_tables, uint8_t* out, AttentionTiling tiling);

namespace {

constexpr double kBf16Attention = 6e-3;  // queries and probabilities rounded to BF16

struct Heads {
  int q, kv, dim;
};

struct Piece {
  int first, n;  // positions [first, first + n) of a sequence of its own
};

struct Batch {
  Heads heads;
  int max_pages = 0;
  std::vector<float> q;
  std::vector<bfloat16_t> k, v;
  std::vector<int32_t> positions, offsets{0}, tables;
  std::vector<float> expected;
  int tokens() const { return static_cast<int>(positions.size()); }
};

Batch make_batch(const Heads& heads, const std::vector<Piece>& pieces, int spare_pages = 0) {
  Batch batch;
  batch.heads = heads;
  int n_pages = 0;
  for (const Piece& piece : pieces) {
    batch.max_pages = std::max(batch.max_pages, (piece.first + piece.n + kPageTokens - 1) / kPageTokens + spare_pages);
    n_pages += (piece.first + piece.n + kPageTokens - 1) / kPageTokens;
  }
  std::vector<int32_t> pages(n_pages);
  std::iota(pages.begin(), pages.end(), 0);
  std::shuffle(pages.begin(), pages.end(), std::mt19937_64(n_pages));
  const size_t page_size = static_cast<size_t>(heads.kv) * kPageTokens * heads.dim;
  batch.k.assign(n_pages * page_size, bfloat16_t::from_bits(0x7fc0));
  batch.v = batch.k;
  size_t next = 0;
  for (size_t b = 0; b < pieces.size(); ++b) {
    const int length = pieces[b].first + pieces[b].n;
    const std::vector<float> k = gaussian(static_cast<size_t>(length) * heads.kv * heads.dim, 10 + b, 1.5f),
                             v = gaussian(static_cast<size_t>(length) * heads.kv * heads.dim, 90 + b);
    std::vector<int32_t> table(batch.max_pages, -1);  // past the sequence's last: undefined
    for (int page = 0; page * kPageTokens < length; ++page) table[page] = pages[next++];
    for (int p = 0; p < length; ++p)
      for (int g = 0; g < heads.kv; ++g)
        for (int i = 0; i < heads.dim; ++i) {
          const size_t at =
              ((static_cast<size_t>(table[p / kPageTokens]) * heads.kv + g) * kPageTokens + p % kPageTokens) * heads.dim + i;
          batch.k[at] = bfloat16_t(k[(static_cast<size_t>(p) * heads.kv + g) * heads.dim + i]);
          batch.v[at] = bfloat16_t(v[(static_cast<size_t>(p) * heads.kv + g) * heads.dim + i]);
        }
    batch.tables.insert(batch.tables.end(), table.begin(), table.end());
    for (int p = pieces[b].first; p < length; ++p) batch.positions.push_back(p);
    batch.offsets.push_back(batch.tokens());
  }
  batch.q = gaussian(static_cast<size_t>(batch.tokens()) * heads.q * heads.dim, 3);
  batch.expected.resize(batch.q.size());
  BatchView view;
  view.n_tokens = batch.tokens();
  view.n_seqs = static_cast<int>(pieces.size());
  view.max_pages = batch.max_pages;
  view.positions = batch.positions.data();
  view.seq_offsets = batch.offsets.data();
  view.page_tables = batch.tables.data();
  reference_backend(DType::bf16)
      ->attention(view, {heads.q, heads.kv, heads.dim, 0}, batch.q.data(), {batch.k.data(), batch.v.data(), DType::bf16},
                  batch.expected.data());
  return batch;
}

AttentionTiling tiling_of(const Batch& batch, int cores, ShadowKind kind = kNoShadow, int64_t pitch = 0) {
  AttentionWork work;
  work.tokens = batch.tokens();
  work.seqs = static_cast<int64_t>(batch.offsets.size()) - 1;
  work.max_pages = batch.max_pages;
  work.heads = batch.heads.q;
  work.kv_heads = batch.heads.kv;
  work.head_dim = batch.heads.dim;
  work.shadow = kind;
  work.shadow_pitch = pitch;
  return make_attention_tiling(work, {cores, 2 * cores});
}

struct Result {
  std::vector<float> out, narrow;  // narrow: of the shadow, its scale applied
};

Result run(const Batch& batch, int cores, ShadowKind kind = kNoShadow) {
  const int64_t width = static_cast<int64_t>(batch.heads.q) * batch.heads.dim, pitch = row_pitch(width, 1);
  const AttentionTiling tiling = tiling_of(batch, cores, kind, pitch);
  Gm<float> q(batch.q), out(batch.q.size(), NAN), scales(batch.tokens(), NAN);
  Gm<bfloat16_t> k(batch.k), v(batch.v), shadow_bf16(batch.tokens() * pitch, bfloat16_t(-7.0f));
  Gm<int8_t> shadow_int8(batch.tokens() * pitch, int8_t{-7});
  Gm<int32_t> positions(batch.positions), offsets(batch.offsets), tables(batch.tables);
  Gm<uint8_t> work(attention_work_bytes(tiling), 0xff);
  uint8_t* shadow = kind == kShadowInt8 ? shadow_int8.address() : shadow_bf16.address();
  twin::launch(twin::Kind::mix, cores, [&] {
    sigmoe_attention_bf16(q.address(), k.address(), v.address(), positions.address(), offsets.address(), tables.address(),
                          work.address(), out.address(), shadow, scales.address(), tiling);
  });
  Result result{out.values(), {}};
  for (int t = 0; t < batch.tokens(); ++t)
    for (int64_t i = 0; i < width; ++i)
      result.narrow.push_back(kind == kShadowInt8 ? shadow_int8.values()[t * pitch + i] * scales.values()[t]
                                                  : static_cast<float>(shadow_bf16.values()[t * pitch + i]));
  return result;
}

// The float32 kernel over the same cache in float32.
std::vector<float> run_f32(const Batch& batch, int cores) {
  const auto wide = [](const std::vector<bfloat16_t>& values) {
    std::vector<float> out;
    for (const bfloat16_t value : values) out.push_back(static_cast<float>(value));
    return out;
  };
  Gm<float> q(batch.q), k(wide(batch.k)), v(wide(batch.v)), out(batch.q.size(), NAN);
  Gm<int32_t> positions(batch.positions), offsets(batch.offsets), tables(batch.tables);
  const AttentionTiling tiling = tiling_of(batch, cores / 2 + 1);
  twin::launch(twin::Kind::aiv, cores, [&] {
    sigmoe_attention_f32(q.address(), k.address(), v.address(), positions.address(), offsets.address(), tables.address(),
                         out.address(), tiling);
  });
  return out.values();
}

}  // namespace

TEST_CASE("ascend attention: group ratios and head sizes agree with the reference") {
  const Heads shapes[] = {{1, 1, 64}, {2, 2, 128}, {4, 1, 128}, {16, 1, 64}, {32, 4, 128}, {14, 2, 80},
                          {5, 1, 16}, {3, 1, 48},  {6, 1, 256}, {16, 8, 32}, {13, 1, 128}, {24, 2, 64}};
  for (const Heads& heads : shapes) {
    CAPTURE(heads.q);
    CAPTURE(heads.kv);
    CAPTURE(heads.dim);
    const Batch batch = make_batch(heads, {{0, 37}, {140, 1}, {300, 3}});
    CHECK(relative_error(run(batch, 20).out, batch.expected) < kBf16Attention);
    CHECK(relative_error(run_f32(batch, 40), batch.expected) < kF32Error);
  }
}

TEST_CASE("ascend attention: lengths around fractals, pages, chunks and splits") {
  for (const int length : {1, 2, 15, 16, 17, 64, 127, 128, 129, 255, 256, 257, 511, 513, 1000, 1024, 1025, 2300}) {
    CAPTURE(length);
    const Batch batch = make_batch({4, 1, 32}, {{length - 1, 1}});
    CHECK(relative_error(run(batch, 3).out, batch.expected) < kBf16Attention);
    CHECK(relative_error(run_f32(batch, 3), batch.expected) < kF32Error);
  }
}

TEST_CASE("ascend attention: prefill, chains and decode rows in one batch") {
  const Batch batch =
      make_batch({8, 2, 64}, {{0, 1}, {0, 150}, {999, 1}, {250, 10}, {1020, 9}, {128, 128}, {60, 1}, {2047, 4}}, 3);
  const Result plain = run(batch, 24);
  CHECK(relative_error(plain.out, batch.expected) < kBf16Attention);
  CHECK(relative_error(run_f32(batch, 48), batch.expected) < kF32Error);
  for (int cores = 1; cores <= 24; cores += cores < 5 ? 1 : 6) {
    CAPTURE(cores);
    CHECK(run(batch, cores).out == plain.out);
  }
}

TEST_CASE("ascend attention: the order in which cores run changes nothing") {
  const Batch batch = make_batch({4, 2, 32}, {{0, 40}, {1500, 1}, {700, 3}});
  const std::vector<float> expected = run(batch, 3).out;
  for (const uint64_t seed : {1, 2, 3, 4, 5}) {
    twin::schedule(seed);
    const std::vector<float> out = run(batch, 3).out;
    twin::schedule(0);
    CHECK(out == expected);
  }
}

TEST_CASE("ascend attention: a long prompt at once") {
  const Batch batch = make_batch({4, 1, 32}, {{0, 512}});
  CHECK(relative_error(run(batch, 20).out, batch.expected) < kBf16Attention);
}

TEST_CASE("ascend attention: the narrow copy of the result") {
  const Batch batch = make_batch({6, 2, 48}, {{30, 5}, {1100, 1}});
  const Result bf16 = run(batch, 20, kShadowBf16), int8 = run(batch, 20, kShadowInt8);
  CHECK(bf16.out == run(batch, 20).out);
  CHECK(int8.out == bf16.out);
  for (size_t i = 0; i < bf16.out.size(); ++i) CHECK(bf16.narrow[i] == static_cast<float>(bfloat16_t(bf16.out[i])));
  CHECK(relative_error(int8.narrow, int8.out) < kInt8Error);
}

TEST_CASE("ascend attention: a decode row does not depend on its neighbours") {
  const Batch alone = make_batch({4, 1, 32}, {{700, 1}}), among = make_batch({4, 1, 32}, {{700, 1}, {5, 1}, {3, 40}});
  const std::vector<float> a = run(alone, 20).out, b = run(among, 20).out;
  // The queries are drawn in order, so the first row has the same; its keys and values are the sequence's own.
  CHECK(std::equal(a.begin(), a.end(), b.begin()));
}

TEST_CASE("ascend attention tiling: splits, workspace, and what does not fit") {
  const auto tiling = [](int64_t tokens, int64_t max_pages) {
    AttentionWork work;
    work.tokens = tokens;
    work.seqs = 1;
    work.max_pages = max_pages;
    work.heads = 32;
    work.kv_heads = 4;
    work.head_dim = 128;
    return make_attention_tiling(work, {20, 40});
  };
  CHECK(tiling(1, 1).max_splits == 1);
  CHECK(tiling(1, 256).split_tokens == 1024);
  CHECK(tiling(1, 256).max_splits == 32);
  CHECK(tiling(1, 256).tile_tokens == 8);
  for (const int64_t tokens : {1, 64, 512, 4096})
    for (const int64_t max_pages : {1, 9, 256, 1024}) {
      const AttentionTiling t = tiling(tokens, max_pages);
      CHECK(t.split_tokens % kAttentionChunk == 0);
      CHECK(int64_t{t.max_splits} * t.split_tokens >= max_pages * kPagePositions);
      // One result a row, or at most 64 MB of them.
      CHECK((t.max_splits == 1 || attention_work_bytes(t) - t.part_highest_at <= (size_t{65} << 20)));
    }
  AttentionWork odd;
  odd.tokens = odd.seqs = odd.max_pages = 1;
  odd.heads = 6;
  odd.kv_heads = 4;
  odd.head_dim = 128;
  CHECK_THROWS_AS(make_attention_tiling(odd, {20, 40}), EngineError);
  odd.kv_heads = 2;
  odd.head_dim = 40;
  CHECK_THROWS_AS(make_attention_tiling(odd, {20, 40}), EngineError);
}
