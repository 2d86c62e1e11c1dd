// What ops of long steps hand to the next op of a layer in BF16 on CUDA: nobody sees but that it is rounded, whoever reads it,
// from wherever. Without a device the cases print why and pass.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "cuda/kernel_choice.h"
#include "cuda_testing.h"

using namespace sigmoe;
using namespace sigmoe::testing;

namespace {

constexpr int kRows = 1100, kHidden = 512, kHeads = 8, kHeadDim = 128, kQkv = (kHeads + 2) * kHeadDim,
              kQuery = kHeads * kHeadDim;

std::vector<int64_t> scale_blocks(WeightFormat format, int64_t k) {
  return format == WeightFormat::fp8 ? blocks_of(k, 128) : std::vector<int64_t>{};
}

// The attention half of a layer, for one prompt. apart: every op gets what came before as floats that the host has seen.
class AttentionHalf {
 public:
  AttentionHalf(Backend& backend, WeightFormat format, int n_rows = kRows)
      : backend_(backend),
        n_rows_(n_rows),
        qkv_weight_(random_weight(format, kQkv, kHidden, scale_blocks(format, kHidden), 128, 3).put(backend)),
        out_weight_(random_weight(format, kHidden, kQuery, scale_blocks(format, kQuery), 128, 4).put(backend)) {
    shape_.n_heads = kHeads, shape_.n_kv_heads = 1, shape_.head_dim = kHeadDim, shape_.rotary_dim = kHeadDim / 2;
  }

  struct Result {
    std::vector<float> qkv, query, attended, product, residual, normed;
    bool operator==(const Result&) const = default;
  };
  // last: rows of `attended` that are computed once more, from queries in the middle of the buffer.
  Result run(const std::vector<float>& x, bool apart, int last = 0) {
    const OnDevice<float> rows(backend_, x),
        qkv = poison(kQkv), query = poison(kQuery), attended = poison(kQuery), product = poison(kHidden),
        normed = poison(kHidden), residual(backend_, gaussian(n_rows_ * kHidden, 8)),
        cos(backend_, gaussian(n_rows_ * shape_.rotary_dim / 2, 11)),
        sin(backend_, gaussian(n_rows_ * shape_.rotary_dim / 2, 12)), norm(backend_, gaussian(kHidden, 13)),
        head_norm(backend_, gaussian(kHeadDim, 14));
    const int n_pages = (n_rows_ + kPageTokens - 1) / kPageTokens;
    std::vector<int32_t> numbers(std::max(n_rows_, n_pages));
    std::iota(numbers.begin(), numbers.end(), 0);
    const OnDevice<int32_t> pages(backend_, numbers), positions(backend_, numbers);
    const size_t cache = static_cast<size_t>(n_pages) * kPageTokens * kHeadDim;
    KvView kv;
    kv.dtype = backend_.info().kv_dtype;
    const DeviceBuffer k = backend_.alloc(cache * dtype_bytes(kv.dtype), "k"),
                       v = backend_.alloc(cache * dtype_bytes(kv.dtype), "v");
    kv.k = k.data(), kv.v = v.data();
    const auto see = [&](const OnDevice<float>& buffer) {
      if (!apart) return;
      const std::vector<float> values = buffer.read();
      backend_.upload(buffer.get(), values.data(), values.size() * sizeof(float));
    };
    const auto batch_of = [&](int n, const OnDevice<int32_t>& offsets) {
      BatchView batch;
      batch.n_tokens = n, batch.n_seqs = 1, batch.max_pages = n_pages;
      batch.positions = positions.get() + n_rows_ - n;
      batch.seq_offsets = offsets.get();
      batch.page_tables = pages.get();
      return batch;
    };
    const OnDevice<int32_t> offsets(backend_, std::vector<int32_t>{0, n_rows_}), last_offsets(backend_, {0, last});
    const BatchView batch = batch_of(n_rows_, offsets);
    backend_.linear(rows.get(), *qkv_weight_, n_rows_, qkv.get());
    see(qkv);
    backend_.qk_norm_rope_store(batch, shape_, qkv.get(), head_norm.get(), head_norm.get(), 1e-6f, cos.get(), sin.get(), kv,
                                query.get());
    see(query);
    backend_.attention(batch, shape_, query.get(), kv, attended.get());
    if (last > 0) {
      const size_t first = static_cast<size_t>(n_rows_ - last) * kQuery;
      backend_.zero(attended.get() + first, last * kQuery * sizeof(float));
      backend_.attention(batch_of(last, last_offsets), shape_, query.get() + first, kv, attended.get() + first);
    }
    backend_.linear(attended.get(), *out_weight_, n_rows_, product.get());
    see(product);
    backend_.reduce_add_rms_norm(residual.get(), product.get(), 1, nullptr, norm.get(), 1e-6f, n_rows_, kHidden, normed.get());
    return {qkv.read(), query.read(), attended.read(), product.read(), residual.read(), normed.read()};
  }

 private:
  OnDevice<float> poison(int width) { return {backend_, std::vector<float>(static_cast<size_t>(n_rows_) * width, kPoison)}; }
  Backend& backend_;
  int n_rows_;
  AttentionShape shape_;
  std::unique_ptr<LinearWeight> qkv_weight_, out_weight_;
};

// Whether all values are BF16 numbers as the backend makes floats of them: divided by the factor that they were multiplied by.
bool were_bf16(const std::vector<float>& values, float factor) {
  const float back = 1.0f / factor;
  return std::ranges::all_of(values, [&](float value) { return bf16_to_f32(f32_to_bf16(value * factor)) * back == value; });
}

}  // namespace

TEST_CASE("cuda brief rows: ops in a row compute what they do where the host reads between them") {
  on_cuda([](Backend& backend, DType compute) {
    const std::vector<float> x = gaussian(kRows * kHidden, 2);
    for (const WeightFormat format : {WeightFormat::fp8, WeightFormat::bf16}) {
      CAPTURE(weight_format_name(format));
      AttentionHalf half(backend, format);
      const AttentionHalf::Result at_once = half.run(x, false), apart = half.run(x, true), in_parts = half.run(x, false, 90);
      CHECK(at_once == apart);
      CHECK(relative_error(in_parts.attended, at_once.attended) < bound(compute, Tolerance::kBf16Attention));
      if (format == WeightFormat::fp8) continue;  // activations are rounded to FP8 there
      const AttentionHalf::Result expected = AttentionHalf(*reference(), format).run(x, false);
      CHECK(relative_error(at_once.query, expected.query) < bound(compute, Tolerance::kBf16Attention));
      CHECK(relative_error(at_once.attended, expected.attended) < bound(compute, 2 * Tolerance::kBf16Attention));
      CHECK(relative_error(at_once.normed, expected.normed) < bound(compute, 2 * Tolerance::kBf16Attention));
    }
  });
}

// The other cases would pass where every op left floats.
TEST_CASE("cuda brief rows: on Hopper steps of 1,024 rows hand on in BF16, shorter ones in floats") {
  on_cuda([](Backend& backend, DType) {
    const float query_factor = 1.44269504f / std::sqrt(static_cast<float>(kHeadDim));
    for (const WeightFormat format : {WeightFormat::fp8, WeightFormat::bf16})
      for (const int rows : {sigmoe::cuda::kBriefRows - 1, sigmoe::cuda::kBriefRows}) {
        CAPTURE(weight_format_name(format));
        CAPTURE(rows);
        const bool brief = rows >= sigmoe::cuda::kBriefRows && backend.info().kernels == "sm_90";
        const AttentionHalf::Result found = AttentionHalf(backend, format, rows).run(gaussian(rows * kHidden, 2), false);
        CHECK(were_bf16(found.qkv, 1.0f) == brief);
        CHECK(were_bf16(found.query, query_factor) == brief);
        CHECK(were_bf16(found.product, 1.0f) == brief);
      }
  });
}

TEST_CASE("cuda brief rows: a part of them is read and written as floats, and what lies there later is not theirs") {
  on_cuda([](Backend& backend, DType) {
    constexpr int n = 400, kPart = 50;
    const auto weight = random_weight(WeightFormat::bf16, n, kHidden, {}, 0, 5).put(backend);
    const OnDevice<float> x(backend, gaussian(kRows * kHidden, 6)), part(backend, std::vector<float>(kPart * n));
    const std::vector<float> zeros(kPart * n), poison(kRows * n, kPoison);
    std::vector<float> expected;
    {
      const OnDevice<float> y(backend, poison);
      backend.linear(x.get(), *weight, kRows, y.get());
      expected = y.read();
      backend.linear(x.get(), *weight, kRows, y.get());
      const size_t first = expected.size() - kPart * n;  // in the half of the buffer that BF16 leaves empty
      backend.copy_rows(y.get() + first, nullptr, n, part.get(), nullptr, n, kPart, n);
      CHECK(part.read() == std::vector<float>(expected.begin() + first, expected.end()));
      backend.linear(x.get(), *weight, kRows, y.get());
      backend.upload(y.get() + first, zeros.data(), zeros.size() * sizeof(float));
      std::vector<float> cleared = expected;
      std::fill(cleared.begin() + first, cleared.end(), 0.0f);
      CHECK(y.read() == cleared);
      backend.linear(x.get(), *weight, kRows, y.get());
    }
    // Memory that was y's comes back in other pieces.
    std::vector<std::unique_ptr<OnDevice<float>>> pieces;
    for (int i = 0; i < 40; ++i)
      pieces.push_back(std::make_unique<OnDevice<float>>(backend, std::vector<float>(kRows * n / 40, 1.0f * i)));
    for (int i = 0; i < 40; ++i) CHECK(pieces[i]->read() == std::vector<float>(kRows * n / 40, 1.0f * i));
  });
}

TEST_CASE("cuda brief rows: a recorded step reads rows as they are now, not as they were when it was recorded") {
  on_cuda([](Backend& backend, DType) {
    constexpr int n = 400, kPart = 50;
    const auto weight = random_weight(WeightFormat::bf16, n, kHidden, {}, 0, 5).put(backend);
    const OnDevice<float> x(backend, gaussian(kRows * kHidden, 6)), y(backend, std::vector<float>(kRows * n, kPoison)),
        part(backend, std::vector<float>(kPart * n, kPoison));
    const auto multiply = [&] { backend.linear(x.get(), *weight, kRows, y.get()); };
    multiply();
    const std::vector<float> products = y.read(), others = gaussian(kRows * n, 7);
    const auto first_of = [](const std::vector<float>& rows) {
      return std::vector<float>(rows.begin(), rows.begin() + kPart * n);
    };
    const auto leave = [&](bool as_products) {
      if (as_products)
        multiply();
      else
        backend.upload(y.get(), others.data(), others.size() * sizeof(float));
    };
    for (const bool recorded_of_products : {false, true})
      for (int run = 0; run < 6; ++run) {
        CAPTURE(recorded_of_products);
        CAPTURE(run);
        const bool of_products = (run % 2 == 1) == recorded_of_products;  // the second run is recorded
        leave(of_products);
        backend.run_recorded(1 + recorded_of_products,
                             [&] { backend.copy_rows(y.get(), nullptr, n, part.get(), nullptr, n, kPart, n); });
        CHECK(part.read() == first_of(of_products ? products : others));
        CHECK(y.read() == (of_products ? products : others));
      }
    // One that has nothing to do with y, recorded while y was in BF16.
    for (int run = 0; run < 4; ++run) {
      CAPTURE(run);
      leave(run < 2);
      backend.run_recorded(3, [&] { backend.zero(part.get(), kPart * n * sizeof(float)); });
      CHECK(y.read() == (run < 2 ? products : others));
    }
  });
}
