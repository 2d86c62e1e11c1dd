// sigmoe_cuda_bench: decode at a published shape with weights made on the device, whole and by op, each beside its counted
// bytes over the read-only stream measured in the same run. Prints a table; --out FILE also writes it as JSON.
//
//   sigmoe_cuda_bench --shape ling-flash-2.0:20 --dtype fp8 --head bf16 --batch 1,8,32,128 --context 1024 --out FILE
//
// Ops are timed as graph replays over all layers, so that every replay reads weights far larger than the cache. Bytes: every
// weight a step must read once (experts: those its tokens were routed to, counted), and the cached K and V.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <functional>
#include <map>
#include <set>
#include <sstream>

#include "cuda/bench_kernels.h"
#include "cuda/cuda_backend.h"
#include "engine/forward/graph.h"
#include "engine/schedule/page_pool.h"
#include "engine/weights/synthetic.h"
#include "nlohmann/json.hpp"

using namespace sigmoe;
using cuda::CudaBackend;
using Json = nlohmann::ordered_json;

namespace {

constexpr int kRepeats = 15;

struct Options {
  std::string shape = "ling-flash-2.0:20", dtype = "fp8", head = "bf16", out;
  std::vector<int> batches = {1, 8, 32, 128};
  int context = 1024;
};

Options parse(int argc, char** argv) {
  Options options;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string name = argv[i], value = argv[i + 1];
    if (name == "--shape")
      options.shape = value;
    else if (name == "--dtype")
      options.dtype = value;
    else if (name == "--head")
      options.head = value;
    else if (name == "--out")
      options.out = value;
    else if (name == "--context")
      options.context = std::stoi(value);
    else if (name == "--batch") {
      options.batches.clear();
      std::istringstream list(value);
      for (std::string item; std::getline(list, item, ',');) options.batches.push_back(std::stoi(item));
    } else
      throw EngineError(ErrorCode::invalid_argument, "no option " + name);
  }
  return options;
}

WeightFormat format_of(const std::string& name) {
  if (name == "fp8") return WeightFormat::fp8;
  if (name == "bf16") return WeightFormat::bf16;
  if (name == "int4") return WeightFormat::int4;
  throw EngineError(ErrorCode::invalid_argument, "no dtype " + name, "use fp8, bf16 or int4");
}

class Bench {
 public:
  explicit Bench(const Options& options) : options_(options), config_(shape_config(options.shape)), backend_(BackendOptions{}) {
    CUDA_CHECK(cudaEventCreate(&start_));
    CUDA_CHECK(cudaEventCreate(&stop_));
    make_weights();
  }
  ~Bench() {
    cudaEventDestroy(start_);
    cudaEventDestroy(stop_);
  }

  void run() {
    measure_stream();
    for (const int batch : options_.batches) measure_batch(batch);
    write();
  }

 private:
  std::unique_ptr<LinearWeight> weight(WeightFormat format, int64_t n, int64_t k, bool gate_up = false) {
    LinearDesc desc;
    desc.format = format;
    desc.n = n;
    desc.k = k;
    desc.gate_up = gate_up;
    desc.name = "synthetic weight";
    auto made = backend_.random_linear(desc, ++seed_ * 0x1000003);
    weights_.bytes += made->bytes();
    return made;
  }

  DeviceBuffer filled(size_t n, float limit) {
    DeviceBuffer buffer = backend_.alloc(n * sizeof(float), "benchmark data");
    cuda::launch_fill_f32(backend_.queue(), ++seed_, limit, n, buffer.as<float>());
    return buffer;
  }

  DeviceBuffer constant(size_t n, float value) {
    DeviceBuffer buffer = backend_.alloc(n * sizeof(float), "norm weights");
    const std::vector<float> values(n, value);
    backend_.upload(buffer.data(), values.data(), n * sizeof(float));
    return buffer;
  }

  void make_weights() {
    const WeightFormat format = format_of(options_.dtype);
    const ModelConfig& c = config_;
    const int64_t d = c.hidden_size;
    weights_.embedding = backend_.alloc(static_cast<size_t>(c.vocab_size) * d * 2, "embedding");
    cuda::launch_fill_bf16(backend_.queue(), 1, 0.0346f, static_cast<size_t>(c.vocab_size) * d, weights_.embedding.data());
    weights_.final_norm = constant(d, 1.0f);
    weights_.lm_head = weight(format_of(options_.head), c.vocab_size, d);
    weights_.vocab_widths = {c.vocab_size};
    for (int64_t i = 0; i < c.n_layers; ++i) {
      LayerWeights layer;
      layer.qkv = weight(format, (c.n_heads + 2 * c.n_kv_heads) * c.head_dim, d);
      layer.attn_out = weight(format, d, c.n_heads * c.head_dim);
      layer.input_norm = constant(d, 1.0f);
      layer.post_attention_norm = constant(d, 1.0f);
      layer.q_norm = constant(c.head_dim, 1.0f);
      layer.k_norm = constant(c.head_dim, 1.0f);
      layer.dense = c.is_dense(i);
      const int64_t shared = layer.dense ? c.dense_width : c.shared_width;
      layer.shared_gate_up = weight(format, 2 * shared, d, true);
      layer.shared_down = weight(format, d, shared);
      layer.experts.shared_gate_up = layer.shared_gate_up.get();
      layer.experts.shared_down = layer.shared_down.get();
      if (!layer.dense) {
        layer.router = weight(WeightFormat::bf16, c.n_experts, d);
        layer.router_bias = backend_.alloc(c.n_experts * sizeof(float), "router bias");
        for (int64_t e = 0; e < c.n_experts; ++e) {
          layer.experts.gate_up.push_back(layer.gate_up.emplace_back(weight(format, 2 * c.expert_width, d, true)).get());
          layer.experts.down.push_back(layer.down.emplace_back(weight(format, d, c.expert_width)).get());
        }
      }
      weights_.layers.push_back(std::move(layer));
    }
    backend_.synchronize();
  }

  double median_us(const std::function<void()>& work) {
    std::vector<float> times(kRepeats);
    for (int i = 0; i < 3; ++i) work();
    for (float& time : times) {
      CUDA_CHECK(cudaEventRecord(start_, backend_.queue().stream));
      work();
      CUDA_CHECK(cudaEventRecord(stop_, backend_.queue().stream));
      CUDA_CHECK(cudaEventSynchronize(stop_));
      CUDA_CHECK(cudaEventElapsedTime(&time, start_, stop_));
    }
    std::sort(times.begin(), times.end());
    return times[kRepeats / 2] * 1000.0;
  }

  // The expert weights themselves are what is read: slabs of the largest layer's arena lie in one piece of this size.
  void measure_stream() {
    const size_t bytes = size_t{4} << 30;
    DeviceBuffer data = backend_.alloc(bytes, "stream");
    cuda::launch_fill_f32(backend_.queue(), 3, 1.0f, bytes / 4, data.as<float>());
    DeviceBuffer sink = backend_.alloc(16, "stream");
    stream_ =
        bytes / median_us([&] { cuda::launch_read_stream(backend_.queue(), data.data(), bytes, sink.as<uint32_t>()); }) * 1e-6;
    const double copy_us = median_us([&] {
      CUDA_CHECK(cudaMemcpyAsync(data.data(), data.as<std::byte>() + bytes / 2, bytes / 2, cudaMemcpyDeviceToDevice,
                                 backend_.queue().stream));
    });
    cudaDeviceProp properties;
    CUDA_CHECK(cudaGetDeviceProperties(&properties, 0));
    int driver = 0;
    CUDA_CHECK(cudaDriverGetVersion(&driver));
    result_["device"] = properties.name;
    result_["driverCuda"] = driver;
    result_["toolkit"] = CUDART_VERSION;
    result_["shape"] = options_.shape;
    result_["dtype"] = options_.dtype;
    result_["head"] = options_.head;
    result_["context"] = options_.context;
    result_["weightBytes"] = weights_.bytes;
    result_["readStreamTBps"] = stream_;
    result_["copyTBps"] = bytes / copy_us * 1e-6;
    std::printf("%s, %s, %s weights, %s head, %d tokens of context: read stream %.3f TB/s, copy %.3f TB/s\n", properties.name,
                options_.shape.c_str(), options_.dtype.c_str(), options_.head.c_str(), options_.context, stream_,
                bytes / copy_us * 1e-6);
  }

  void report(int batch, const char* op, double us, double bytes, int n_per_step) {
    const double bound = bytes / stream_ * 1e-6;
    std::printf("  %-22s %9.2f us  %9.3f MB  %6.3f TB/s  %5.1f%%\n", op, us, bytes * 1e-6, bytes / us * 1e-6, 100 * bound / us);
    result_["rows"].push_back(
        {{"batch", batch}, {"op", op}, {"us", us}, {"bytes", bytes}, {"fraction", bound / us}, {"perStep", n_per_step}});
  }

  void measure_batch(int batch) {
    const ModelConfig& c = config_;
    const int64_t n_pages_each = pages_for(options_.context), d = c.hidden_size;
    HeadShard heads;
    heads.q = {0, c.n_heads};
    heads.kv = {0, c.n_kv_heads};
    KvCache kv(backend_, c.n_layers, n_pages_each * batch, c.n_kv_heads, c.head_dim);
    const size_t layer_kv = static_cast<size_t>(n_pages_each) * batch * c.n_kv_heads * kPageTokens * c.head_dim;
    for (int64_t i = 0; i < c.n_layers; ++i) {
      cuda::launch_fill_bf16(backend_.queue(), 2 * i, 2.0f, layer_kv, kv.layer(i).k);
      cuda::launch_fill_bf16(backend_.queue(), 2 * i + 1, 2.0f, layer_kv, kv.layer(i).v);
    }
    Workspace ws(c, heads, backend_, batch, options_.context, false);
    Graph graph(c, weights_, heads, backend_, nullptr, kv, ws);

    std::vector<int32_t> ids(batch), positions(batch, options_.context - 1), offsets(batch + 1), pages(n_pages_each * batch),
        rows(batch);
    for (int b = 0; b < batch; ++b) {
      ids[b] = static_cast<int32_t>((b * 2654435761ull + 12345) % c.vocab_size);
      offsets[b + 1] = b + 1;
      rows[b] = b;
    }
    for (size_t i = 0; i < pages.size(); ++i) pages[i] = static_cast<int32_t>((i * 7919) % pages.size());
    std::set<int32_t> distinct_pages(pages.begin(), pages.end());
    if (distinct_pages.size() != pages.size())
      for (size_t i = 0; i < pages.size(); ++i) pages[i] = static_cast<int32_t>(i);
    std::vector<DeviceBuffer> held;
    const auto put = [&](const std::vector<int32_t>& values) {
      held.push_back(backend_.alloc(values.size() * 4, "step inputs"));
      backend_.upload(held.back().data(), values.data(), values.size() * 4);
      return held.back().as<const int32_t>();
    };
    BatchView view;
    view.n_tokens = view.n_seqs = batch;
    view.max_pages = static_cast<int>(n_pages_each);
    view.token_ids = put(ids), view.positions = put(positions), view.seq_offsets = put(offsets), view.page_tables = put(pages);
    const int32_t* row_ids = put(rows);
    DeviceBuffer logits = backend_.alloc(static_cast<size_t>(batch) * c.vocab_size * 4, "logits");
    DeviceBuffer counts = backend_.alloc(static_cast<size_t>(batch) * c.vocab_size * 4, "counts");
    DeviceBuffer outputs = backend_.alloc(static_cast<size_t>(batch) * (8 + 8 * kMaxLogprobs), "sampled tokens");
    std::vector<SampleRow> sample_rows(batch);
    for (int b = 0; b < batch; ++b) sample_rows[b].slot = b, sample_rows[b].temperature = 0.0f;
    DeviceBuffer device_rows = backend_.alloc(batch * sizeof(SampleRow), "rows");
    backend_.upload(device_rows.data(), sample_rows.data(), batch * sizeof(SampleRow));
    SampleArgs sample;
    sample.logits = logits.as<float>(), sample.n_rows = batch, sample.vocab_size = static_cast<int>(c.vocab_size);
    sample.rows = device_rows.as<SampleRow>(), sample.counts = counts.as<uint32_t>();
    sample.tokens = outputs.as<int32_t>(), sample.logprobs = outputs.as<float>() + batch;
    sample.top_ids = outputs.as<int32_t>() + 2 * batch, sample.top_logprobs = outputs.as<float>() + (2 + kMaxLogprobs) * batch;

    // Which experts a step touches.
    Trace trace;
    graph.forward(view, &trace);
    double touched = 0;
    for (const auto& layer : trace.router_ids) touched += std::set<int32_t>(layer.begin(), layer.end()).size();
    const double n_moe = static_cast<double>(trace.router_ids.size());
    const LayerWeights& moe = weights_.layers.back();
    const double expert_bytes = static_cast<double>(moe.gate_up[0]->bytes() + moe.down[0]->bytes());
    const double shared_bytes = static_cast<double>(moe.shared_gate_up->bytes() + moe.shared_down->bytes());
    const double kv_bytes = 2.0 * batch * options_.context * c.n_kv_heads * c.head_dim * 2;
    const double head_bytes = static_cast<double>(weights_.lm_head->bytes());
    double step_bytes = head_bytes + touched * expert_bytes + c.n_layers * kv_bytes;
    for (const LayerWeights& layer : weights_.layers)
      step_bytes += layer.qkv->bytes() + layer.attn_out->bytes() + layer.shared_gate_up->bytes() + layer.shared_down->bytes() +
                    (layer.router ? layer.router->bytes() : 0);
    std::printf("batch %d: %.1f distinct experts per MoE layer of %lld\n", batch, touched / n_moe,
                static_cast<long long>(c.n_experts));

    const auto timed = [&](const std::function<void()>& ops) {
      const uint64_t key = ++key_;
      return median_us([&] { backend_.run_recorded(key, ops); });
    };
    const auto whole = [&](bool trunk, bool tail) {
      return timed([&, trunk, tail] {
        if (trunk) graph.forward(view);
        if (tail) {
          backend_.head_logits(ws.normed.as<float>(), row_ids, batch, *weights_.lm_head, nullptr, weights_.vocab_widths,
                               logits.as<float>());
          backend_.sample(sample);
        }
      });
    };
    const double step_us = whole(true, true), trunk_us = whole(true, false);
    report(batch, "whole step", step_us, step_bytes, 1);
    const double layer_bytes = (step_bytes - head_bytes) / c.n_layers;
    report(batch, "layer (mean of trunk)", trunk_us / c.n_layers, layer_bytes, static_cast<int>(c.n_layers));
    std::printf("  %.1f tokens/s\n", batch * 1e6 / step_us);
    result_["steps"].push_back({{"batch", batch},
                                {"us", step_us},
                                {"tokensPerSecond", batch * 1e6 / step_us},
                                {"bytes", step_bytes},
                                {"fraction", step_bytes / stream_ * 1e-6 / step_us},
                                {"distinctExperts", touched / n_moe}});

    // By op: the same op of every (MoE) layer in one replay.
    const DeviceBuffer x = filled(static_cast<size_t>(batch) * d, 1.7f);
    const AttentionShape shape{static_cast<int>(c.n_heads), static_cast<int>(c.n_kv_heads), static_cast<int>(c.head_dim),
                               static_cast<int>(c.rotary_dim)};
    const RouterShape router{static_cast<int>(c.n_experts),
                             static_cast<int>(c.n_active),
                             static_cast<int>(c.n_groups),
                             static_cast<int>(c.n_groups_kept),
                             c.normalise_topk,
                             c.routed_scaling};
    const Routing routing{ws.expert_ids.as<int32_t>(), ws.expert_weights.as<float>(), ws.expert_offsets.as<int32_t>(),
                          ws.slot_order.as<int32_t>()};
    const auto per_layer = [&](const char* name, double bytes, bool moe_only,
                               const std::function<void(const LayerWeights&, const KvView&)>& op) {
      int n = 0;
      for (const LayerWeights& layer : weights_.layers) n += !moe_only || !layer.dense;
      const double us = timed([&, moe_only] {
        for (size_t i = 0; i < weights_.layers.size(); ++i)
          if (!moe_only || !weights_.layers[i].dense) op(weights_.layers[i], kv.layer(i));
      });
      report(batch, name, us / n, bytes, n);
    };
    const int width = static_cast<int>(d), slots = static_cast<int>(c.n_active) + 1;
    per_layer("qkv", moe.qkv->bytes(), false,
              [&](const LayerWeights& l, const KvView&) { backend_.linear(x.as<float>(), *l.qkv, batch, ws.qkv.as<float>()); });
    per_layer("norm rope store", 0, false, [&](const LayerWeights& l, const KvView& cache) {
      backend_.qk_norm_rope_store(view, shape, ws.qkv.as<float>(), l.q_norm.as<float>(), l.k_norm.as<float>(), c.rms_eps,
                                  ws.rope_cos.as<float>(), ws.rope_sin.as<float>(), cache, ws.query.as<float>());
    });
    per_layer("attention", kv_bytes, false, [&](const LayerWeights&, const KvView& cache) {
      backend_.attention(view, shape, ws.query.as<float>(), cache, ws.attended.as<float>());
    });
    per_layer("attention out", moe.attn_out->bytes(), false, [&](const LayerWeights& l, const KvView&) {
      backend_.linear(ws.attended.as<float>(), *l.attn_out, batch, ws.partial.as<float>());
    });
    per_layer("add norm, 1 slot", 0, false, [&](const LayerWeights& l, const KvView&) {
      backend_.reduce_add_rms_norm(ws.residual.as<float>(), ws.partial.as<float>(), 1, nullptr, l.input_norm.as<float>(),
                                   c.rms_eps, batch, width, ws.normed.as<float>());
    });
    per_layer("add norm, all slots", 0, false, [&](const LayerWeights& l, const KvView&) {
      backend_.reduce_add_rms_norm(ws.residual.as<float>(), ws.partial.as<float>(), slots, nullptr, l.input_norm.as<float>(),
                                   c.rms_eps, batch, width, ws.normed.as<float>());
    });
    per_layer("route", moe.router->bytes(), true, [&](const LayerWeights& l, const KvView&) {
      backend_.route(x.as<float>(), *l.router, l.router_bias.as<float>(), router, batch, nullptr, ws.router_logits.as<float>(),
                     routing);
    });
    std::vector<int32_t> chosen(static_cast<size_t>(batch) * c.n_active);
    backend_.download(chosen.data(), routing.expert_ids, chosen.size() * 4);
    const double here = static_cast<double>(std::set<int32_t>(chosen.begin(), chosen.end()).size());
    per_layer("experts", here * expert_bytes + shared_bytes, true, [&](const LayerWeights& l, const KvView&) {
      backend_.experts(x.as<float>(), l.experts, routing, static_cast<int>(c.n_active), batch, width, ws.partial.as<float>());
    });
    // Rotation: four heads' worth of reads would not fit a cache either.
    report(batch, "head", timed([&] {
             backend_.head_logits(ws.normed.as<float>(), row_ids, batch, *weights_.lm_head, nullptr, weights_.vocab_widths,
                                  logits.as<float>());
           }),
           head_bytes, 1);
    report(batch, "sample, greedy", timed([&] { backend_.sample(sample); }), 4.0 * batch * c.vocab_size, 1);
    for (SampleRow& row : sample_rows) row.temperature = 0.6f, row.top_p = 0.95f, row.top_k = 20;
    backend_.upload(device_rows.data(), sample_rows.data(), batch * sizeof(SampleRow));
    report(batch, "sample, top-k, top-p", timed([&] { backend_.sample(sample); }), 4.0 * batch * c.vocab_size, 1);
    backend_.synchronize();
    backend_.forget_recorded();
  }

  void write() const {
    if (options_.out.empty()) return;
    std::ofstream file(options_.out);
    file << result_.dump(1) << '\n';
  }

  Options options_;
  ModelConfig config_;
  CudaBackend backend_;
  ModelWeights weights_;
  cudaEvent_t start_ = nullptr, stop_ = nullptr;
  double stream_ = 0;  // TB/s
  uint64_t seed_ = 0, key_ = 0;
  Json result_;
};

}  // namespace

int main(int argc, char** argv) {
  try {
    Bench(parse(argc, argv)).run();
    return 0;
  } catch (const EngineError& error) {
    std::fprintf(stderr, "%s: %s\n%s\n", error_code_name(error.code()), error.what(), error.hint().c_str());
    return 1;
  }
}
