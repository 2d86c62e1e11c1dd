// Heads, attention, routing, experts and sampling: a tiling each, and what their kernels find in device memory.
#include <algorithm>

#include "ascend/device/args/weight_layout.h"
#include "ascend/host/ascend_backend.h"
#include "ascend/host/tiling_attention.h"
#include "ascend/host/tiling_experts.h"
#include "ascend/host/tiling_qk_norm_rope_store.h"
#include "ascend/host/tiling_route.h"
#include "ascend/host/tiling_sample.h"

namespace sigmoe::ascend {

void AscendBackend::qk_norm_rope_store(const BatchView& batch, const AttentionShape& shape, const float* qkv,
                                       const float* q_norm, const float* k_norm, float eps, const float* cos, const float* sin,
                                       const KvView& kv, float* q_out) {
  if (batch.n_tokens == 0) return;
  const QkNormRopeStoreTiling tiling =
      make_qk_norm_rope_store_tiling(batch, shape, q_norm != nullptr, k_norm != nullptr, eps, kv.dtype, device_.cores());
  device_.launch(Kernel::qk_norm_rope_store, qk_norm_rope_store_blocks(tiling, device_.cores()),
                 {qkv, q_norm, k_norm, cos, sin, batch.positions, batch.seq_offsets, batch.page_tables, kv.k, kv.v, q_out},
                 tiling);
  wrote(q_out, int64_t{batch.n_tokens} * shape.n_heads * shape.head_dim);
}

void AscendBackend::attention(const BatchView& batch, const AttentionShape& shape, const float* q, const KvView& kv,
                              float* out) {
  if (batch.n_tokens == 0) return;
  const int64_t width = int64_t{shape.n_heads} * shape.head_dim;
  wrote(out, batch.n_tokens * width);
  const Cores cores = device_.cores();
  AttentionWork work{batch.n_tokens, batch.n_seqs, batch.max_pages, shape.n_heads, shape.n_kv_heads, shape.head_dim};
  if (kv.dtype == DType::f32) {
    const AttentionTiling tiling = make_attention_tiling(work, cores);
    return device_.launch(Kernel::attention_f32, static_cast<uint32_t>(cores.aiv),
                          {q, kv.k, kv.v, batch.positions, batch.seq_offsets, batch.page_tables, out}, tiling);
  }
  work.shadow = begin_shadow(attended_shadow_, out, batch.n_tokens, width);
  work.shadow_pitch = row_pitch(width, static_cast<int64_t>(dtype_bytes(compute_)));
  const AttentionTiling tiling = make_attention_tiling(work, cores);
  device_.launch(Kernel::attention_bf16, static_cast<uint32_t>(cores.aic),
                 {q, kv.k, kv.v, batch.positions, batch.seq_offsets, batch.page_tables,
                  scratch<std::byte>(workspace_, attention_work_bytes(tiling)), out, attended_shadow_.rows.memory.data(),
                  attended_shadow_.scales.memory.data()},
                 tiling);
}

void AscendBackend::route(const float* x, const LinearWeight& gate, const float* bias, const RouterShape& shape, int n_tokens,
                          const int32_t* forced_ids, float* logits, const Routing& out) {
  if (n_tokens == 0) return zero(out.expert_offsets, (shape.n_experts + 1) * sizeof(int32_t));
  const AscendWeight& weight = weight_of(gate);
  SIGMOE_CHECK(weight.plain, "a router's weight is kept as float32 rows");
  int32_t* forced = nullptr;
  if (forced_ids) {
    const size_t n = static_cast<size_t>(n_tokens) * shape.n_active;
    forced = scratch<int32_t>(forced_, n);
    upload(forced, forced_ids, n * sizeof(int32_t));
  }
  const RouteTiling tiling =
      make_route_tiling(shape, n_tokens, static_cast<int>(weight.k), forced_ids != nullptr, device_.cores());
  device_.launch(Kernel::route, route_blocks(tiling, device_.cores()),
                 {x, weight.data.data, bias, forced, logits, out.expert_ids, out.weights, out.expert_offsets, out.slot_order},
                 tiling);
}

// ---- experts ---------------------------------------------------------------------------------------------------------

// The addresses of a layer's weights as the kernel finds them (args/experts.h).
struct AscendBackend::ExpertTable {
  std::vector<const LinearWeight*> gate_up, down;  // what the table was made of
  const LinearWeight *shared_gate_up, *shared_down;
  int64_t inner = 0, shared_inner = 0;
  DType dtype = DType::bf16;
  DeviceBuffer addresses;  // (4, E + 1) u64
};

const AscendBackend::ExpertTable& AscendBackend::table_of(const ExpertWeights& weights) {
  const auto* known = static_cast<const ExpertTable*>(weights.prepared.get());
  if (known && known->gate_up == weights.gate_up && known->down == weights.down &&
      known->shared_gate_up == weights.shared_gate_up && known->shared_down == weights.shared_down)
    return *known;
  auto table = std::make_shared<ExpertTable>();
  table->gate_up = weights.gate_up;
  table->down = weights.down;
  table->shared_gate_up = weights.shared_gate_up;
  table->shared_down = weights.shared_down;
  table->dtype = compute_;
  const size_t n_columns = weights.gate_up.size() + 1;
  std::vector<uint64_t> addresses(kExpertTables * n_columns);
  const auto enter = [&](size_t column, const LinearWeight* gate_up, const LinearWeight* down, int64_t& inner) {
    if (!gate_up || !down) return;
    const AscendWeight &up = weight_of(*gate_up), &back = weight_of(*down);
    SIGMOE_CHECK(inner == 0 || inner == back.k, "experts of one layer differ in width");
    inner = back.k;
    addresses[kGateUp * n_columns + column] = reinterpret_cast<uintptr_t>(up.data.data);
    addresses[kDown * n_columns + column] = reinterpret_cast<uintptr_t>(back.data.data);
    addresses[kGateUpScales * n_columns + column] = reinterpret_cast<uintptr_t>(up.scales.data);
    addresses[kDownScales * n_columns + column] = reinterpret_cast<uintptr_t>(back.scales.data);
  };
  for (size_t e = 0; e < weights.gate_up.size(); ++e) enter(e, weights.gate_up[e], weights.down[e], table->inner);
  enter(n_columns - 1, weights.shared_gate_up, weights.shared_down, table->shared_inner);
  const size_t bytes = addresses.size() * sizeof(uint64_t);
  table->addresses = alloc(bytes, "expert tables");
  device_.upload_at_once(table->addresses.data(), addresses.data(), bytes);
  weights.prepared = table;
  return *table;
}

void AscendBackend::experts(const float* x, const ExpertWeights& weights, const Routing& routing, int n_active, int n_tokens,
                            int width, float* out) {
  if (n_tokens == 0) return;
  const ExpertTable& table = table_of(weights);
  const Operand rows = operand(x, nullptr, n_tokens, width, compute_);
  ExpertsShape shape;
  shape.tokens = n_tokens;
  shape.width = width;
  shape.inner = n_active > 0 ? table.inner : 0;
  shape.shared_inner = table.shared_inner;
  shape.n_experts = static_cast<int64_t>(weights.gate_up.size());
  shape.n_active = n_active;
  shape.shared = n_active == 0 || weights.shared_gate_up;
  shape.x_pitch = rows.pitch;
  shape.element_bytes = static_cast<int64_t>(dtype_bytes(compute_));
  const ExpertsTiling tiling = make_experts_tiling(shape, device_.cores());
  const Kernel kernel = compute_ == DType::i8     ? Kernel::experts_int8
                        : compute_ == DType::bf16 ? Kernel::experts_bf16
                                                  : Kernel::experts_f32;
  device_.launch(kernel, static_cast<uint32_t>(device_.cores().aic),
                 {rows.rows, rows.scales, table.addresses.data(), routing.expert_offsets, routing.slot_order, routing.weights,
                  scratch<std::byte>(workspace_, experts_work_bytes(tiling)), out},
                 tiling);
  wrote(out, int64_t{n_tokens} * (n_active + (shape.shared ? 1 : 0)) * width);
}

// ---- sampling --------------------------------------------------------------------------------------------------------

void AscendBackend::sample(const SampleArgs& args) {
  if (args.n_rows == 0) return;
  const Cores cores = device_.cores();
  const SampleTiling tiling = make_sample_tiling(args.n_rows, args.vocab_size);
  auto* workspace = scratch<std::byte>(workspace_, sample_workspace_bytes(tiling, cores));
  device_.launch(Kernel::sample, sample_blocks(tiling, cores),
                 {args.logits, args.rows, args.bias_ids, args.bias_values, args.ban_ids, args.masks, args.counts, args.tokens,
                  args.logprobs, args.top_ids, args.top_logprobs, workspace},
                 tiling);
}

void AscendBackend::reset_counts(uint32_t* counts_row, int vocab_size, const int32_t* prompt, int n_prompt,
                                 const int32_t* generated, int n_generated) {
  constexpr uint32_t kInPrompt = 0x80000000u;
  std::vector<uint32_t> counts(vocab_size);
  for (int i = 0; i < n_prompt; ++i) counts[prompt[i]] |= kInPrompt;
  for (int i = 0; i < n_generated; ++i) ++counts[generated[i]];
  upload(counts_row, counts.data(), counts.size() * sizeof(uint32_t));
}

}  // namespace sigmoe::ascend
