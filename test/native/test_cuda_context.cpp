// Attention over the longest context the model has, 131,072 positions turned by its YaRN tables: the last rows of a prompt that
// is read in chunks, against the CPU in float32. Without a device the case prints why and passes.
#include <algorithm>
#include <cstdio>

#include "cpu_testing.h"
#include "engine/checkpoint/config.h"

using namespace sigmoe;
using namespace sigmoe::testing;

namespace {

constexpr int kContext = 131072, kChunk = 8192, kRows = 64, kWidth = (32 + 2 * 4) * 128;

// Element i of a row: the same for both backends, without a generator's state.
float element(int64_t position, int i) {
  uint64_t x = (static_cast<uint64_t>(position) * kWidth + i) * 0x9e3779b97f4a7c15ull;
  x = (x ^ x >> 29) * 0xbf58476d1ce4e5b9ull;
  return static_cast<float>(static_cast<int64_t>(x >> 40)) / 4194304.0f - 2.0f;
}

// Stores every position's keys and values chunk by chunk, then attends from the last kRows; all of them at once, or one by one.
std::vector<float> last_rows(Backend& backend, bool one_by_one) {
  AttentionShape shape;
  shape.n_heads = 32, shape.n_kv_heads = 4, shape.head_dim = 128, shape.rotary_dim = 64;
  ModelConfig config;
  config.rotary_dim = 64;
  config.rope_theta = 600000.0;
  config.yarn.factor = 4.0;
  config.yarn.original_context = 32768;
  std::vector<float> cos, sin;
  rope_tables(config, kContext, cos, sin);
  const auto on_device = [&](const auto& values) {
    DeviceBuffer buffer = backend.alloc(values.size() * 4, "test data");
    backend.upload(buffer.data(), values.data(), values.size() * 4);
    return buffer;
  };
  const DeviceBuffer device_cos = on_device(cos), device_sin = on_device(sin), norm = on_device(std::vector<float>(128, 1.3f));
  const DType dtype = backend.info().kv_dtype;
  const size_t n_cached = static_cast<size_t>(kContext) * 4;  // tokens x KV heads
  const DeviceBuffer k = backend.alloc(n_cached * 128 * dtype_bytes(dtype), "keys"),
                     v = backend.alloc(n_cached * 128 * dtype_bytes(dtype), "values"),
                     k_scales = backend.alloc(n_cached * sizeof(float), "scales"),
                     v_scales = backend.alloc(n_cached * sizeof(float), "scales"),
                     qkv = backend.alloc(sizeof(float) * kChunk * kWidth, "qkv"),
                     q = backend.alloc(sizeof(float) * kChunk * 32 * 128, "queries"),
                     out = backend.alloc(sizeof(float) * kRows * 32 * 128, "output");
  KvView kv{k.data(), v.data(), dtype, k_scales.as<float>(), v_scales.as<float>()};
  std::vector<int32_t> pages(kContext / kPageTokens), positions(kContext);
  for (size_t i = 0; i < pages.size(); ++i) pages[i] = static_cast<int32_t>(i * 5 % pages.size());  // each once, out of order
  for (int i = 0; i < kContext; ++i) positions[i] = i;
  const DeviceBuffer device_pages = on_device(pages), device_positions = on_device(positions);

  BatchView batch;
  batch.n_seqs = 1;
  batch.max_pages = static_cast<int>(pages.size());
  batch.page_tables = device_pages.as<int32_t>();
  std::vector<float> rows(static_cast<size_t>(kChunk) * kWidth);
  for (int begin = 0; begin < kContext; begin += kChunk) {
    for (int t = 0; t < kChunk; ++t)
      for (int i = 0; i < kWidth; ++i) rows[static_cast<size_t>(t) * kWidth + i] = element(begin + t, i);
    backend.upload(qkv.data(), rows.data(), rows.size() * sizeof(float));
    const DeviceBuffer offsets = on_device(std::vector<int32_t>{0, kChunk});
    batch.n_tokens = kChunk;
    batch.positions = device_positions.as<int32_t>() + begin;
    batch.seq_offsets = offsets.as<int32_t>();
    backend.qk_norm_rope_store(batch, shape, qkv.as<float>(), norm.as<float>(), norm.as<float>(), 1e-6f, device_cos.as<float>(),
                               device_sin.as<float>(), kv, q.as<float>());
    backend.synchronize();
  }
  const int at_once = one_by_one ? 1 : kRows;
  const DeviceBuffer offsets = on_device(std::vector<int32_t>{0, at_once});
  for (int row = 0; row < kRows; row += at_once) {
    batch.n_tokens = at_once;
    batch.positions = device_positions.as<int32_t>() + kContext - kRows + row;
    batch.seq_offsets = offsets.as<int32_t>();
    backend.attention(batch, shape, q.as<float>() + (kChunk - kRows + row) * 32 * 128, kv, out.as<float>() + row * 32 * 128);
  }
  std::vector<float> result(static_cast<size_t>(kRows) * 32 * 128);
  backend.download(result.data(), out.data(), result.size() * sizeof(float));
  return result;
}

}  // namespace

TEST_CASE("cuda attention: the last rows of 131,072 positions equal the CPU's in float32") {
  for (const DeviceReport& report : list_devices())
    if (report.device == "cuda" && !report.available) {
      std::printf("cuda context: skipped, %s\n", report.detail.c_str());
      return;
    }
  const std::vector<float> expected = last_rows(*make_backend({"generic", DType::f32}, 16), false);
  const std::unique_ptr<Backend> backend = create_backend("cuda", {});
  for (const bool one_by_one : {false, true}) {
    CAPTURE(one_by_one);
    const double error = relative_error(last_rows(*backend, one_by_one), expected);
    std::printf("cuda context: rows %s: relative error %.2e\n", one_by_one ? "one by one" : "at once", error);
    CHECK(error < 0.01);
  }
}
