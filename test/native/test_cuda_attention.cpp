// q/k norms, RoPE, the store to pages and attention of the CUDA backend against the reference; bits within classes of rows.
#include <numeric>

#include "cuda_testing.h"

using namespace sigmoe;
using namespace sigmoe::testing;

namespace {

struct AttentionCase {
  AttentionShape shape;
  std::vector<std::pair<int, int>> spans;  // per sequence: positions [first, second) of this step
  bool coarse = false;                     // every value an eighth of a whole number up to 15: exact in FP8
};

// Fills a cache by storing every position below each span's end, then attends from the span's rows. behind: a product of what
// attention leaves has the bits of one of the same rows elsewhere.
constexpr int kBehind = 256;  // rows of the weight behind
std::vector<float> attend(Backend& backend, const AttentionCase& c, DType kv_dtype, bool norms, uint64_t seed,
                          const LinearWeight* behind = nullptr) {
  const AttentionShape& shape = c.shape;
  const int n_seqs = static_cast<int>(c.spans.size()), row_width = (shape.n_heads + 2 * shape.n_kv_heads) * shape.head_dim;
  int longest = 0;
  for (const auto& span : c.spans) longest = std::max(longest, span.second);
  const int max_pages = (longest + kPageTokens - 1) / kPageTokens, n_pages = n_seqs * max_pages;
  std::vector<int32_t> pages(n_pages);
  std::iota(pages.begin(), pages.end(), 0);
  std::mt19937_64 shuffle(5);
  std::shuffle(pages.begin(), pages.end(), shuffle);
  const OnDevice<int32_t> page_tables(backend, pages);
  const int half = shape.rotary_dim / 2;
  const OnDevice<float> cos(backend, gaussian(longest * half, 11)), sin(backend, gaussian(longest * half, 12));
  const OnDevice<float> q_norm(backend, gaussian(shape.head_dim, 13)), k_norm(backend, gaussian(shape.head_dim, 14));
  const size_t cache = static_cast<size_t>(n_pages) * shape.n_kv_heads * kPageTokens * shape.head_dim;
  const DeviceBuffer k = backend.alloc(cache * dtype_bytes(kv_dtype), "k"),
                     v = backend.alloc(cache * dtype_bytes(kv_dtype), "v");
  KvView kv;
  kv.k = k.data(), kv.v = v.data(), kv.dtype = kv_dtype;
  const DeviceBuffer k_scales = backend.alloc(cache / shape.head_dim * sizeof(float), "k scales"),
                     v_scales = backend.alloc(cache / shape.head_dim * sizeof(float), "v scales");
  kv.k_scales = k_scales.as<float>(), kv.v_scales = v_scales.as<float>();

  std::vector<float> result;
  for (const bool step : {false, true}) {  // first what came before, then the step itself
    std::vector<int32_t> offsets = {0}, positions;
    std::vector<float> qkv;
    for (int b = 0; b < n_seqs; ++b) {
      for (int p = step ? c.spans[b].first : 0; p < (step ? c.spans[b].second : c.spans[b].first); ++p) {
        positions.push_back(p);
        std::vector<float> row = gaussian(row_width, seed + 1000 * b + p);
        if (c.coarse)
          for (float& value : row) value = std::clamp(std::round(8 * value), -15.0f, 15.0f) / 8;
        qkv.insert(qkv.end(), row.begin(), row.end());
      }
      offsets.push_back(static_cast<int32_t>(positions.size()));
    }
    const int n_tokens = static_cast<int>(positions.size());
    if (n_tokens == 0) continue;
    const OnDevice<int32_t> device_offsets(backend, offsets), device_positions(backend, positions);
    const OnDevice<float> device_qkv(backend, qkv);
    const size_t n_out = static_cast<size_t>(n_tokens) * shape.n_heads * shape.head_dim;
    const OnDevice<float> query(backend, std::vector<float>(n_out, kPoison)), out(backend, std::vector<float>(n_out, kPoison));
    BatchView batch;
    batch.n_tokens = n_tokens;
    batch.n_seqs = n_seqs;
    batch.max_pages = max_pages;
    batch.positions = device_positions.get();
    batch.seq_offsets = device_offsets.get();
    batch.page_tables = page_tables.get();
    backend.qk_norm_rope_store(batch, shape, device_qkv.get(), norms ? q_norm.get() : nullptr, norms ? k_norm.get() : nullptr,
                               1e-6f, cos.get(), sin.get(), kv, query.get());
    if (!step) continue;
    const int width = shape.n_heads * shape.head_dim;
    const OnDevice<float> product(backend, std::vector<float>(behind ? n_tokens * kBehind : 1, kPoison));
    if (behind) backend.linear(query.get(), *behind, n_tokens, product.get());  // tells attention what to pack for
    backend.attention(batch, shape, query.get(), kv, out.get());
    result = out.read();
    const std::vector<float> q = query.read();
    result.insert(result.end(), q.begin(), q.end());
    if (!behind) continue;
    backend.linear(out.get(), *behind, n_tokens, product.get());
    const std::vector<float> found = product.read();
    backend.copy_rows(out.get(), nullptr, width, query.get(), nullptr, width, n_tokens, width);
    backend.linear(query.get(), *behind, n_tokens, product.get());
    CHECK(found == product.read());
  }
  return result;
}

AttentionShape heads(int n_heads, int n_kv_heads, int head_dim, int rotary_dim) {
  AttentionShape shape;
  shape.n_heads = n_heads, shape.n_kv_heads = n_kv_heads, shape.head_dim = head_dim, shape.rotary_dim = rotary_dim;
  return shape;
}

}  // namespace

TEST_CASE("cuda attention: decode, prefill and mixes, lengths around pages and splits, head shapes") {
  on_cuda([](Backend& backend, DType compute) {
    const std::vector<AttentionCase> cases = {
        {heads(32, 4, 128, 64), {{0, 1}}},
        {heads(32, 4, 128, 64), {{15, 16}, {16, 17}, {63, 64}, {64, 65}, {127, 128}, {128, 129}, {255, 256}}},
        {heads(8, 1, 128, 128), {{0, 140}, {100, 101}, {7, 23}}},
        {heads(4, 1, 128, 64), {{300, 303}}},
        {heads(16, 1, 128, 64), {{70, 71}}},
        {heads(2, 2, 64, 32), {{0, 5}, {130, 131}}},
        {heads(10, 2, 64, 64), {{200, 201}}},
        {heads(10, 2, 64, 64), {{0, 300}, {100, 118}, {61, 67}}},
        {heads(12, 4, 128, 64), {{200, 700}, {0, 17}}},
        {heads(4, 2, 32, 16), {{0, 9}, {129, 131}}},
        {heads(17, 1, 128, 64), {{20, 21}}},
        {heads(3, 3, 24, 8), {{5, 7}}},
        {heads(4, 4, 256, 0), {{9, 10}}},
        {heads(2, 1, 128, 64), {{4200, 4201}, {4095, 4096}}},
    };
    for (const AttentionCase& c : cases)
      for (const bool norms : {true, false}) {
        CAPTURE(c.shape.n_heads);
        CAPTURE(c.shape.head_dim);
        CAPTURE(c.spans[0].second);
        CAPTURE(norms);
        const DType kv_dtype = backend.info().kv_dtype;
        CHECK(relative_error(attend(backend, c, kv_dtype, norms, 50), attend(*reference(), c, kv_dtype, norms, 50)) <
              bound(compute, Tolerance::kBf16Attention));
      }
  });
}

TEST_CASE("cuda attention: rows that it packs for the product behind are those of the same rows elsewhere") {
  if (!have_cuda()) return;
  const std::unique_ptr<Backend> made = cuda(DType::bf16);
  Backend& backend = *made;
  for (const WeightFormat format : {WeightFormat::fp8, WeightFormat::bf16})
    for (const AttentionShape& shape : {heads(8, 1, 128, 64), heads(16, 2, 64, 64)})
      for (const int n_seqs : {24, 40}) {
        CAPTURE(weight_format_name(format));
        CAPTURE(shape.n_heads);
        CAPTURE(n_seqs);
        const int k = shape.n_heads * shape.head_dim;
        const auto weight =
            random_weight(format, kBehind, k, format == WeightFormat::fp8 ? blocks_of(k, 128) : std::vector<int64_t>{}, 0, 3)
                .put(backend);
        AttentionCase c{shape, {}};
        for (int b = 0; b < n_seqs; ++b) {
          const int position = b % 8 == 0 ? 40 * b : b;  // of some several runs
          c.spans.push_back({position, position + 1});
        }
        attend(backend, c, backend.info().kv_dtype, true, 7, weight.get());
        c.spans[0] = {5, 8};  // a chain of drafts
        attend(backend, c, backend.info().kv_dtype, true, 7, weight.get());
      }
}

TEST_CASE("cuda attention: a row's bits do not depend on the rest of the batch") {
  on_cuda([](Backend& backend, DType) {
    const DType kv_dtype = backend.info().kv_dtype;
    const AttentionShape shape = heads(8, 2, 128, 64);
    const auto first_row = [&](const std::vector<std::pair<int, int>>& spans) {
      const std::vector<float> all = attend(backend, {shape, spans}, kv_dtype, true, 9);
      return std::vector<float>(all.begin(), all.begin() + shape.n_heads * shape.head_dim);
    };
    // Within a class: a step of tokens and drafts, or one that reads a prompt.
    CHECK(first_row({{170, 171}}) == first_row({{170, 171}, {384, 400}, {20, 21}}));
    CHECK(first_row({{170, 171}, {0, 400}}) == first_row({{170, 171}, {0, 150}, {20, 21}, {300, 304}}));
  });
}

// How a prompt is cut, and what is checked with what, change no bit of a row within its class: few rows of a sequence in the
// step, or many.
TEST_CASE("cuda attention: chunks and chains have the bits of whole prompts and single tokens") {
  on_cuda([](Backend& backend, DType) {
    const DType kv_dtype = backend.info().kv_dtype;
    const AttentionShape shape = heads(16, 2, 128, 64);
    const int width = shape.n_heads * shape.head_dim;
    const auto same_end = [&](const AttentionCase& a, const AttentionCase& b, int n_rows) {
      const auto last = [&](const AttentionCase& c) {
        const std::vector<float> all = attend(backend, c, kv_dtype, true, 9);  // of the rows, then their queries
        const auto end = all.begin() + static_cast<int64_t>(all.size() / 2);
        return std::vector<float>(end - n_rows * width, end);
      };
      CHECK(last(a) == last(b));
    };
    same_end({shape, {{0, 400}}}, {shape, {{333, 400}}}, 67);
    same_end({shape, {{120, 400}}}, {shape, {{382, 400}}}, 18);
    for (const int end : {130, 258, 2050}) same_end({shape, {{end - 4, end}}}, {shape, {{end - 1, end}}}, 1);
  });
}

TEST_CASE("cuda attention: an FP8 cache") {
  if (!have_cuda()) return;
  CHECK_THROWS_WITH_AS(cuda(DType::f32, "fp8"), doctest::Contains("KV cache type fp8 asked for"), EngineError);
  std::unique_ptr<Backend> fp8;
  try {
    fp8 = cuda(DType::bf16, "fp8");
  } catch (const EngineError& error) {
    std::printf("cuda FP8 cache: skipped, %s\n", error.what());
    return;
  }
  REQUIRE(fp8->info().kv_dtype == DType::f8_e4m3);
  const std::unique_ptr<Backend> bf16 = cuda(DType::bf16);
  const std::vector<AttentionCase> cases = {
      {heads(32, 4, 128, 64), {{0, 1}, {127, 128}, {128, 129}, {600, 601}}},
      {heads(32, 4, 128, 64), {{0, 300}, {700, 704}, {250, 290}}},
      {heads(10, 2, 64, 64), {{0, 150}, {255, 260}, {2100, 2101}}},
  };
  for (AttentionCase c : cases) {
    CAPTURE(c.shape.head_dim);
    CAPTURE(c.spans[0].second);
    const std::vector<float> found = attend(*fp8, c, DType::f8_e4m3, true, 60);
    // Codes have three bits behind the point: 2^-4 of a value at most, 2.6% of it on the average, and as much in a score.
    CHECK(relative_error(found, attend(*reference(), c, DType::bf16, true, 60)) < 0.06);
    CHECK(attend(*fp8, c, DType::f8_e4m3, true, 60) == found);
    // What FP8 can hold comes out as from a BF16 cache.
    c.coarse = true;
    c.shape.rotary_dim = 0;
    CHECK(relative_error(attend(*fp8, c, DType::f8_e4m3, false, 61), attend(*bf16, c, DType::bf16, false, 61)) <
          Tolerance::kBf16Attention);
  }
  CHECK_THROWS_WITH_AS(attend(*fp8, {heads(2, 2, 32, 16), {{0, 3}}}, DType::f8_e4m3, true, 62),
                       doctest::Contains("an FP8 KV cache of heads of 32 dims"), EngineError);
}

TEST_CASE("cuda attention: prompts in FP8") {
  if (!have_cuda()) return;
  CHECK_THROWS_WITH_AS(cuda(DType::f32, "auto", "auto", "fp8"), doctest::Contains("prefill attention in fp8 asked for"),
                       EngineError);
  BackendOptions deterministic;
  deterministic.prefill_attention = "fp8";
  deterministic.deterministic = true;
  for (const DType kv_dtype : {DType::bf16, DType::f8_e4m3}) {
    const std::string cache = kv_dtype == DType::bf16 ? "auto" : "fp8";
    std::unique_ptr<Backend> made;
    try {
      made = cuda(DType::bf16, cache, "auto", "fp8");
    } catch (const EngineError& error) {
      std::printf("cuda FP8 prompts: skipped, %s\n", error.what());
      return;
    }
    Backend& fp8 = *made;
    REQUIRE(fp8.info().fp8_prefill);
    const std::unique_ptr<Backend> plain = cuda(DType::bf16, cache);
    CHECK_FALSE(plain->info().fp8_prefill);
    const std::vector<AttentionCase> cases = {
        {heads(32, 4, 128, 64), {{0, 300}, {700, 704}, {250, 290}, {128, 256}, {127, 144}}},
        {heads(10, 2, 128, 64), {{0, 17}, {77, 400}, {0, 129}}},
        {heads(3, 3, 128, 128), {{0, 150}, {120, 390}, {5, 6}}},
        {heads(32, 2, 128, 64), {{0, 40}, {4000, 4050}}},
    };
    for (const AttentionCase& c : cases) {
      CAPTURE(c.shape.n_heads);
      CAPTURE(c.spans[0].second);
      const std::vector<float> found = attend(fp8, c, kv_dtype, true, 70);
      // Queries, keys, values and weights have three bits each: 2.6% on the average, and a score's error is its weight's.
      CHECK(relative_error(found, attend(*reference(), c, DType::bf16, true, 70)) < 0.09);
      CHECK(attend(fp8, c, kv_dtype, true, 70) == found);
      // Sequences that decode are as ever, to the bit.
      const std::vector<float> as_ever = attend(*plain, c, kv_dtype, true, 70);
      const int width = c.shape.n_heads * c.shape.head_dim;
      int row = 0;
      for (const auto& [begin, end] : c.spans) {
        const auto rows = [&](const std::vector<float>& all) {
          return std::vector<float>(all.begin() + row * width, all.begin() + (row + end - begin) * width);
        };
        CHECK((rows(found) == rows(as_ever)) == (end - begin <= 16));
        row += end - begin;
      }
    }
    // How a prompt is cut changes no bit, nor whether its queries come in BF16, as in steps of 1,024 rows.
    const AttentionShape shape = heads(16, 2, 128, 64);
    const auto last_rows = [&](const std::vector<std::pair<int, int>>& spans, int n) {
      const std::vector<float> all = attend(fp8, {shape, spans}, kv_dtype, true, 9);
      const auto end = all.begin() + static_cast<int64_t>(all.size() / 2);
      return std::vector<float>(end - n * shape.n_heads * shape.head_dim, end);
    };
    CHECK(last_rows({{0, 400}}, 67) == last_rows({{333, 400}}, 67));
    CHECK(last_rows({{120, 400}}, 18) == last_rows({{382, 400}}, 18));
    CHECK(last_rows({{0, 1300}}, 40) == last_rows({{1260, 1300}}, 40));
    // Heads of other sizes keep to BF16.
    const AttentionCase narrow{heads(10, 2, 64, 64), {{0, 150}}};
    CHECK(attend(fp8, narrow, kv_dtype, true, 71) == attend(*plain, narrow, kv_dtype, true, 71));
  }
  CHECK_THROWS_WITH_AS(create_backend("cuda", deterministic), doctest::Contains("deterministic with prompts in FP8"),
                       EngineError);
}
