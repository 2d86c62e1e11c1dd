// The host side over the mock toolkit: what it looks for, memory, streams, recorded steps, and what it makes of failures.
#include <thread>

#include "cpu_testing.h"
#include "mock_testing.h"

using namespace sigmoe;
using namespace sigmoe::ascend;
using namespace sigmoe::ascend::testing;
using namespace sigmoe::testing;

namespace {

template <typename T>
std::vector<T> read(Backend& backend, const DeviceBuffer& buffer) {
  std::vector<T> values(buffer.bytes() / sizeof(T));
  backend.download(values.data(), buffer.data(), buffer.bytes());
  return values;
}

template <typename T>
DeviceBuffer put(Backend& backend, const std::vector<T>& values) {
  DeviceBuffer buffer = backend.alloc(values.size() * sizeof(T), "test data");
  backend.upload(buffer.data(), values.data(), buffer.bytes());
  return buffer;
}

}  // namespace

TEST_CASE("ascend host: without Ascend software one message says what to install, and every library is listed") {
  const Environment nothing{{"SIGMOE_ASCEND_HOME", "/nowhere"},
                            {"ASCEND_HOME_PATH", ""},
                            {"ASCEND_TOOLKIT_HOME", ""},
                            {"SIGMOE_ASCEND_KERNELS", ""},
                            {"SIGMOE_ASCEND_LIBRARY", SIGMOE_ASCEND_PLUGIN}};
  const Runtime runtime = open_runtime();
  CHECK(runtime.missing.find("libascendcl.so was not found") != std::string::npos);
  CHECK(runtime.missing.find("install the Ascend driver, firmware and CANN toolkit") != std::string::npos);
  for (const char* library : {"libascendcl.so", "libsigmoe_ascend_kernels.so", "libhccl.so", "libnnopbase.so", "libopapi.so"})
    CHECK(runtime.report().find(std::string(library) + ": not found") != std::string::npos);
  CHECK(runtime.report().find("looked in /nowhere/lib64/, the loader's path") != std::string::npos);

  const EngineError refused = error_of([] { create_backend("ascend", {}); });
  CHECK(refused.code() == ErrorCode::not_found);
  CHECK(says(refused, "install the Ascend driver"));
  for (const DeviceReport& report : list_devices())
    if (report.device == "ascend") {
      CHECK(!report.available);
      CHECK(report.detail.find("libopapi.so: not found") != std::string::npos);
    }
}

TEST_CASE("ascend host: a toolkit without kernels says how to build them") {
  const Environment partial{{"SIGMOE_ASCEND_HOME", SIGMOE_MOCK_DIR}, {"SIGMOE_ASCEND_KERNELS", "/nowhere/kernels.so"}};
  const Runtime runtime = open_runtime();
  CHECK(runtime.missing.find("/nowhere/kernels.so was not found") != std::string::npos);
  CHECK(runtime.missing.find("build it with CANN") != std::string::npos);
  CHECK(runtime.report().find("libascendcl.so: " SIGMOE_MOCK_DIR "/lib64/libascendcl.so") != std::string::npos);
}

TEST_CASE("ascend host: memory is zeroed, copies arrive whole, threads of a loader share the device") {
  const auto backend = mock_backend();
  CHECK(backend->info().device == "ascend");
  CHECK(read<int32_t>(*backend, backend->alloc(4000, "zeros")) == std::vector<int32_t>(1000));
  std::vector<int32_t> values(3 << 20);  // longer than the staging memory together
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<int32_t>(i * 2654435761u);
  const DeviceBuffer whole = put(*backend, values);
  CHECK(read<int32_t>(*backend, whole) == values);

  const DeviceBuffer shared = backend->alloc(values.size() * 4, "shared");
  std::vector<std::thread> loaders;
  const size_t part = values.size() / 4;
  for (int i = 0; i < 4; ++i)
    loaders.emplace_back(
        [&, i] { backend->upload(shared.as<int32_t>() + i * part, values.data() + i * part, part * sizeof(int32_t)); });
  for (std::thread& loader : loaders) loader.join();
  CHECK(read<int32_t>(*backend, shared) == values);
  backend->zero(shared.as<int32_t>() + 5, 8);
  const std::vector<int32_t> zeroed = read<int32_t>(*backend, shared);
  CHECK(zeroed[5] == 0);
  CHECK(zeroed[6] == 0);
  CHECK(zeroed[7] == values[7]);
}

TEST_CASE("ascend host: weights of every checkpoint format give the reference's product, in every compute type") {
  const auto reference = make_backend({"reference", DType::f32});
  for (const DType compute : {DType::bf16, DType::i8, DType::f32})
    for (const WeightFormat format : {WeightFormat::f32, WeightFormat::bf16, WeightFormat::fp8, WeightFormat::int4}) {
      CAPTURE(dtype_name(compute));
      CAPTURE(weight_format_name(format));
      const bool scaled = format == WeightFormat::fp8 || format == WeightFormat::int4;
      constexpr int64_t kN = 45, kK = 200;
      constexpr int kTokens = 3;
      const HostWeight weight = random_weight(format, kN, kK, scaled ? blocks_of(kK, 64, 40) : std::vector<int64_t>{}, 1, 7);
      const std::vector<float> x = gaussian(kTokens * kK, 8);
      std::vector<float> expected(kTokens * kN);
      reference->linear(x.data(), *weight.put(*reference), kTokens, expected.data());

      const auto backend = mock_backend(compute);
      const auto packed = weight.put(*backend, 7);
      const DeviceBuffer input = put(*backend, x), output = backend->alloc(expected.size() * 4, "y");
      backend->linear(input.as<float>(), *packed, kTokens, output.as<float>());
      // INT8: a half step of 1/127 of the largest of 200 values, in weights and activations both.
      const double bound = compute == DType::f32 ? Tolerance::kFloat32 : compute == DType::i8 ? 1.5e-2 : 5e-3;
      CHECK(relative_error(read<float>(*backend, output), expected) <= bound);
      CHECK(backend->info().weights.empty() == (compute != DType::i8));
      if (compute == DType::i8) {
        CHECK(backend->info().weights.find("INT8, added error mean") == 0);
        CHECK(backend->info().weights.find("(random)") != std::string::npos);
      }
    }
}

TEST_CASE("ascend host: a damaged weight is refused by name") {
  const auto backend = mock_backend();
  HostWeight weight = random_weight(WeightFormat::f32, 4, 8, {}, 1, 7);
  reinterpret_cast<uint32_t*>(weight.rows.data())[17] = 0x7f800000u;
  const EngineError error = error_of([&] { weight.put(*backend); });
  CHECK(error.code() == ErrorCode::bad_checkpoint);
  CHECK(says(error, "random holds a NaN or an infinity in row 2"));
}

TEST_CASE("ascend host: a step is run, recorded, replayed, and replays read what memory holds then") {
  const auto backend = mock_backend();
  const DeviceBuffer ids = put(*backend, std::vector<int32_t>{2, 0}),
                     table = put(*backend, std::vector<float>{0, 1, 2, 3, 4, 5, 6, 7, 8});
  const DeviceBuffer out = backend->alloc(6 * 4, "rows");
  int n_calls = 0;
  const auto step = [&] {
    backend->run_recorded(42, [&] {
      ++n_calls;
      backend->embed(Tensor(table.data(), DType::f32, {3, 3}), ids.as<int32_t>(), 2, out.as<float>());
    });
  };
  const uint64_t before = backend->device().n_launches();
  step();
  CHECK(read<float>(*backend, out) == std::vector<float>{6, 7, 8, 0, 1, 2});
  step();
  CHECK(read<float>(*backend, out) == std::vector<float>{6, 7, 8, 0, 1, 2});
  const std::vector<int32_t> others{1, 1};
  backend->upload(ids.data(), others.data(), 8);
  step();
  CHECK(read<float>(*backend, out) == std::vector<float>{3, 4, 5, 3, 4, 5});
  CHECK(n_calls == 2);
  CHECK(backend->device().n_replays() == 2);
  CHECK(backend->device().n_launches() - before == 3);
}

TEST_CASE("ascend host: capture refused: steps are launched, and the facts say so") {
  std::unique_ptr<AscendBackend> backend;
  {
    const Fault fault("capture");
    backend = mock_backend();
  }
  CHECK(backend->info().kernels.find("steps not recorded") != std::string::npos);
  const DeviceBuffer ids = put(*backend, std::vector<int32_t>{1}), table = put(*backend, std::vector<float>{1, 2});
  const DeviceBuffer out = backend->alloc(4, "row");
  for (int i = 0; i < 3; ++i)
    backend->run_recorded(1, [&] {
      backend->embed(Tensor(table.data(), DType::f32, {2, 1}), ids.as<int32_t>(), 1, out.as<float>());
    });
  CHECK(read<float>(*backend, out) == std::vector<float>{2});
  CHECK(backend->device().n_replays() == 0);
}

TEST_CASE("ascend host: out of memory names what was asked, what is free and what to lower, and passes") {
  const auto backend = mock_backend();
  {
    const Fault fault("malloc", 2);
    backend->alloc(100, "first");
    const EngineError error = error_of([&] { backend->alloc(5 << 20, "KV cache"); });
    CHECK(error.code() == ErrorCode::out_of_memory);
    CHECK(says(error, "KV cache: 5 MiB of NPU memory asked for, "));
    CHECK(says(error, "free"));
    CHECK(says(error, "lower kvCacheTokens"));
  }
  const EngineError huge = error_of([&] { backend->alloc(size_t{1} << 60, "KV cache"); });
  CHECK(huge.code() == ErrorCode::out_of_memory);
  CHECK(backend->alloc(100, "again").bytes() == 100);
}

TEST_CASE("ascend host: a failed copy, launch or kernel breaks the device for good, and only that one") {
  for (const char* kind : {"memcpy", "launch", "kernel"}) {
    CAPTURE(kind);
    const auto backend = mock_backend();
    const DeviceBuffer ids = put(*backend, std::vector<int32_t>{1}), table = put(*backend, std::vector<float>{1, 2});
    const DeviceBuffer out = backend->alloc(4, "row");
    const auto use = [&] {
      backend->embed(Tensor(table.data(), DType::f32, {2, 1}), ids.as<int32_t>(), 1, out.as<float>());
      return read<float>(*backend, out);
    };
    CHECK(use() == std::vector<float>{2});
    {
      const Fault fault(kind);
      const EngineError error = error_of(use);
      CHECK(error.code() == ErrorCode::device);
      CHECK(says(error, "NPU 0"));
      CHECK(says(error, "as a test asked for"));
    }
    CHECK(error_of(use).code() == ErrorCode::device);
    CHECK(error_of([&] { backend->alloc(4, "more"); }).code() == ErrorCode::device);
    const auto another = mock_backend();
    CHECK(read<int32_t>(*another, put(*another, std::vector<int32_t>{7})) == std::vector<int32_t>{7});
  }
}

TEST_CASE("ascend host: a step that fails while it is recorded leaves no capture open") {
  const auto backend = mock_backend();
  const DeviceBuffer ids = put(*backend, std::vector<int32_t>{1}), table = put(*backend, std::vector<float>{1, 2});
  const DeviceBuffer out = backend->alloc(4, "row");
  const auto embed = [&] { backend->embed(Tensor(table.data(), DType::f32, {2, 1}), ids.as<int32_t>(), 1, out.as<float>()); };
  backend->run_recorded(9, embed);
  CHECK_THROWS_AS(backend->run_recorded(9,
                                        [&] {
                                          embed();
                                          throw EngineError(ErrorCode::unsupported, "no kernel");
                                        }),
                  EngineError);
  backend->run_recorded(9, embed);
  CHECK(read<float>(*backend, out) == std::vector<float>{2});
}

TEST_CASE("ascend host: devices and compute types that are not there are refused") {
  BackendOptions options;
  options.device_index = 100;
  CHECK(says(error_of([&] { AscendBackend(mock_runtime(), options); }), "NPU 100 asked for: 8 are visible"));
  options = {};
  options.kernels = "avx2";
  CHECK(error_of([&] { AscendBackend(mock_runtime(), options); }).code() == ErrorCode::invalid_argument);
  options = {};
  options.compute = DType::i8;
  CHECK(error_of([&] { create_backend("cpu", options); }).code() == ErrorCode::unsupported);
  CHECK(error_of([&] { create_backend("npu", {}); }).code() == ErrorCode::invalid_argument);
}
