// What steps of many rows do around their products on CUDA: the router on tensor cores, the lists of slots, norms that pack.
// Without a device the cases print why and pass.
#include <numeric>

#include "cuda_testing.h"

using namespace sigmoe;
using namespace sigmoe::testing;

namespace {

struct Routed {
  std::vector<float> logits, weights;
  std::vector<int32_t> ids, offsets, order;
};

RouterShape router(int n_experts, int n_active, int n_groups, int n_kept) {
  RouterShape shape;
  shape.n_experts = n_experts, shape.n_active = n_active, shape.n_groups = n_groups, shape.n_groups_kept = n_kept;
  shape.normalise = true, shape.scaling = 2.5f;
  return shape;
}

Routed route(Backend& backend, const LinearWeight& gate, const std::vector<float>& x, const RouterShape& shape, int n_tokens) {
  const size_t n_slots = static_cast<size_t>(n_tokens) * shape.n_active;
  const OnDevice<float> in(backend, x), bias(backend, gaussian(shape.n_experts, 5, 0.1f)),
      logits(backend, std::vector<float>(static_cast<size_t>(n_tokens) * shape.n_experts, kPoison)),
      weights(backend, std::vector<float>(n_slots, kPoison));
  const OnDevice<int32_t> ids(backend, std::vector<int32_t>(n_slots, -7)),
      offsets(backend, std::vector<int32_t>(shape.n_experts + 1, -7)), order(backend, std::vector<int32_t>(n_slots, -7));
  backend.route(in.get(), gate, bias.get(), shape, n_tokens, nullptr, logits.get(),
                {ids.get(), weights.get(), offsets.get(), order.get()});
  return {logits.read(), weights.read(), ids.read(), offsets.read(), order.read()};
}

// Of x (rows, k) and a gate in BF16, in float64.
std::vector<double> exact_logits(const std::vector<float>& x, const HostWeight& gate, int n_rows) {
  const int64_t k = gate.desc.k, n = gate.desc.n;
  std::vector<float> w(n * k);
  for (size_t i = 0; i < w.size(); ++i) w[i] = bf16_to_f32(reinterpret_cast<const uint16_t*>(gate.rows.data())[i]);
  std::vector<double> logits(n_rows * n);
  for (int64_t t = 0; t < n_rows; ++t)
    for (int64_t e = 0; e < n; ++e) {
      double sum = 0.0;
      for (int64_t i = 0; i < k; ++i) sum += static_cast<double>(x[t * k + i]) * w[e * k + i];
      logits[t * n + e] = sum;
    }
  return logits;
}

double error_of(const std::vector<float>& found, const std::vector<double>& expected) {
  double difference = 0.0, size = 0.0;
  for (size_t i = 0; i < expected.size(); ++i) {
    difference += (found[i] - expected[i]) * (found[i] - expected[i]);
    size += expected[i] * expected[i];
  }
  return std::sqrt(difference / size);
}

// Slots by expert, then by token, of what `ids` say.
void check_lists(const Routed& routed, int n_experts) {
  std::vector<int32_t> order(routed.ids.size()), offsets(n_experts + 1);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return routed.ids[a] < routed.ids[b]; });
  for (const int32_t id : routed.ids) ++offsets[id + 1];
  std::partial_sum(offsets.begin(), offsets.end(), offsets.begin());
  CHECK(routed.order == order);
  CHECK(routed.offsets == offsets);
}

}  // namespace

TEST_CASE("cuda many rows: router logits are as near float64 as those of few rows, and no row minds its neighbours") {
  on_cuda([](Backend& backend, DType) {
    for (const auto& [n_experts, k, most] :
         {std::tuple<int, int, int>{256, 4096, 6000}, {256, 200, 600}, {24, 1028, 600}, {300, 520, 6000}, {512, 64, 130}}) {
      CAPTURE(n_experts);
      CAPTURE(k);
      const HostWeight host = random_weight(WeightFormat::bf16, n_experts, k, {}, 0, 3);
      const auto gate = host.put(backend);
      const RouterShape shape = router(n_experts, 3, 4, 2);
      const std::vector<float> x = gaussian(static_cast<size_t>(most) * k, 4);
      const auto first_rows = [&](int first, int rows) {
        return std::vector<float>(x.begin() + static_cast<int64_t>(first) * k,
                                  x.begin() + static_cast<int64_t>(first + rows) * k);
      };
      const Routed all = route(backend, *gate, x, shape, most);
      check_lists(all, n_experts);
      for (const int rows : {64, 65, 97, 513, 5761})
        for (const int first : {0, most - rows}) {
          if (rows > most) continue;
          CAPTURE(rows);
          CAPTURE(first);
          const Routed part = route(backend, *gate, first_rows(first, rows), shape, rows);
          CHECK(
              std::equal(part.logits.begin(), part.logits.end(), all.logits.begin() + static_cast<int64_t>(first) * n_experts));
          CHECK(std::equal(part.ids.begin(), part.ids.end(), all.ids.begin() + static_cast<int64_t>(first) * shape.n_active));
          CHECK(std::equal(part.weights.begin(), part.weights.end(),
                           all.weights.begin() + static_cast<int64_t>(first) * shape.n_active));
          check_lists(part, n_experts);
        }
      const std::vector<double> exact = exact_logits(x, host, 60);
      const double many = error_of(all.logits, exact),
                   few = error_of(route(backend, *gate, first_rows(0, 60), shape, 60).logits, exact);
      if (k == 4096)
        std::printf("cuda many rows: router logits against float64, relative: %.2e (of few rows %.2e)\n", many, few);
      CHECK(many < std::max(2 * few, 3e-7));
    }
  });
}

TEST_CASE("cuda many rows: activations of every size keep their 24 bits in the router") {
  on_cuda([](Backend& backend, DType) {
    constexpr int kRows = 70, kWidth = 256, kExperts = 16;
    const HostWeight host = random_weight(WeightFormat::bf16, kExperts, kWidth, {}, 0, 8);
    const auto gate = host.put(backend);
    std::vector<float> x = gaussian(kRows * kWidth, 9);
    for (int t = 0; t < kRows; ++t)  // one element alone: its product is exact but for its own rounding
      for (int i = 0; i < kWidth; ++i) x[t * kWidth + i] = i == t % kWidth ? std::ldexp(x[t * kWidth + i], t - 35) : 0.0f;
    const Routed routed = route(backend, *gate, x, router(kExperts, 2, 4, 2), kRows);
    const std::vector<double> exact = exact_logits(x, host, kRows);
    for (size_t i = 0; i < exact.size(); ++i) CHECK(std::abs(routed.logits[i] - exact[i]) <= 2.4e-7 * std::abs(exact[i]));
  });
}

TEST_CASE("cuda many rows: norms over slots, and products of what they packed are those of the same rows elsewhere") {
  on_cuda([](Backend& backend, DType) {
    for (const WeightFormat format : {WeightFormat::fp8, WeightFormat::bf16})
      for (const int width : {512, 1024, 4096, 200})
        for (const int n_tokens : {47, 48, 130, 1023, 1100}) {
          if (width == 4096 && n_tokens > 200) continue;
          CAPTURE(weight_format_name(format));
          CAPTURE(width);
          CAPTURE(n_tokens);
          constexpr int n = 144, kSlots = 5;
          const size_t n_values = static_cast<size_t>(n_tokens) * width;
          const auto weight =
              random_weight(format, n, width, format == WeightFormat::fp8 ? blocks_of(width, 128) : std::vector<int64_t>{}, 128,
                            4)
                  .put(backend);
          const std::vector<float> residual = gaussian(n_values, 1), slots = gaussian(n_values * kSlots, 6),
                                   scale = gaussian(width, 2);
          const OnDevice<float> norm(backend, scale), addend(backend, slots),
              normed(backend, std::vector<float>(n_values, kPoison)), copy(backend, std::vector<float>(n_values)),
              out(backend, std::vector<float>(n_tokens * n, kPoison));
          const auto products = [&](const float* x) {
            backend.linear(x, *weight, n_tokens, out.get());
            return out.read();
          };
          products(normed.get());  // what meets many rows last says how the next norm packs
          const OnDevice<float> stream(backend, residual);
          backend.reduce_add_rms_norm(stream.get(), addend.get(), kSlots, nullptr, norm.get(), 1e-6f, n_tokens, width,
                                      normed.get());
          const std::vector<float> from_normed = products(normed.get()), values = normed.read();
          backend.upload(copy.get(), values.data(), values.size() * sizeof(float));
          CHECK(from_normed == products(copy.get()));
          const OnDevice<float> again(backend, residual);
          backend.reduce_add_rms_norm(again.get(), addend.get(), kSlots, nullptr, norm.get(), 1e-6f, n_tokens, width,
                                      normed.get());
          CHECK(from_normed == products(normed.get()));

          Backend& cpu = *reference();
          const OnDevice<float> cpu_stream(cpu, residual), cpu_addend(cpu, slots), cpu_norm(cpu, scale),
              cpu_normed(cpu, std::vector<float>(n_values));
          cpu.reduce_add_rms_norm(cpu_stream.get(), cpu_addend.get(), kSlots, nullptr, cpu_norm.get(), 1e-6f, n_tokens, width,
                                  cpu_normed.get());
          CHECK(relative_error(values, cpu_normed.read()) < Tolerance::kFloat32);
          CHECK(relative_error(stream.read(), cpu_stream.read()) < Tolerance::kFloat32);
        }
  });
}

namespace {

// Queries, then the bytes of the cache, of kRows rows stored in steps of `step`.
std::vector<float> stored(Backend& backend, int step, DType kv_dtype, bool norms) {
  constexpr int kRows = 150, kHeads = 16, kKvHeads = 3, kDim = 128;
  const int row_width = (kHeads + 2 * kKvHeads) * kDim, n_pages = 2;
  AttentionShape shape;
  shape.n_heads = kHeads, shape.n_kv_heads = kKvHeads, shape.head_dim = kDim, shape.rotary_dim = 64;
  const OnDevice<float> qkv(backend, gaussian(kRows * row_width, 21)), cos(backend, gaussian(kRows * 32, 22)),
      sin(backend, gaussian(kRows * 32, 23)), q_norm(backend, gaussian(kDim, 24)), k_norm(backend, gaussian(kDim, 25)),
      query(backend, std::vector<float>(kRows * kHeads * kDim, kPoison));
  const size_t n_cached = static_cast<size_t>(n_pages) * kKvHeads * kPageTokens;
  const std::vector<uint8_t> nothing(n_cached * kDim * dtype_bytes(kv_dtype), 7);
  const OnDevice<uint8_t> k(backend, nothing), v(backend, nothing);
  const OnDevice<float> k_scales(backend, std::vector<float>(n_cached, kPoison)),
      v_scales(backend, std::vector<float>(n_cached, kPoison));
  std::vector<int32_t> positions(kRows);
  std::iota(positions.begin(), positions.end(), 0);
  const OnDevice<int32_t> device_positions(backend, positions), pages(backend, {1, 0});
  for (int first = 0; first < kRows; first += step) {
    BatchView batch;
    batch.n_tokens = std::min(step, kRows - first);
    batch.n_seqs = 1;
    batch.max_pages = n_pages;
    const OnDevice<int32_t> offsets(backend, {0, batch.n_tokens});
    batch.positions = device_positions.get() + first;
    batch.seq_offsets = offsets.get();
    batch.page_tables = pages.get();
    backend.qk_norm_rope_store(batch, shape, qkv.get() + first * row_width, norms ? q_norm.get() : nullptr,
                               norms ? k_norm.get() : nullptr, 1e-6f, cos.get(), sin.get(),
                               {k.get(), v.get(), kv_dtype, k_scales.get(), v_scales.get()},
                               query.get() + first * kHeads * kDim);
    backend.synchronize();
  }
  std::vector<float> all = query.read();
  for (const OnDevice<float>* scales : {&k_scales, &v_scales})
    if (const std::vector<float> values = scales->read(); kv_dtype == DType::f8_e4m3)
      all.insert(all.end(), values.begin(), values.end());
  for (const OnDevice<uint8_t>* cache : {&k, &v})
    for (const uint8_t byte : cache->read()) all.push_back(byte);
  return all;
}

}  // namespace

TEST_CASE("cuda many rows: queries, keys and values have the bits of few rows") {
  if (!have_cuda()) return;
  for (const char* kv_cache : {"auto", "fp8"})
    for (const bool norms : {true, false}) {
      CAPTURE(kv_cache);
      CAPTURE(norms);
      const std::unique_ptr<Backend> backend = cuda(DType::bf16, kv_cache);
      const DType dtype = backend->info().kv_dtype;
      CHECK(stored(*backend, 150, dtype, norms) == stored(*backend, 47, dtype, norms));
    }
}
