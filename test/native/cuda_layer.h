// What the tests of whole MoE layers on CUDA share (test_cuda_few_rows.cpp, test_cuda_rank_rows.cpp): random weights at the
// model's shapes, all of a layer or a rank's part, and rows that go through such layers by the ops or each layer at once.
#pragma once

#include <algorithm>
#include <cstdio>
#include <memory>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "backend/bench_device.h"
#include "backend/decode_layer.h"
#include "cuda_testing.h"

namespace sigmoe::testing {

constexpr int kWidth = 4096, kInner = 1024, kExperts = 256, kActive = 8;
constexpr float kEps = 1e-6f;

// A Hopper GPU's backend, or null after saying why there is none and which tests that skips.
inline std::unique_ptr<Backend> hopper(const char* tests) {
  for (const DeviceReport& report : list_devices())
    if (report.device == "cuda") {
      if (!report.available) {
        std::printf("%s: skipped, %s\n", tests, report.detail.c_str());
        return nullptr;
      }
      auto backend = create_backend("cuda", {});
      if (backend->info().kernels == "sm_90") return backend;
      std::printf("%s: skipped, %s has %s\n", tests, backend->info().name.c_str(), backend->info().kernels.c_str());
    }
  return nullptr;
}

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

// Which part of a layer is there.
struct RankPart {
  int rank = 0, world = 1;
  bool whole_experts = false;  // each on one rank, else a part of each on all
};

// Rows of the gate: each its own, every two alike, or all.
enum class Gate { random, pairs_alike, all_alike };

// Weights of one layer; its routed experts share four sets of weights.
struct MoeWeights {
  RankPart part;
  std::unique_ptr<LinearWeight> qkv, out, gate, shared_up, shared_down, up[4], down[4];
  ExpertWeights experts;

  MoeWeights(Backend& backend, WeightFormat format, Gate kind, const RankPart& part = {}) : part(part) {
    const int rank = part.rank, world = part.world, inner = part.whole_experts ? kInner : kInner / world;
    const auto made = backend.bench_device();
    const auto random = [&](int64_t n, int64_t k, bool gate_up, uint64_t seed) {
      const LinearDesc desc{
          format,         n, k, format == WeightFormat::fp8 ? blocks_of(k, 128) : std::vector<int64_t>{}, gate_up, "random",
          LinearUse::body};
      return made->random_linear(desc, seed + 100 * rank);
    };
    qkv = random(5120 / world, kWidth, false, 1);
    out = random(kWidth, 4096 / world, false, 2);
    shared_up = random(2 * kInner / world, kWidth, true, 3);
    shared_down = random(kWidth, kInner / world, false, 4);
    for (int i = 0; i < 4; ++i) up[i] = random(2 * inner, kWidth, true, 5 + i), down[i] = random(kWidth, inner, false, 9 + i);
    for (int e = 0; e < kExperts; ++e) {
      const bool here = !part.whole_experts || e * world / kExperts == rank;
      experts.gate_up.push_back(here ? up[e % 4].get() : nullptr), experts.down.push_back(here ? down[e % 4].get() : nullptr);
    }
    experts.shared_gate_up = shared_up.get(), experts.shared_down = shared_down.get();
    HostWeight host = random_weight(WeightFormat::bf16, kExperts, kWidth, {}, 0, 13);
    host.desc.use = LinearUse::router;
    for (int e = 0; e < kExperts; ++e)
      if (const int from = kind == Gate::random ? e : kind == Gate::all_alike ? 0 : e / 2 * 2; from != e)
        std::copy_n(host.rows.data() + from * host.stride(), host.stride(), host.rows.data() + e * host.stride());
    gate = host.put(backend);
  }
};

// Rows that come to the layers: where they are in their sequences, and what a dense layer left of them.
struct MoeRows {
  int n_tokens, n_seqs, longest = 0, max_pages;
  std::vector<int32_t> positions, offsets = {0}, pages;
  bool flat_bias = false;                // where the router chooses, every expert's is the same
  std::vector<float> residual, partial;  // `partial` may have more slots than the one that counts

  // `lengths` of each row's sequence, its own token included; in one sequence the rows follow each other and the first counts.
  MoeRows(const std::vector<int>& lengths, bool one_sequence, int n_spare_pages, size_t n_partial_slots, uint64_t partial_seed)
      : n_tokens(static_cast<int>(lengths.size())), n_seqs(one_sequence ? 1 : n_tokens) {
    for (int t = 0; t < n_tokens; ++t) {
      positions.push_back(one_sequence ? lengths[0] - 1 + t : lengths[t] - 1);
      longest = std::max(longest, positions.back() + 1);
    }
    for (int b = 0; b < n_seqs; ++b) offsets.push_back(one_sequence ? n_tokens : b + 1);
    max_pages = (longest + kPageTokens - 1) / kPageTokens + n_spare_pages;
    pages.resize(n_seqs * max_pages);
    std::iota(pages.begin(), pages.end(), 0);
    residual = gaussian(n_tokens * kWidth, 28), partial = gaussian(n_tokens * n_partial_slots * kWidth, partial_seed);
  }
};

// What layers leave: the residual stream after all sums, its norm, and the cache.
struct MoeResult {
  std::vector<float> residual, normed;
  std::vector<uint16_t> k, v;
  bool at_once = true;
};

// Layers that share their weights and a cache, and the rows that go through them; with a Comm, a rank's part of both.
class MoeLayers {
 public:
  MoeLayers(Backend& backend, const MoeWeights& weights, const MoeRows& rows, Comm* comm = nullptr)
      : backend_(backend),
        weights_(weights),
        comm_(comm),
        n_tokens_(rows.n_tokens),
        residual_start_(rows.residual),
        partial_start_(rows.partial) {
    const int world = weights.part.world;
    n_cache_ = rows.pages.size() * (4 / world) * kPageTokens * 128;
    positions_ = on_device(backend, rows.positions), offsets_ = on_device(backend, rows.offsets);
    pages_ = on_device(backend, rows.pages);
    cos_ = on_device(backend, gaussian(rows.longest * 32, 21)), sin_ = on_device(backend, gaussian(rows.longest * 32, 22));
    input_norm_ = on_device(backend, gaussian(kWidth, 23)), post_norm_ = on_device(backend, gaussian(kWidth, 24));
    q_norm_ = on_device(backend, gaussian(128, 25)), k_norm_ = on_device(backend, gaussian(128, 26));
    bias_ = on_device(backend, rows.flat_bias ? std::vector<float>(kExperts, 0.25f) : gaussian(kExperts, 27, 0.05f));
    const auto floats = [&](size_t n) { return backend.alloc(n * sizeof(float), "test activations"); };
    residual_ = floats(n_tokens_ * kWidth), normed_ = floats(n_tokens_ * kWidth), qkv_ = floats(n_tokens_ * 5120);
    query_ = floats(n_tokens_ * 4096), attended_ = floats(n_tokens_ * 4096);
    partial_ = floats(n_tokens_ * (kActive + 1) * kWidth), logits_ = floats(n_tokens_ * kExperts);
    ids_ = floats(n_tokens_ * kActive), slot_weights_ = floats(n_tokens_ * kActive), expert_offsets_ = floats(kExperts + 1),
    order_ = floats(n_tokens_ * kActive);
    k_ = backend.alloc(n_cache_ * 2, "k"), v_ = backend.alloc(n_cache_ * 2, "v");
    attention_.n_heads = 32 / world, attention_.n_kv_heads = 4 / world, attention_.head_dim = 128, attention_.rotary_dim = 64;
    router_.n_experts = kExperts, router_.n_active = kActive, router_.n_groups = 8, router_.n_groups_kept = 4;
    router_.scaling = 2.5f;
    batch_.n_tokens = n_tokens_, batch_.n_seqs = rows.n_seqs, batch_.max_pages = rows.max_pages;
    batch_.positions = positions_.as<int32_t>(), batch_.seq_offsets = offsets_.as<int32_t>();
    batch_.page_tables = pages_.as<int32_t>();
  }

  // One layer after the other, each at once where `at_once` says so, n_runs times from the same start; the result is the last
  // run's. `key` 0: called plainly, else recorded under it, the third time replayed. `alike` becomes false where a run left
  // another residual stream than the one before.
  MoeResult run(const std::vector<bool>& at_once, uint64_t key, int n_runs = 1, bool* alike = nullptr) {
    MoeResult result;
    const auto layers = [&] {
      int n_pending = 1;  // as a dense layer leaves it
      for (const bool whole : at_once)
        if (whole)
          result.at_once = layer_at_once(n_pending) && result.at_once;
        else
          by_ops(n_pending);
      norm(input_norm_, n_pending ? partial_.as<float>() : nullptr, n_pending);
    };
    for (int i = 0; i < n_runs; ++i) {
      backend_.upload(residual_.data(), residual_start_.data(), residual_start_.size() * sizeof(float));
      backend_.upload(partial_.data(), partial_start_.data(), partial_start_.size() * sizeof(float));
      const auto device = backend_.bench_device();
      fill_cache(*device);
      backend_.synchronize();
      if (key)
        backend_.run_recorded(key, layers);
      else
        layers();
      if (!alike && i + 1 < n_runs) continue;
      const std::vector<float> before = std::move(result.residual);
      result.residual = read<float>(backend_, residual_);
      if (alike && i > 0) *alike = *alike && before == result.residual;
    }
    result.normed = read<float>(backend_, normed_);
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
      layer_at_once(n_pending);
    else
      by_ops(n_pending);
    return {read<uint16_t>(backend_, k_), read<float>(backend_, attended_)};
  }
  void fill_cache(BenchDevice& device) {
    device.fill(k_.data(), DType::bf16, n_cache_, 1.0f, 31);
    device.fill(v_.data(), DType::bf16, n_cache_, 1.0f, 32);
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
    return {.comm = comm_,
            .batch = batch_,
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

  bool layer_at_once(int& n_pending) { return dynamic_cast<DecodeLayers&>(backend_).decode_layer(layer(), n_pending); }

  void norm(const DeviceBuffer& weight, float* addend, int n_slots) {
    backend_.reduce_add_rms_norm(residual_.as<float>(), addend, n_slots, comm_, weight.as<float>(), kEps, n_tokens_, kWidth,
                                 normed_.as<float>());
  }
  void by_ops(int& n_pending) {
    norm(input_norm_, partial_.as<float>(), n_pending);
    backend_.linear(normed_.as<float>(), *weights_.qkv, n_tokens_, qkv_.as<float>());
    backend_.qk_norm_rope_store(batch_, attention_, qkv_.as<float>(), q_norm_.as<float>(), k_norm_.as<float>(), kEps,
                                cos_.as<float>(), sin_.as<float>(), kv(), query_.as<float>());
    backend_.attention(batch_, attention_, query_.as<float>(), kv(), attended_.as<float>());
    backend_.linear(attended_.as<float>(), *weights_.out, n_tokens_, partial_.as<float>());
    norm(post_norm_, partial_.as<float>(), 1);
    backend_.route(normed_.as<float>(), *weights_.gate, bias_.as<float>(), router_, n_tokens_, nullptr, logits_.as<float>(),
                   routing());
    backend_.experts(normed_.as<float>(), weights_.experts, routing(), kActive, n_tokens_, kWidth, partial_.as<float>());
    n_pending = kActive + 1;
  }

  Backend& backend_;
  const MoeWeights& weights_;
  Comm* comm_;
  int n_tokens_;
  size_t n_cache_ = 0;
  std::vector<float> residual_start_, partial_start_;
  AttentionShape attention_;
  RouterShape router_;
  BatchView batch_;
  DeviceBuffer positions_, offsets_, pages_, cos_, sin_, input_norm_, post_norm_, q_norm_, k_norm_, bias_, residual_, normed_,
      qkv_, query_, attended_, partial_, logits_, ids_, slot_weights_, expert_offsets_, order_, k_, v_;
};

}  // namespace sigmoe::testing
