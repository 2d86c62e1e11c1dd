// Whole layers of one to four rows on CUDA against the ops, to the bit, at the model's shapes: every kernel that does several
// ops at once has the bits of the ops, which test_cuda_ops.cpp checks against the reference. Without a Hopper GPU the cases
// print why and pass.
#include <cstdio>
#include <cstdlib>
#include <numeric>

#include "backend/bench_device.h"
#include "backend/decode_layer.h"
#include "cpu_testing.h"

using namespace sigmoe;
using namespace sigmoe::testing;

namespace {

constexpr int kWidth = 4096, kInner = 1024, kExperts = 256, kActive = 8, kLayers = 3;
constexpr float kEps = 1e-6f;

struct Case {
  std::vector<int> lengths;   // of each row's sequence, its own token included
  bool one_sequence = false;  // the rows follow each other in one sequence: the first length counts
  enum class Gate { random, pairs_alike, all_alike } gate = Gate::random;
  WeightFormat format = WeightFormat::fp8;
  bool same_rows = false;  // every row chooses the same experts
};

template <typename T>
DeviceBuffer on_device(Backend& backend, const std::vector<T>& values) {
  DeviceBuffer buffer = backend.alloc(values.size() * sizeof(T), "test data");
  backend.upload(buffer.data(), values.data(), values.size() * sizeof(T));
  return buffer;
}

template <typename T>
std::vector<T> read(Backend& backend, const DeviceBuffer& buffer) {
  std::vector<T> values(buffer.bytes() / sizeof(T));
  backend.download(values.data(), buffer.data(), buffer.bytes());
  return values;
}

// Weights of one layer; its routed experts share four sets of weights.
struct Weights {
  std::unique_ptr<LinearWeight> qkv, out, gate, shared_up, shared_down, up[4], down[4];
  ExpertWeights experts;

  Weights(Backend& backend, WeightFormat format, Case::Gate kind) {
    const auto made = backend.bench_device();
    const auto random = [&](int64_t n, int64_t k, bool gate_up, uint64_t seed) {
      const LinearDesc desc{
          format,         n, k, format == WeightFormat::fp8 ? blocks_of(k, 128) : std::vector<int64_t>{}, gate_up, "random",
          LinearUse::body};
      return made->random_linear(desc, seed);
    };
    qkv = random(5120, kWidth, false, 1);
    out = random(kWidth, 4096, false, 2);
    shared_up = random(2 * kInner, kWidth, true, 3);
    shared_down = random(kWidth, kInner, false, 4);
    for (int i = 0; i < 4; ++i) up[i] = random(2 * kInner, kWidth, true, 5 + i), down[i] = random(kWidth, kInner, false, 9 + i);
    for (int e = 0; e < kExperts; ++e) experts.gate_up.push_back(up[e % 4].get()), experts.down.push_back(down[e % 4].get());
    experts.shared_gate_up = shared_up.get(), experts.shared_down = shared_down.get();
    HostWeight host = random_weight(WeightFormat::bf16, kExperts, kWidth, {}, 0, 13);
    host.desc.use = LinearUse::router;
    for (int e = 0; e < kExperts; ++e)
      if (const int from = kind == Case::Gate::random ? e : kind == Case::Gate::all_alike ? 0 : e / 2 * 2; from != e)
        std::copy_n(host.rows.data() + from * host.stride(), host.stride(), host.rows.data() + e * host.stride());
    gate = host.put(backend);
  }
};

// What kLayers layers leave: the residual stream after all sums, and the cache.
struct Result {
  std::vector<float> residual;
  std::vector<uint16_t> k, v;
  bool at_once = true;
};

class Layers {
 public:
  Layers(Backend& backend, const Case& c, const Weights& weights) : backend_(backend), weights_(weights) {
    n_tokens_ = static_cast<int>(c.lengths.size());
    n_seqs_ = c.one_sequence ? 1 : n_tokens_;
    int longest = 0;
    std::vector<int32_t> positions, offsets = {0};
    for (int t = 0; t < n_tokens_; ++t) {
      positions.push_back(c.one_sequence ? c.lengths[0] - 1 + t : c.lengths[t] - 1);
      longest = std::max(longest, positions.back() + 1);
    }
    for (int b = 0; b < n_seqs_; ++b) offsets.push_back(c.one_sequence ? n_tokens_ : b + 1);
    max_pages_ = (longest + kPageTokens - 1) / kPageTokens + 1;
    std::vector<int32_t> pages(n_seqs_ * max_pages_);
    std::iota(pages.begin(), pages.end(), 0);
    std::mt19937_64 random(5);
    std::shuffle(pages.begin(), pages.end(), random);
    n_cache_ = pages.size() * 4 * kPageTokens * 128;
    positions_ = on_device(backend, positions), offsets_ = on_device(backend, offsets), pages_ = on_device(backend, pages);
    cos_ = on_device(backend, gaussian(longest * 32, 21)), sin_ = on_device(backend, gaussian(longest * 32, 22));
    input_norm_ = on_device(backend, gaussian(kWidth, 23)), post_norm_ = on_device(backend, gaussian(kWidth, 24));
    q_norm_ = on_device(backend, gaussian(128, 25)), k_norm_ = on_device(backend, gaussian(128, 26));
    bias_ =
        on_device(backend, c.gate == Case::Gate::random ? gaussian(kExperts, 27, 0.05f) : std::vector<float>(kExperts, 0.25f));
    residual_start_ = gaussian(n_tokens_ * kWidth, 28), partial_start_ = gaussian(n_tokens_ * (kActive + 1) * kWidth, 29);
    if (c.same_rows)
      for (int t = 1; t < n_tokens_; ++t) {
        std::copy_n(residual_start_.begin(), kWidth, residual_start_.begin() + t * kWidth);
        std::copy_n(partial_start_.begin(), kWidth, partial_start_.begin() + t * kWidth);
      }
    const auto floats = [&](size_t n) { return backend.alloc(n * sizeof(float), "test activations"); };
    residual_ = floats(n_tokens_ * kWidth), normed_ = floats(n_tokens_ * kWidth), qkv_ = floats(n_tokens_ * 5120);
    query_ = floats(n_tokens_ * 4096), attended_ = floats(n_tokens_ * 4096);
    partial_ = floats(n_tokens_ * (kActive + 1) * kWidth), logits_ = floats(n_tokens_ * kExperts);
    ids_ = floats(n_tokens_ * kActive), slot_weights_ = floats(n_tokens_ * kActive), expert_offsets_ = floats(kExperts + 1),
    order_ = floats(n_tokens_ * kActive);
    k_ = backend.alloc(n_cache_ * 2, "k"), v_ = backend.alloc(n_cache_ * 2, "v");
    attention_.n_heads = 32, attention_.n_kv_heads = 4, attention_.head_dim = 128, attention_.rotary_dim = 64;
    router_.n_experts = kExperts, router_.n_active = kActive, router_.n_groups = 8, router_.n_groups_kept = 4;
    router_.scaling = 2.5f;
    batch_.n_tokens = n_tokens_, batch_.n_seqs = n_seqs_, batch_.max_pages = max_pages_;
    batch_.positions = positions_.as<int32_t>(), batch_.seq_offsets = offsets_.as<int32_t>();
    batch_.page_tables = pages_.as<int32_t>();
  }

  // All layers with the same weights; `key` 0: called plainly, else the run is recorded under it, the third time replayed.
  Result run(bool at_once, uint64_t key) {
    Result result;
    const auto layers = [&] {
      int n_pending = 1;  // as a dense layer leaves it
      for (int i = 0; i < kLayers; ++i)
        if (at_once)
          result.at_once = dynamic_cast<DecodeLayers&>(backend_).decode_layer(layer(), n_pending) && result.at_once;
        else
          by_ops(n_pending);
      backend_.reduce_add_rms_norm(residual_.as<float>(), n_pending ? partial_.as<float>() : nullptr, n_pending, nullptr,
                                   input_norm_.as<float>(), kEps, n_tokens_, kWidth, normed_.as<float>());
    };
    for (int i = 0; i < (key ? 3 : 1); ++i) {
      backend_.upload(residual_.data(), residual_start_.data(), residual_.bytes());
      backend_.upload(partial_.data(), partial_start_.data(), partial_.bytes());
      const auto device = backend_.bench_device();
      device->fill(k_.data(), DType::bf16, n_cache_, 1.0f, 31);
      device->fill(v_.data(), DType::bf16, n_cache_, 1.0f, 32);
      backend_.synchronize();
      if (key)
        backend_.run_recorded(key, layers);
      else
        layers();
    }
    result.residual = read<float>(backend_, residual_);
    result.k = read<uint16_t>(backend_, k_), result.v = read<uint16_t>(backend_, v_);
    return result;
  }

  // The cache and the attended rows of one layer, of residual stream `seed`.
  std::pair<std::vector<uint16_t>, std::vector<float>> attend(bool at_once, uint64_t seed) {
    const std::vector<float> start = gaussian(n_tokens_ * kWidth, seed);
    backend_.upload(residual_.data(), start.data(), residual_.bytes());
    backend_.synchronize();
    int n_pending = 0;
    if (at_once)
      dynamic_cast<DecodeLayers&>(backend_).decode_layer(layer(), n_pending);
    else
      by_ops(n_pending);
    return {read<uint16_t>(backend_, k_), read<float>(backend_, attended_)};
  }
  void fill_cache() {
    backend_.bench_device()->fill(k_.data(), DType::bf16, n_cache_, 1.0f, 31);
    backend_.bench_device()->fill(v_.data(), DType::bf16, n_cache_, 1.0f, 32);
  }

 private:
  KvView kv() const {
    KvView kv;
    kv.k = k_.data(), kv.v = v_.data(), kv.dtype = DType::bf16;
    return kv;
  }
  Routing routing() const {
    return {ids_.as<int32_t>(), slot_weights_.as<float>(), expert_offsets_.as<int32_t>(), order_.as<int32_t>()};
  }

  DecodeLayer layer() const {
    return {.batch = batch_,
            .attention = attention_,
            .router = router_,
            .width = kWidth,
            .eps = kEps,
            .input_norm = input_norm_.as<float>(),
            .post_attention_norm = post_norm_.as<float>(),
            .q_norm = q_norm_.as<float>(),
            .k_norm = k_norm_.as<float>(),
            .rope_cos = cos_.as<float>(),
            .rope_sin = sin_.as<float>(),
            .qkv = weights_.qkv.get(),
            .attn_out = weights_.out.get(),
            .gate = weights_.gate.get(),
            .gate_bias = bias_.as<float>(),
            .experts = weights_.experts,
            .kv = kv(),
            .residual = residual_.as<float>(),
            .normed = normed_.as<float>(),
            .qkv_out = qkv_.as<float>(),
            .query = query_.as<float>(),
            .attended = attended_.as<float>(),
            .partial = partial_.as<float>(),
            .router_logits = logits_.as<float>(),
            .routing = routing()};
  }

  void by_ops(int& n_pending) {
    const auto norm = [&](const DeviceBuffer& weight) {
      backend_.reduce_add_rms_norm(residual_.as<float>(), partial_.as<float>(), n_pending, nullptr, weight.as<float>(), kEps,
                                   n_tokens_, kWidth, normed_.as<float>());
    };
    norm(input_norm_);
    backend_.linear(normed_.as<float>(), *weights_.qkv, n_tokens_, qkv_.as<float>());
    backend_.qk_norm_rope_store(batch_, attention_, qkv_.as<float>(), q_norm_.as<float>(), k_norm_.as<float>(), kEps,
                                cos_.as<float>(), sin_.as<float>(), kv(), query_.as<float>());
    backend_.attention(batch_, attention_, query_.as<float>(), kv(), attended_.as<float>());
    backend_.linear(attended_.as<float>(), *weights_.out, n_tokens_, partial_.as<float>());
    n_pending = 1;
    norm(post_norm_);
    backend_.route(normed_.as<float>(), *weights_.gate, bias_.as<float>(), router_, n_tokens_, nullptr, logits_.as<float>(),
                   routing());
    backend_.experts(normed_.as<float>(), weights_.experts, routing(), kActive, n_tokens_, kWidth, partial_.as<float>());
    n_pending = kActive + 1;
  }

  Backend& backend_;
  const Weights& weights_;
  int n_tokens_ = 0, n_seqs_ = 0, max_pages_ = 0;
  size_t n_cache_ = 0;
  std::vector<float> residual_start_, partial_start_;
  AttentionShape attention_;
  RouterShape router_;
  BatchView batch_;
  DeviceBuffer positions_, offsets_, pages_, cos_, sin_, input_norm_, post_norm_, q_norm_, k_norm_, bias_, residual_, normed_,
      qkv_, query_, attended_, partial_, logits_, ids_, slot_weights_, expert_offsets_, order_, k_, v_;
};

// A Hopper GPU's backend, or null after saying why there is none.
std::unique_ptr<Backend> hopper() {
  for (const DeviceReport& report : list_devices())
    if (report.device == "cuda") {
      if (!report.available) {
        std::printf("cuda few rows: skipped, %s\n", report.detail.c_str());
        return nullptr;
      }
      auto backend = create_backend("cuda", {});
      if (backend->info().kernels == "sm_90") return backend;
      std::printf("cuda few rows: skipped, %s has %s\n", backend->info().name.c_str(), backend->info().kernels.c_str());
    }
  return nullptr;
}

}  // namespace

TEST_CASE("cuda few rows: a layer at once has the bits of the ops, called, recorded and replayed") {
  const auto backend = hopper();
  if (!backend) return;
  using Gate = Case::Gate;
  const std::vector<Case> cases = {{{1}},
                                   {{2}},
                                   {{16}},
                                   {{17}},
                                   {{128}},
                                   {{129}},
                                   {{1000}},
                                   {{1025}},
                                   {{2100}},
                                   {{5000}},
                                   {{8060}},
                                   {{8300}},
                                   {{700}, false, Gate::pairs_alike},
                                   {{700}, false, Gate::all_alike},
                                   {{1000, 17}},
                                   {{1, 1025, 300}},
                                   {{1000, 1, 64, 2049}},
                                   {{3200, 2049, 7}},
                                   {{40, 40, 40}, false, Gate::random, WeightFormat::fp8, true},
                                   {{500, 0, 0}, true},
                                   {{1000}, false, Gate::random, WeightFormat::bf16},
                                   {{90, 1000}, false, Gate::random, WeightFormat::bf16}};
  uint64_t key = 1;
  for (const WeightFormat format : {WeightFormat::fp8, WeightFormat::bf16})
    for (const Gate gate : {Gate::random, Gate::pairs_alike, Gate::all_alike}) {
      std::unique_ptr<Weights> weights;
      for (const Case& c : cases) {
        if (c.format != format || c.gate != gate) continue;
        if (!weights) weights = std::make_unique<Weights>(*backend, format, gate);
        CAPTURE(c.lengths.size());
        CAPTURE(c.lengths[0]);
        CAPTURE(static_cast<int>(gate));
        CAPTURE(weight_format_name(format));
        Layers layers(*backend, c, *weights);
        const Result expected = layers.run(false, 0);
        for (const uint64_t recorded : {uint64_t{0}, key++}) {
          CAPTURE(recorded);
          const Result found = layers.run(true, recorded);
          CHECK(found.at_once);
          CHECK(std::isfinite(found.residual[0]));
          CHECK(found.residual == expected.residual);
          CHECK(found.k == expected.k);
          CHECK(found.v == expected.v);
        }
      }
    }
}

// A difference in the last bit of a float32 shows in one key of 100,000 that is stored in BF16: many rows find it.
TEST_CASE("cuda few rows: of many rows every key and every attended value has the bits of the ops") {
  const auto backend = hopper();
  if (!backend) return;
  const bool small = std::getenv("SIGMOE_TEST_SMALL") != nullptr;
  for (const Case& c : std::vector<Case>{{{1024}}, {{60}}, {{17, 300}}, {{2100}}, {{3200, 2049}}}) {
    const Weights weights(*backend, c.format, Case::Gate::all_alike);
    Layers layers(*backend, c, weights);
    CAPTURE(c.lengths[0]);
    layers.fill_cache();
    int n_keys_differ = 0, n_values_differ = 0;
    for (uint64_t seed = 1000; seed < (small ? 1003 : 1300); ++seed) {
      const auto expected = layers.attend(false, seed), found = layers.attend(true, seed);
      n_keys_differ += found.first != expected.first;
      n_values_differ += found.second != expected.second;
    }
    CHECK(n_keys_differ == 0);
    CHECK(n_values_differ == 0);
  }
}
