// Every op of the CUDA backend against the reference, over formats, shapes and edges, in both compute types. Without a device
// the cases print why and pass.
#include <algorithm>
#include <cstdio>
#include <functional>
#include <limits>
#include <map>
#include <numeric>
#include <thread>

#include "cpu_testing.h"

using namespace sigmoe;
using namespace sigmoe::testing;

namespace {

// Relative error of an op against the reference, by compute type. Float32: sums in another order. BF16: inputs of the
// products rounded to 2^-9, and again between the two products of an expert.
double bound(DType compute, double bf16) { return compute == DType::f32 ? Tolerance::kFloat32 : bf16; }

std::unique_ptr<Backend> cuda(DType compute, const std::string& kv_cache = "auto") {
  BackendOptions options;
  options.compute = compute;
  options.kv_cache = kv_cache;
  return create_backend("cuda", options);
}

bool have_cuda() {
  for (const DeviceReport& report : list_devices())
    if (report.device == "cuda") {
      static bool told = false;
      if (!report.available && !told) std::printf("cuda ops: skipped, %s\n", report.detail.c_str());
      told = true;
      return report.available;
    }
  return false;
}

const std::unique_ptr<Backend>& reference() {
  static const std::unique_ptr<Backend> backend = make_backend({"reference", DType::f32});
  return backend;
}

// A host array on a backend's device.
template <typename T>
class OnDevice {
 public:
  OnDevice(Backend& backend, const std::vector<T>& values)
      : backend_(backend), n_(values.size()), buffer_(backend.alloc(values.size() * sizeof(T), "test data")) {
    backend.upload(buffer_.data(), values.data(), values.size() * sizeof(T));
  }
  T* get() const { return buffer_.template as<T>(); }
  std::vector<T> read() const {
    std::vector<T> values(n_);
    backend_.download(values.data(), buffer_.data(), n_ * sizeof(T));
    return values;
  }

 private:
  Backend& backend_;
  size_t n_;
  DeviceBuffer buffer_;
};

constexpr float kPoison = -12345.0f;  // outputs start as this: an element nothing wrote shows

constexpr double kFp8Inner = 0.04;  // expert activations rounded to E4M3 between the two products: 2^-4 at most each

// fn(backend, compute) on the device in both compute types.
void on_cuda(const std::function<void(Backend&, DType)>& fn) {
  if (!have_cuda()) return;
  for (const DType compute : {DType::f32, DType::bf16}) {
    CAPTURE(dtype_name(compute));
    fn(*cuda(compute), compute);
  }
}

struct Format {
  const char* name;
  WeightFormat format;
  int64_t k;
  std::vector<int64_t> bounds;
  int64_t block_n;
};

std::vector<Format> formats(int64_t k) {
  using enum WeightFormat;
  std::vector<Format> out = {{"f32", f32, k, {}, 0},
                             {"bf16", bf16, k, {}, 0},
                             {"fp8 blocks", fp8, k, blocks_of(k, 128), 128},
                             {"fp8 per channel", fp8, k, blocks_of(k, k), 1},
                             {"fp8 per tensor", fp8, k, blocks_of(k, k), 0}};
  if (k > 60) out.push_back({"fp8 slice inside a block", fp8, k, blocks_of(k, 128, 45), 128});
  if (k % 2 == 0) {
    out.push_back({"int4 groups of 32", int4, k, blocks_of(k, 32), 1});
    out.push_back({"int4 groups of 64", int4, k, blocks_of(k, 64), 1});
    out.push_back({"int4 groups of 128", int4, k, blocks_of(k, 128), 1});
  }
  return out;
}

// Rows of x on the grid of E4M3 with a scale per row and 128 of k, as the many-row kernels of FP8 weights round them: they then
// compute what the reference does, and so do kernels that round to BF16, within its error.
std::vector<float> on_fp8_grid(std::vector<float> x, int64_t k) {
  std::vector<float> values;
  for (int code = 0; code < 0x7f; ++code) values.push_back(f8e4m3_to_f32(static_cast<uint8_t>(code)));
  for (size_t row = 0; row < x.size(); row += k)
    for (int64_t first = 0; first < k; first += 128) {
      const int64_t last = std::min(k, first + 128);
      float largest = 1e-10f;
      for (int64_t i = first; i < last; ++i) largest = std::max(largest, std::fabs(x[row + i]));
      const float scale = largest / 448.0f;
      for (int64_t i = first; i < last; ++i) {
        const float size = std::fabs(x[row + i]) / scale;
        const auto above = std::min(std::lower_bound(values.begin(), values.end(), size), values.end() - 1);
        const auto nearest = above != values.begin() && size - above[-1] < *above - size ? above - 1 : above;
        x[row + i] = std::copysign(*nearest * scale, x[row + i]);
      }
    }
  return x;
}

std::vector<float> linear(Backend& backend, const LinearWeight& weight, const std::vector<float>& x, int rows, int64_t n) {
  const OnDevice<float> in(backend, x), out(backend, std::vector<float>(rows * n, kPoison));
  backend.linear(in.get(), weight, rows, out.get());
  return out.read();
}

}  // namespace

TEST_CASE("cuda linear: every format and shape agrees with the reference, and no row minds its neighbours") {
  on_cuda([](Backend& backend, DType compute) {
    for (const auto& [n, k] :
         {std::pair<int64_t, int64_t>{1, 1}, {37, 51}, {100, 77}, {77, 131}, {256, 384}, {96, 1024}, {48, 2100}, {64, 4096}})
      for (const Format& f : formats(k)) {
        CAPTURE(f.name);
        CAPTURE(n);
        CAPTURE(k);
        const HostWeight host = random_weight(f.format, n, k, f.bounds, f.block_n, 7);
        const auto expected_weight = host.put(*reference());
        const auto weight = host.put(backend);
        // The classes of rows that have kernels of their own, each with the most rows of it that are tried.
        constexpr int kMost = 130;
        const std::vector<float> x = on_fp8_grid(gaussian(kMost * k, 3), k);
        const std::vector<float> expected = linear(*reference(), *expected_weight, x, kMost, n);
        for (const auto& [most, fewer] :
             {std::pair<int, std::vector<int>>{23, {1, 2, 3, 8, 9, 16, 17}}, {kMost, {24, 33, 48, 64, 90}}}) {
          const std::vector<float> some(x.begin(), x.begin() + most * k);
          const std::vector<float> together = linear(backend, *weight, some, most, n);
          CHECK(relative_error(together, {expected.begin(), expected.begin() + most * n}) <
                bound(compute, Tolerance::kBf16Linear * (k < 8 ? 2 : 1)));
          for (const int rows : fewer)
            for (const int first : {0, most - rows}) {
              CAPTURE(rows);
              const std::vector<float> part(x.begin() + first * k, x.begin() + (first + rows) * k);
              CHECK(linear(backend, *weight, part, rows, n) ==
                    std::vector<float>(together.begin() + first * n, together.begin() + (first + rows) * n));
            }
        }
        backend.linear(nullptr, *weight, 0, nullptr);
      }
  });
}

TEST_CASE("cuda linear: whole weights in shared memory ahead of the rows, with the bits of the kernel that streams them") {
  on_cuda([](Backend& backend, DType compute) {
    constexpr int kMost = 9, k = 4096;
    for (const int n : {1, 16, 1000, 5120, 6500}) {
      CAPTURE(n);
      const HostWeight host = random_weight(WeightFormat::fp8, n, k, blocks_of(k, 128), 128, 11);
      const auto weight = host.put(backend);
      const std::vector<float> x = gaussian(kMost * k, 3), together = linear(backend, *weight, x, kMost, n);
      if (n <= 1000)
        CHECK(relative_error(together, linear(*reference(), *host.put(*reference()), x, kMost, n)) <
              bound(compute, Tolerance::kBf16Linear));
      for (int rows = 1; rows <= 5; ++rows)
        for (const int first : {0, kMost - rows}) {
          CAPTURE(rows);
          CHECK(linear(backend, *weight, {x.begin() + first * k, x.begin() + (first + rows) * k}, rows, n) ==
                std::vector<float>(together.begin() + first * n, together.begin() + (first + rows) * n));
        }
    }
  });
}

TEST_CASE("cuda linear: hundreds of rows and thousands, k divided among blocks or not") {
  on_cuda([](Backend& backend, DType) {
    for (const WeightFormat format : {WeightFormat::fp8, WeightFormat::bf16}) {
      CAPTURE(weight_format_name(format));
      constexpr int kMost = 1100, k = 1280, n = 400;
      const auto weight =
          random_weight(format, n, k, format == WeightFormat::fp8 ? blocks_of(k, 128) : std::vector<int64_t>{}, 128, 7)
              .put(backend);
      const std::vector<float> x = gaussian(kMost * k, 3), together = linear(backend, *weight, x, kMost, n);
      const auto first_rows = [&](int rows) { return linear(backend, *weight, {x.begin(), x.begin() + rows * k}, rows, n); };
      const std::vector<float> thousand = first_rows(1024), hundreds = first_rows(1023), hundred = first_rows(100);
      CHECK(std::equal(thousand.begin(), thousand.end(), together.begin()));
      CHECK(std::equal(hundred.begin(), hundred.end(), hundreds.begin()));
      CHECK(relative_error(hundreds, {together.begin(), together.begin() + 1023 * n}) < Tolerance::kFloat32);
    }
  });
}

TEST_CASE("cuda linear: products are exact where activations are BF16 already") {
  on_cuda([](Backend& backend, DType) {
    for (const int64_t k : {64, 384, 1100})
      for (const Format& f : formats(k)) {
        // Expanded weights are rounded to BF16 themselves, and so are F32 ones.
        if (f.format == WeightFormat::f32 || std::string(f.name) == "fp8 slice inside a block" ||
            std::string(f.name) == "int4 groups of 32")
          continue;
        CAPTURE(f.name);
        CAPTURE(k);
        const HostWeight host = random_weight(f.format, 80, k, f.bounds, f.block_n, 8);
        for (const float size : {1.0f, 1e-4f, 1e4f}) {
          CAPTURE(size);
          std::vector<float> x = gaussian(9 * k, 3);
          for (float& value : x) value = bf16_to_f32(f32_to_bf16(size * value));
          CHECK(relative_error(linear(backend, *host.put(backend), x, 9, 80),
                               linear(*reference(), *host.put(*reference()), x, 9, 80)) < Tolerance::kFloat32);
        }
      }
  });
}

TEST_CASE("cuda weights: put by several threads, in pieces, from strided rows; NaN and infinity refused; memory counted") {
  on_cuda([](Backend& backend, DType) {
    const HostWeight host = random_weight(WeightFormat::fp8, 100, 256, blocks_of(256, 128), 128, 5);
    const std::vector<float> x = gaussian(3 * 256, 6), whole = linear(backend, *host.put(backend), x, 3, 100);
    CHECK(linear(backend, *host.put(backend, 7), x, 3, 100) == whole);
    const auto builder = backend.begin_linear(host.desc);
    std::vector<std::thread> threads;
    for (int part = 0; part < 4; ++part)
      threads.emplace_back([&, part] {
        for (int64_t row = part * 25; row < part * 25 + 25; row += 5) {
          builder->put_rows(row, 5, host.rows.data() + row * host.stride(), host.stride());
          builder->put_scales(row, 5, host.scales.data() + row * host.n_blocks());
        }
      });
    for (std::thread& thread : threads) thread.join();
    CHECK(linear(backend, *builder->finish(), x, 3, 100) == whole);

    for (const WeightFormat format : {WeightFormat::f32, WeightFormat::bf16, WeightFormat::fp8}) {
      HostWeight bad =
          random_weight(format, 20, 50, format == WeightFormat::fp8 ? blocks_of(50, 50) : std::vector<int64_t>{}, 0, 5);
      const size_t at = bad.stride() * 13 + bad.stride() / 50 * 49;  // the last element of row 13
      if (format == WeightFormat::f32) reinterpret_cast<float*>(&bad.rows[at])[0] = std::numeric_limits<float>::infinity();
      if (format == WeightFormat::bf16) reinterpret_cast<uint16_t*>(&bad.rows[at])[0] = 0x7fc0;
      if (format == WeightFormat::fp8) bad.rows[at] = std::byte{0xff};
      CHECK_THROWS_WITH_AS(bad.put(backend), "random holds a NaN or an infinity in row 13", EngineError);
    }
    CHECK(random_weight(WeightFormat::fp8, 256, 512, blocks_of(512, 128), 128, 5).put(backend)->bytes() ==
          256 * 512 + 2 * 4 * sizeof(float));
    CHECK(random_weight(WeightFormat::int4, 64, 256, blocks_of(256, 128), 1, 5).put(backend)->bytes() ==
          64 * 128 + 64 * 2 * sizeof(float));
  });
}

TEST_CASE("cuda memory: an impossible allocation says what was asked and is free, and harms nothing") {
  on_cuda([](Backend& backend, DType) {
    try {
      backend.alloc(size_t{1} << 50, "the test");
      CHECK(false);
    } catch (const EngineError& error) {
      CHECK(error.code() == ErrorCode::out_of_memory);
      CHECK(std::string(error.what()).find("the test: 1073741824 MiB of GPU memory asked for, ") == 0);
      CHECK(!error.hint().empty());
    }
    const OnDevice<float> works(backend, {1.0f, 2.0f});
    CHECK(works.read() == std::vector<float>{1.0f, 2.0f});
  });
}

TEST_CASE("cuda embed, reduce_add_rms_norm, join_norms") {
  on_cuda([](Backend& backend, DType) {
    Backend& ref = *reference();
    for (const int width : {1, 50, 64, 4096, 20000}) {
      CAPTURE(width);
      const int n_tokens = 3, vocab = 11;
      const std::vector<float> table = gaussian(vocab * width, 1);
      const std::vector<int32_t> ids = {10, 0, 10};
      std::vector<uint16_t> bf16(table.size());
      std::transform(table.begin(), table.end(), bf16.begin(), f32_to_bf16);
      const OnDevice<float> device_table(backend, table), out(backend, std::vector<float>(n_tokens * width, kPoison));
      const OnDevice<uint16_t> device_bf16(backend, bf16);
      const OnDevice<int32_t> device_ids(backend, ids);
      std::vector<float> expected(n_tokens * width);
      ref.embed(Tensor(const_cast<float*>(table.data()), DType::f32, {vocab, width}), ids.data(), n_tokens, expected.data());
      backend.embed(Tensor(device_table.get(), DType::f32, {vocab, width}), device_ids.get(), n_tokens, out.get());
      CHECK(out.read() == expected);
      ref.embed(Tensor(bf16.data(), DType::bf16, {vocab, width}), ids.data(), n_tokens, expected.data());
      backend.embed(Tensor(device_bf16.get(), DType::bf16, {vocab, width}), device_ids.get(), n_tokens, out.get());
      CHECK(out.read() == expected);

      const std::vector<float> weight = gaussian(width, 2), hidden = gaussian(n_tokens * width, 3);
      const OnDevice<float> device_weight(backend, weight), device_hidden(backend, hidden);
      for (const int n_slots : {0, 1, 2, 3, 9}) {
        CAPTURE(n_slots);
        std::vector<float> addend = gaussian(n_tokens * std::max(n_slots, 1) * width, 4), residual = hidden,
                           normed(n_tokens * width);
        const OnDevice<float> device_addend(backend, addend), device_residual(backend, residual), device_out(backend, normed);
        ref.reduce_add_rms_norm(residual.data(), n_slots ? addend.data() : nullptr, n_slots, nullptr, weight.data(), 1e-6f,
                                n_tokens, width, normed.data());
        backend.reduce_add_rms_norm(device_residual.get(), n_slots ? device_addend.get() : nullptr, n_slots, nullptr,
                                    device_weight.get(), 1e-6f, n_tokens, width, device_out.get());
        CHECK(device_residual.read() == residual);  // the same sums in the same order
        CHECK(relative_error(device_out.read(), normed) < 1e-6 * 20);
      }
      std::vector<float> joined(2 * n_tokens * width);
      const OnDevice<float> device_joined(backend, std::vector<float>(joined.size(), kPoison));
      ref.join_norms(expected.data(), weight.data(), hidden.data(), weight.data(), 1e-6f, n_tokens, width, joined.data());
      backend.join_norms(out.get(), device_weight.get(), device_hidden.get(), device_weight.get(), 1e-6f, n_tokens, width,
                         device_joined.get());
      CHECK(relative_error(device_joined.read(), joined) < 2e-5);
    }
  });
}

namespace {

struct AttentionCase {
  AttentionShape shape;
  std::vector<std::pair<int, int>> spans;  // per sequence: positions [first, second) of this step
  bool coarse = false;                     // every value an eighth of a whole number up to 15: exact in FP8
};

// Fills a cache by storing every position below each span's end, then attends from the span's rows.
std::vector<float> attend(Backend& backend, const AttentionCase& c, DType kv_dtype, bool norms, uint64_t seed) {
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
    backend.attention(batch, shape, query.get(), kv, out.get());
    result = out.read();
    const std::vector<float> q = query.read();
    result.insert(result.end(), q.begin(), q.end());
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

namespace {

struct Routed {
  std::vector<float> logits, weights;
  std::vector<int32_t> ids, offsets, order;
};

Routed route(Backend& backend, const LinearWeight& gate, const std::vector<float>& x, const std::vector<float>& bias,
             const RouterShape& shape, int n_tokens, const int32_t* forced) {
  const size_t n_slots = static_cast<size_t>(n_tokens) * shape.n_active;
  const OnDevice<float> in(backend, x), device_bias(backend, bias),
      logits(backend, std::vector<float>(static_cast<size_t>(n_tokens) * shape.n_experts, kPoison)),
      weights(backend, std::vector<float>(n_slots, kPoison));
  const OnDevice<int32_t> ids(backend, std::vector<int32_t>(n_slots, -7)),
      offsets(backend, std::vector<int32_t>(shape.n_experts + 1, -7)), order(backend, std::vector<int32_t>(n_slots, -7));
  backend.route(in.get(), gate, device_bias.get(), shape, n_tokens, forced, logits.get(),
                {ids.get(), weights.get(), offsets.get(), order.get()});
  return {logits.read(), weights.read(), ids.read(), offsets.read(), order.read()};
}

RouterShape router(int n_experts, int n_active, int n_groups, int n_kept, bool normalise, float scaling) {
  RouterShape shape;
  shape.n_experts = n_experts, shape.n_active = n_active, shape.n_groups = n_groups, shape.n_groups_kept = n_kept;
  shape.normalise = normalise, shape.scaling = scaling;
  return shape;
}

}  // namespace

TEST_CASE("cuda route: choices, weights and lists equal the reference's, ties and forced choices included") {
  on_cuda([](Backend& backend, DType) {
    for (const RouterShape& shape :
         {router(256, 8, 8, 4, true, 2.5f), router(16, 4, 4, 2, true, 1.0f), router(16, 4, 1, 1, false, 1.0f),
          router(24, 3, 3, 2, true, 2.0f), router(60, 6, 6, 3, true, 1.0f), router(1, 1, 1, 1, true, 1.0f),
          router(512, 22, 16, 8, true, 2.0f), router(8, 2, 8, 4, true, 1.0f)})
      for (const int n_tokens : {1, 2, 7, 40, 128, 200})
        for (const bool ties : {false, true})
          for (const WeightFormat format : {WeightFormat::bf16, WeightFormat::f32}) {
            CAPTURE(shape.n_experts);
            CAPTURE(n_tokens);
            CAPTURE(ties);
            const int64_t width = shape.n_experts == 256 && n_tokens == 40 ? 4096 : 200;
            const HostWeight host = random_weight(format, shape.n_experts, width, {}, 0, 3);
            const auto weight = host.put(backend), expected_weight = host.put(*reference());
            std::vector<float> x = gaussian(n_tokens * width, 4), bias = gaussian(shape.n_experts, 5, 0.1f);
            if (ties) std::fill(x.begin(), x.end(), 0.0f), std::fill(bias.begin(), bias.end(), 0.25f);
            const Routed expected = route(*reference(), *expected_weight, x, bias, shape, n_tokens, nullptr);
            const Routed got = route(backend, *weight, x, bias, shape, n_tokens, nullptr);
            CHECK(got.ids == expected.ids);
            CHECK(got.offsets == expected.offsets);
            CHECK(got.order == expected.order);
            CHECK(relative_error(got.logits, expected.logits) < Tolerance::kFloat32);
            CHECK(relative_error(got.weights, expected.weights) < Tolerance::kFloat32);
            std::vector<int32_t> forced(expected.ids.size());
            for (size_t i = 0; i < forced.size(); ++i)
              forced[i] = static_cast<int32_t>((i % shape.n_active + i / shape.n_active * 3) % shape.n_experts);
            const Routed expected_forced = route(*reference(), *expected_weight, x, bias, shape, n_tokens, forced.data());
            const Routed got_forced = route(backend, *weight, x, bias, shape, n_tokens, forced.data());
            CHECK(got_forced.ids == forced);
            CHECK(got_forced.order == expected_forced.order);
            CHECK(relative_error(got_forced.weights, expected_forced.weights) < Tolerance::kFloat32);
          }
  });
}

namespace {

struct ExpertCase {
  const char* name;
  int width, inner, shared_inner, n_experts, n_active;
  WeightFormat format, shared_format;
  bool some_missing;
};

struct ExpertSet {
  std::vector<std::unique_ptr<LinearWeight>> owned;
  ExpertWeights weights;
};

ExpertSet make_experts(Backend& backend, const ExpertCase& c) {
  ExpertSet set;
  const auto make = [&](WeightFormat format, int64_t n, int64_t k, bool gate_up, uint64_t seed) -> const LinearWeight* {
    const bool scaled = format == WeightFormat::fp8 || format == WeightFormat::int4;
    const HostWeight host = random_weight(format, n, k, scaled ? blocks_of(k, 128) : std::vector<int64_t>{},
                                          format == WeightFormat::int4 ? 1 : 128, seed, gate_up);
    return set.owned.emplace_back(host.put(backend)).get();
  };
  for (int e = 0; e < c.n_experts; ++e) {
    const bool missing = c.some_missing && e % 3 == 1;
    set.weights.gate_up.push_back(missing ? nullptr : make(c.format, 2 * c.inner, c.width, true, 100 + e));
    set.weights.down.push_back(missing ? nullptr : make(c.format, c.width, c.inner, false, 500 + e));
  }
  if (c.shared_inner > 0) {
    set.weights.shared_gate_up = make(c.shared_format, 2 * c.shared_inner, c.width, true, 91);
    set.weights.shared_down = make(c.shared_format, c.width, c.shared_inner, false, 92);
  }
  return set;
}

}  // namespace

TEST_CASE("cuda experts: formats, shared experts, empty and crowded lists, missing shares") {
  on_cuda([](Backend& backend, DType compute) {
    using enum WeightFormat;
    for (const ExpertCase& c :
         {ExpertCase{"fp8", 256, 128, 128, 16, 4, fp8, fp8, false},
          ExpertCase{"fp8 real width", 1024, 512, 512, 8, 2, fp8, fp8, false},
          ExpertCase{"fp8 four slices of k", 4096, 512, 0, 2, 1, fp8, fp8, false},
          ExpertCase{"bf16 four slices of k", 4096, 256, 0, 2, 1, bf16, bf16, false},
          ExpertCase{"fp8 missing shares", 512, 512, 512, 6, 2, fp8, fp8, true},
          ExpertCase{"fp8 ragged", 192, 160, 160, 8, 3, fp8, fp8, false},
          ExpertCase{"bf16", 64, 32, 64, 16, 4, bf16, bf16, false}, ExpertCase{"f32", 50, 20, 20, 4, 2, f32, f32, false},
          ExpertCase{"int4", 256, 128, 128, 6, 2, int4, int4, false},
          ExpertCase{"bf16 shared", 256, 128, 256, 6, 2, fp8, bf16, false},
          ExpertCase{"no shared", 64, 32, 0, 6, 2, bf16, bf16, false},
          ExpertCase{"missing shares", 64, 32, 32, 6, 2, bf16, bf16, true},
          ExpertCase{"dense only", 128, 0, 384, 0, 0, fp8, fp8, false},
          ExpertCase{"nothing", 64, 0, 0, 0, 0, fp8, fp8, false}}) {
      const ExpertSet on_device = make_experts(backend, c), on_host = make_experts(*reference(), c);
      const int n_slots = c.n_active + (c.n_active == 0 || c.shared_inner > 0 ? 1 : 0);
      std::vector<float> together;  // of the last class of rows met; the classes are those of few and of many
      for (const int n_tokens : {40, 1, 2, 3, 8, 17, 150, 48, 64, 77})
        for (const bool crowded : {false, true}) {
          CAPTURE(c.name);
          CAPTURE(n_tokens);
          CAPTURE(crowded);
          const std::vector<float> x = on_fp8_grid(gaussian(n_tokens * c.width, 21), c.width);
          std::vector<int32_t> ids, offsets(c.n_experts + 1), order;
          std::vector<float> weights = gaussian(n_tokens * c.n_active, 22);
          for (int t = 0; t < n_tokens; ++t)
            for (int a = 0; a < c.n_active; ++a) ids.push_back(crowded ? a : (t * 5 + a * 3 + t / 7) % c.n_experts);
          for (int t = 0; t < n_tokens; ++t)  // distinct within a token
            for (int a = 1; a < c.n_active; ++a)
              while (std::find(&ids[t * c.n_active], &ids[t * c.n_active + a], ids[t * c.n_active + a]) !=
                     &ids[t * c.n_active + a])
                ids[t * c.n_active + a] = (ids[t * c.n_active + a] + 1) % c.n_experts;
          for (int e = 0; e < c.n_experts; ++e) {
            for (size_t i = 0; i < ids.size(); ++i)
              if (ids[i] == e) order.push_back(static_cast<int32_t>(i));
            offsets[e + 1] = static_cast<int32_t>(order.size());
          }
          std::vector<float> expected(static_cast<size_t>(n_tokens) * n_slots * c.width);
          reference()->experts(x.data(), on_host.weights, {ids.data(), weights.data(), offsets.data(), order.data()},
                               c.n_active, n_tokens, c.width, expected.data());
          const OnDevice<float> in(backend, x), device_weights(backend, weights),
              out(backend, std::vector<float>(expected.size(), kPoison));
          const OnDevice<int32_t> device_ids(backend, ids), device_offsets(backend, offsets), device_order(backend, order);
          backend.experts(in.get(), on_device.weights,
                          {device_ids.get(), device_weights.get(), device_offsets.get(), device_order.get()}, c.n_active,
                          n_tokens, c.width, out.get());
          const std::vector<float> got = out.read();
          const bool fp8_inner = n_tokens >= 48 && (c.format == fp8 || c.shared_format == fp8);
          CHECK(relative_error(got, expected) < bound(compute, fp8_inner ? kFp8Inner : Tolerance::kBf16Experts));
          if (n_tokens == 40 || n_tokens == 150)
            together = got;
          else if (crowded)  // the same tokens and choices among forty: the same bits
            CHECK(std::equal(got.begin(), got.end(), together.begin()));
        }
    }
  });
}

TEST_CASE("cuda head: rows picked on the device") {
  on_cuda([](Backend& backend, DType compute) {
    for (const int n : {333, 65600}) {  // few and many enough tiles for either kernel
      CAPTURE(n);
      const HostWeight host = random_weight(WeightFormat::bf16, n, 256, {}, 0, 4);
      const auto weight = host.put(backend), expected_weight = host.put(*reference());
      const std::vector<float> x = gaussian(10 * 256, 5);
      for (const std::vector<int32_t>& rows : {std::vector<int32_t>{7}, {9, 0}, {3, 3, 9, 1, 0}}) {
        const int n_rows = static_cast<int>(rows.size());
        std::vector<float> expected(rows.size() * n);
        reference()->head_logits(x.data(), rows.data(), n_rows, *expected_weight, nullptr, {n}, expected.data());
        const OnDevice<float> in(backend, x), out(backend, std::vector<float>(expected.size(), kPoison));
        const OnDevice<int32_t> device_rows(backend, rows);
        backend.head_logits(in.get(), device_rows.get(), n_rows, *weight, nullptr, {n}, out.get());
        CHECK(relative_error(out.read(), expected) < bound(compute, Tolerance::kBf16Linear));
      }
    }
  });
}

TEST_CASE("cuda norm: products of its output are those of the same rows elsewhere, until the rows change") {
  on_cuda([](Backend& backend, DType) {
    const int n_tokens = 5, width = 256, n = 96;
    const HostWeight host = random_weight(WeightFormat::fp8, n, width, blocks_of(width, 128), 128, 4);
    const auto weight = host.put(backend);
    const OnDevice<float> residual(backend, gaussian(n_tokens * width, 1)), norm(backend, gaussian(width, 2)),
        normed(backend, std::vector<float>(n_tokens * width, kPoison)), copy(backend, std::vector<float>(n_tokens * width)),
        out(backend, std::vector<float>(n_tokens * n, kPoison));
    const OnDevice<int32_t> rows(backend, {4, 1, 1});
    const auto products = [&](const float* x) {
      backend.linear(x, *weight, n_tokens, out.get());
      std::vector<float> all = out.read();
      backend.head_logits(x, rows.get(), 3, *weight, nullptr, {n}, out.get());
      const std::vector<float> picked = out.read();
      all.insert(all.end(), picked.begin(), picked.begin() + 3 * n);
      return all;
    };
    const auto same_elsewhere = [&](const char* what) {
      CAPTURE(what);
      const std::vector<float> from_normed = products(normed.get()), values = normed.read();
      backend.upload(copy.get(), values.data(), values.size() * sizeof(float));
      CHECK(from_normed == products(copy.get()));
    };
    backend.reduce_add_rms_norm(residual.get(), nullptr, 0, nullptr, norm.get(), 1e-6f, n_tokens, width, normed.get());
    same_elsewhere("after the norm");
    const std::vector<float> other = gaussian(width, 9);
    backend.upload(normed.get() + width, other.data(), width * sizeof(float));
    same_elsewhere("after an upload into one row");
    backend.reduce_add_rms_norm(residual.get(), nullptr, 0, nullptr, norm.get(), 1e-6f, n_tokens, width, normed.get());
    backend.copy_rows(residual.get(), nullptr, width, normed.get(), nullptr, width, 1, width);
    same_elsewhere("after a copy of one row");
    backend.reduce_add_rms_norm(residual.get(), nullptr, 0, nullptr, norm.get(), 1e-6f, n_tokens, width, normed.get());
    backend.zero(normed.get(), width * sizeof(float));
    same_elsewhere("after a fill with zeros");
  });
}

namespace {

struct Sampled {
  std::vector<int32_t> tokens, top_ids;
  std::vector<float> logprobs, top_logprobs;
  std::vector<uint32_t> counts;
};

Sampled sample(Backend& backend, const std::vector<float>& logits, int vocab, const std::vector<SampleRow>& rows,
               const std::vector<int32_t>& bias_ids, const std::vector<float>& bias_values, const std::vector<int32_t>& ban_ids,
               const std::vector<uint32_t>& masks, const std::vector<int32_t>& prompt, const std::vector<int32_t>& generated) {
  const int n_rows = static_cast<int>(rows.size());
  const OnDevice<float> device_logits(backend, logits), device_bias(backend, bias_values),
      logprobs(backend, std::vector<float>(n_rows, kPoison)),
      top_logprobs(backend, std::vector<float>(n_rows * kMaxLogprobs, kPoison));
  const OnDevice<SampleRow> device_rows(backend, rows);
  const OnDevice<int32_t> device_bias_ids(backend, bias_ids), device_bans(backend, ban_ids),
      tokens(backend, std::vector<int32_t>(n_rows, -5)), top_ids(backend, std::vector<int32_t>(n_rows * kMaxLogprobs, -5));
  const OnDevice<uint32_t> device_masks(backend, masks),
      counts(backend, std::vector<uint32_t>(static_cast<size_t>(n_rows) * vocab, 99));
  for (int r = 0; r < n_rows; ++r)
    backend.reset_counts(counts.get() + static_cast<size_t>(r) * vocab, vocab, prompt.data(), static_cast<int>(prompt.size()),
                         generated.data(), static_cast<int>(generated.size()));
  SampleArgs args;
  args.logits = device_logits.get();
  args.n_rows = n_rows;
  args.vocab_size = vocab;
  args.rows = device_rows.get();
  args.bias_ids = device_bias_ids.get();
  args.bias_values = device_bias.get();
  args.ban_ids = device_bans.get();
  args.masks = device_masks.get();
  args.counts = counts.get();
  args.tokens = tokens.get();
  args.logprobs = logprobs.get();
  args.top_ids = top_ids.get();
  args.top_logprobs = top_logprobs.get();
  backend.sample(args);
  return {tokens.read(), top_ids.read(), logprobs.read(), top_logprobs.read(), counts.read()};
}

}  // namespace

TEST_CASE("cuda sample: the very tokens of the reference, over every option, spread, tie and non-finite logit") {
  if (!have_cuda()) return;
  const auto backend = cuda(DType::bf16);
  std::mt19937_64 random(77);
  const auto uniform = [&] { return std::uniform_real_distribution<float>(0.0f, 1.0f)(random); };
  for (const int vocab : {1, 2, 320, 6144, 157184})
    for (int round = 0; round < (vocab > 10000 ? 4 : 12); ++round) {
      CAPTURE(vocab);
      CAPTURE(round);
      constexpr int kRows = 8;
      std::vector<float> logits = gaussian(static_cast<size_t>(kRows) * vocab, 900 + round,
                                           round % 4 == 0   ? 0.1f
                                           : round % 4 == 1 ? 8.0f
                                                            : 2.5f);
      if (round % 3 == 1)  // many ties
        for (float& value : logits) value = std::round(value);
      for (int i = 0; i < vocab / 50 && round % 4 == 2; ++i) {
        logits[random() % logits.size()] = std::numeric_limits<float>::quiet_NaN();
        logits[random() % logits.size()] = -std::numeric_limits<float>::infinity();
      }
      if (round == 3) std::fill(logits.begin(), logits.begin() + vocab, -std::numeric_limits<float>::infinity());
      std::vector<int32_t> bias_ids, ban_ids, prompt, generated;
      std::vector<float> bias_values;
      std::vector<uint32_t> masks(3 * mask_words(vocab));
      for (uint32_t& word : masks) word = random() % 2 ? 0u : static_cast<uint32_t>(random());
      for (int i = 0; i < 6; ++i) {
        bias_ids.push_back(random() % vocab), bias_values.push_back(10 * uniform() - 5);
        if (vocab > 6) ban_ids.push_back(random() % vocab);
        prompt.push_back(random() % vocab), generated.push_back(random() % vocab), generated.push_back(generated[0]);
      }
      std::vector<SampleRow> rows(kRows);
      for (int r = 0; r < kRows; ++r) {
        SampleRow& row = rows[r];
        row.slot = r;
        row.position = static_cast<int32_t>(random() % 1000);
        row.seed = random();
        row.temperature = r == 0 ? 0.0f : 0.2f + 1.5f * uniform();
        row.top_p = r % 2 ? uniform() : 1.0f;
        row.min_p = r % 3 == 2 ? 0.2f * uniform() : 0.0f;
        row.top_k = r % 4 == 3 ? static_cast<int32_t>(random() % 60) + 1 : 0;
        if (r > 2)
          row.repetition_penalty = 0.5f + uniform(), row.presence_penalty = uniform(), row.frequency_penalty = uniform() - 0.5f;
        row.n_logprobs = r % 2 ? static_cast<int32_t>(random() % (kMaxLogprobs + 1)) : -1;
        if (r > 3) row.bias_end = static_cast<int32_t>(bias_ids.size());
        if (r > 4) row.ban_end = static_cast<int32_t>(ban_ids.size());
        if (r % 3 == 0 && round % 2) row.mask_row = r / 3;
        if (r == 5 && round % 3 == 0) row.forced_token = static_cast<int32_t>(random() % vocab);
        if (r == 1) row.slot = -1;
      }
      const Sampled expected =
          sample(*reference(), logits, vocab, rows, bias_ids, bias_values, ban_ids, masks, prompt, generated);
      const Sampled got = sample(*backend, logits, vocab, rows, bias_ids, bias_values, ban_ids, masks, prompt, generated);
      CHECK(got.tokens == expected.tokens);
      CHECK(got.top_ids == expected.top_ids);
      CHECK(got.counts == expected.counts);
      for (size_t i = 0; i < expected.logprobs.size(); ++i)
        CHECK(got.logprobs[i] == doctest::Approx(expected.logprobs[i]).epsilon(1e-5));
      for (size_t i = 0; i < expected.top_logprobs.size(); ++i)
        CHECK(got.top_logprobs[i] == doctest::Approx(expected.top_logprobs[i]).epsilon(1e-5));
    }
}

TEST_CASE("cuda recorded steps: replays compute what plain calls do, through changes of scratch memory") {
  if (!have_cuda()) return;
  const auto backend = cuda(DType::bf16);
  const HostWeight host = random_weight(WeightFormat::fp8, 128, 512, blocks_of(512, 128), 128, 4);
  const auto weight = host.put(*backend);
  const std::vector<float> x = gaussian(100 * 512, 5);
  const OnDevice<float> in(*backend, x), out(*backend, std::vector<float>(100 * 128, kPoison));
  std::map<int, std::vector<float>> expected;  // by rows: few and many have kernels of their own
  for (const int rows : {3, 50, 100})
    expected[rows] = linear(*backend, *weight, {x.begin(), x.begin() + rows * 512}, rows, 128);
  for (int round = 0; round < 6; ++round)
    for (const int rows : {3, 50, 100}) {
      CAPTURE(round);
      CAPTURE(rows);
      backend->zero(out.get(), 100 * 128 * sizeof(float));
      backend->run_recorded(rows, [&] { backend->linear(in.get(), *weight, rows, out.get()); });
      const std::vector<float> got = out.read();
      CHECK(std::equal(got.begin(), got.begin() + rows * 128, expected[rows].begin()));
      if (round == 3)
        linear(*backend, *weight, gaussian(200 * 512, 5), 200, 128);  // grows scratch: recordings must be forgotten
    }
}
