// How dimensions are cut over the ranks of a world, and how many parameters each part of a model has.
#include <algorithm>

#include "engine/checkpoint/checkpoint_spec.h"
#include "engine/weights/weights.h"

namespace sigmoe {

Shard shard_range(int64_t size, int64_t unit, int rank, int world) {
  const int64_t units = (size + unit - 1) / unit, each = units / world, extra = units % world;
  const auto begin = [&](int64_t r) { return std::min(size, (r * each + std::min(r, extra)) * unit); };
  return {begin(rank), begin(rank + 1)};
}

Shard shard_width(const QuantConfig& quant, const StoredLinear& down, int rank, int world) {
  int64_t unit = 16;
  if (down.method == QuantMethod::fp8_block)
    unit = quant.block_k;
  else if (down.method == QuantMethod::int4_group)
    unit = down.k / quant.group >= world ? quant.group : 8;
  else
    while (unit > 1 && (down.k + unit - 1) / unit < world) unit /= 2;
  return shard_range(down.k, unit, rank, world);
}

HeadShard shard_heads(const ModelConfig& config, int rank, int world) {
  const int64_t H = config.n_heads, G = config.n_kv_heads;
  const bool divides = world <= H ? H % world == 0 && (world <= G ? G % world == 0 : world % G == 0) : world % H == 0;
  if (!divides)
    throw EngineError(
        ErrorCode::unsupported,
        std::to_string(H) + " query heads and " + std::to_string(G) + " KV heads over " + std::to_string(world) + " ranks",
        "choose a tensorParallelSize that divides the heads");
  if (world > H) {  // every so many ranks one has a head, and the others none
    const int64_t each = world / H, head = rank / each, kv = head / (H / G);
    const int64_t n = rank % each == 0 ? 1 : 0;
    return {{head, head + n}, {kv, kv + n}};
  }
  const Shard q{rank * (H / world), (rank + 1) * (H / world)};
  if (world <= G) return {q, {rank * (G / world), (rank + 1) * (G / world)}};
  const int64_t head = rank / (world / G);  // world / G ranks read the same KV head
  return {q, {head, head + 1}};
}

ParameterCount count_parameters(const ModelConfig& config) {
  const int64_t D = config.hidden_size, Dh = config.head_dim, H = config.n_heads, G = config.n_kv_heads, E = config.n_experts;
  const int64_t moe_layers = config.n_layers - config.n_dense_layers;
  const int64_t attention = (H + 2 * G) * Dh * D + D * H * Dh;
  const int64_t norms = 2 * D + (config.qk_norm ? 2 * Dh : 0);
  const int64_t experts = E * 3 * D * config.expert_width, shared = 3 * D * config.shared_width;
  const int64_t router = E * D;  // the bias is not a trained weight and not counted
  ParameterCount out;
  out.embedding = config.vocab_size * D;
  out.head = config.tied_embeddings ? 0 : config.vocab_size * D;
  out.attention = config.n_layers * attention;
  out.dense_mlp = config.n_dense_layers * 3 * D * config.dense_width;
  out.routed_experts = moe_layers * experts;
  out.shared_experts = moe_layers * shared;
  out.router = moe_layers * router;
  out.norms = config.n_layers * norms + D;
  out.mtp = config.n_mtp_layers * (attention + norms + experts + shared + router + 3 * D + 2 * D * D);
  out.routed_active = moe_layers * config.n_active * 3 * D * config.expert_width;
  return out;
}

int64_t ParameterCount::total() const {
  return embedding + head + attention + dense_mlp + routed_experts + shared_experts + router + norms;
}

int64_t ParameterCount::active() const { return attention + dense_mlp + routed_active + shared_experts + router; }

}  // namespace sigmoe
