// Embedding, norms and copies of the CUDA backend, its memory, and recorded steps.
#include <map>

#include "cuda_testing.h"

using namespace sigmoe;
using namespace sigmoe::testing;

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
