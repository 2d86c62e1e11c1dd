// Products and sums that leave our own kernels: ranks that meet over HCCL, dense prefill by aclnn. Both over mocks.
#include <functional>
#include <thread>

#include "cpu_testing.h"
#include "mock_testing.h"

using namespace sigmoe;
using namespace sigmoe::ascend;
using namespace sigmoe::ascend::testing;
using namespace sigmoe::testing;

namespace {

DeviceBuffer put(Backend& backend, const std::vector<float>& values) {
  DeviceBuffer buffer = backend.alloc(values.size() * sizeof(float), "test data");
  backend.upload(buffer.data(), values.data(), buffer.bytes());
  return buffer;
}

std::vector<float> read(Backend& backend, const DeviceBuffer& buffer) {
  std::vector<float> values(buffer.bytes() / sizeof(float));
  backend.download(values.data(), buffer.data(), buffer.bytes());
  return values;
}

// Runs `body` on a thread per rank, each with a device of its own.
void on_ranks(int world, const std::function<void(AscendBackend&, Comm&)>& body) {
  const Runtime& runtime = mock_runtime();
  const auto comms = make_thread_world(world);
  std::vector<std::thread> threads;
  std::vector<std::string> failures(world);
  for (int rank = 0; rank < world; ++rank)
    threads.emplace_back([&, rank] {
      try {
        BackendOptions options;
        options.compute = DType::f32;
        options.device_index = rank;
        AscendBackend backend(runtime, options);
        body(backend, *comms[rank]);
      } catch (const std::exception& error) {
        failures[rank] = error.what();
        comms[rank]->shut_down();
      }
    });
  for (std::thread& thread : threads) thread.join();
  for (const std::string& failure : failures) CHECK(failure == "");
}

}  // namespace

TEST_CASE("ascend host: partial results of three ranks are summed on the way into the norm") {
  constexpr int kWorld = 3, kTokens = 5, kWidth = 40, kSlots = 2;
  const std::vector<float> residual = gaussian(kTokens * kWidth, 1), weight = gaussian(kWidth, 2);
  std::vector<std::vector<float>> parts;
  std::vector<float> whole(kTokens * kSlots * kWidth);
  for (int rank = 0; rank < kWorld; ++rank) {
    parts.push_back(gaussian(whole.size(), 10 + rank));
    for (size_t i = 0; i < whole.size(); ++i) whole[i] += parts[rank][i];
  }
  std::vector<float> expected_residual = residual, expected(residual.size());
  make_backend({"reference", DType::f32})
      ->reduce_add_rms_norm(expected_residual.data(), whole.data(), kSlots, nullptr, weight.data(), 1e-6f, kTokens, kWidth,
                            expected.data());
  on_ranks(kWorld, [&](AscendBackend& backend, Comm& comm) {
    const DeviceBuffer sum = put(backend, residual), part = put(backend, parts[comm.rank()]), scale = put(backend, weight),
                       out = backend.alloc(residual.size() * 4, "out");
    backend.reduce_add_rms_norm(sum.as<float>(), part.as<float>(), kSlots, &comm, scale.as<float>(), 1e-6f, kTokens, kWidth,
                                out.as<float>());
    CHECK(relative_error(read(backend, out), expected) <= Tolerance::kFloat32);
    CHECK(relative_error(read(backend, sum), expected_residual) <= Tolerance::kFloat32);
  });
}

TEST_CASE("ascend host: a vocabulary in unequal shares is put side by side") {
  const std::vector<int64_t> widths{32, 32, 7};
  constexpr int kRows = 3, kK = 24, kTotal = 71;
  const std::vector<float> x = gaussian(kRows * kK, 3);
  const HostWeight head = random_weight(WeightFormat::f32, kTotal, kK, {}, 1, 4);
  const auto reference = make_backend({"reference", DType::f32});
  std::vector<float> expected(kRows * kTotal);
  reference->head_logits(x.data(), nullptr, kRows, *head.put(*reference), nullptr, {}, expected.data());
  on_ranks(3, [&](AscendBackend& backend, Comm& comm) {
    HostWeight share = head;
    share.desc.n = widths[comm.rank()];
    share.rows.erase(share.rows.begin(), share.rows.begin() + 32 * comm.rank() * head.stride());
    const auto weight = share.put(backend);
    const DeviceBuffer rows = put(backend, x), logits = backend.alloc(expected.size() * 4, "logits");
    backend.head_logits(rows.as<float>(), nullptr, kRows, *weight, &comm, widths, logits.as<float>());
    CHECK(relative_error(read(backend, logits), expected) <= Tolerance::kFloat32);
  });
}

TEST_CASE("ascend host: several ranks without HCCL are refused") {
  Runtime runtime = mock_runtime();
  runtime.hccl = {};
  AscendBackend backend(runtime, {});
  const auto comms = make_thread_world(2);
  const DeviceBuffer data = put(backend, std::vector<float>(8));
  const EngineError error = error_of([&] {
    backend.reduce_add_rms_norm(data.as<float>(), data.as<float>(), 1, comms[0].get(), data.as<float>(), 1e-6f, 1, 8, nullptr);
  });
  CHECK(error.code() == ErrorCode::not_found);
  CHECK(says(error, "tensorParallelSize 2 asked for: libhccl.so was not found"));
}

TEST_CASE("ascend host: with SIGMOE_ASCEND_ACLNN=1 dense products of many rows go through aclnn, those of few do not") {
  const Environment asked{{"SIGMOE_ASCEND_ACLNN", "1"}};
  constexpr int64_t kN = 37, kK = 50;
  const HostWeight weight = random_weight(WeightFormat::bf16, kN, kK, {}, 1, 7);
  const auto reference = make_backend({"reference", DType::f32});
  for (const DType compute : {DType::bf16, DType::i8})
    for (const int n_tokens : {3, 40}) {
      CAPTURE(dtype_name(compute));
      CAPTURE(n_tokens);
      const std::vector<float> x = gaussian(n_tokens * kK, 8);
      std::vector<float> expected(n_tokens * kN);
      reference->linear(x.data(), *weight.put(*reference), n_tokens, expected.data());
      const auto backend = mock_backend(compute);
      CHECK(backend->info().kernels.find("dense prefill by aclnn") != std::string::npos);
      const auto packed = weight.put(*backend);
      const DeviceBuffer input = put(*backend, x), output = backend->alloc(expected.size() * 4, "y");
      const uint64_t before = backend->device().n_launches();
      backend->linear(input.as<float>(), *packed, n_tokens, output.as<float>());
      CHECK(relative_error(read(*backend, output), expected) <= (compute == DType::i8 ? 1.5e-2 : 6e-3));
      // rows made narrow, then our own product; or, once aclnn has multiplied, its results made float
      CHECK(backend->device().n_launches() - before == 2);
      CHECK((weight_of(*packed).plain_rows.data != nullptr) == (n_tokens == 40));
    }
  Runtime without = mock_runtime();
  without.aclnn = {};
  CHECK(says(error_of([&] { AscendBackend(without, {}); }), "libopapi.so and libnnopbase.so were not found"));
}
