// Expert layers: the tables of their weights, and the kernels by the number of tokens of the step.
#include <algorithm>

#include "cuda/cuda_backend.h"
#include "cuda/narrow_experts.h"
#include "cuda/ops.h"

namespace sigmoe::cuda {
namespace {

bool same_shape(const WeightView& a, const WeightView& b) { return shape_of(a) == shape_of(b); }

// What the products of many rows, gate-up and down, have alike: weights, whose rows, and the list of row tiles that
// launch_pack_rows is to make in `room`, whose first place holds the count.
template <typename Args, typename ExpertTable>
TilePlan plan_products(Args& up, Args& down, const ExpertWeights& weights, const ExpertTable& table, const Routing& routing,
                       bool shared, int n_active, int n_slots, int n_experts, int n_shared, int tile_rows, RowTile* room) {
  up.mode = GemmMode::gate_up;
  down.mode = GemmMode::down;
  up.weight = shared ? view_of(*weights.shared_gate_up) : table.gate_up_shape;
  down.weight = shared ? view_of(*weights.shared_down) : table.down_shape;
  up.experts = table.gate_up_tiles.template as<ExpertTiles>();
  down.experts = table.down_tiles.template as<ExpertTiles>();

  TilePlan plan;
  plan.expert_offsets = routing.expert_offsets;
  plan.experts = up.experts;
  plan.n_experts = n_experts;
  plan.n_shared = n_shared;
  plan.tile_rows = tile_rows;
  plan.n_tiles = reinterpret_cast<int32_t*>(room);
  plan.tiles = room + 1;
  for (Args* args : {&up, &down}) {
    args->tiles = plan.tiles;
    args->n_tiles = plan.n_tiles;
    args->n_experts = n_experts;
    args->slot_order = routing.slot_order;
    args->slot_weights = routing.weights;
    args->n_active = n_active;
    args->n_slots = n_slots;
  }
  return plan;
}

}  // namespace

const CudaBackend::ExpertTable& CudaBackend::table_of(const ExpertWeights& weights) {
  const auto* known = static_cast<const ExpertTable*>(weights.prepared.get());
  if (known && known->gate_up == weights.gate_up && known->down == weights.down) return *known;
  auto table = std::make_shared<ExpertTable>();
  table->gate_up = weights.gate_up;
  table->down = weights.down;
  const auto fill = [&](const std::vector<const LinearWeight*>& experts, WeightView& shape, DeviceBuffer& tiles,
                        DeviceBuffer& views) {
    std::vector<ExpertTiles> host_tiles(experts.size());
    std::vector<WeightView> host_views(experts.size());
    bool first = true;
    for (size_t e = 0; e < experts.size(); ++e) {
      if (!experts[e]) {
        table->complete = false;
        continue;
      }
      host_views[e] = view_of(*experts[e]);
      host_tiles[e] = {host_views[e].tiles, host_views[e].scales};
      if (first) shape = host_views[e];
      first = false;
      table->uniform = table->uniform && same_shape(shape, host_views[e]);
    }
    shape.tiles = nullptr;
    shape.scales = nullptr;
    tiles = alloc(host_tiles.size() * sizeof(ExpertTiles), "expert tables");
    views = alloc(host_views.size() * sizeof(WeightView), "expert tables");
    upload(tiles.data(), host_tiles.data(), host_tiles.size() * sizeof(ExpertTiles));
    upload(views.data(), host_views.data(), host_views.size() * sizeof(WeightView));
  };
  fill(weights.gate_up, table->gate_up_shape, table->gate_up_tiles, table->gate_up_views);
  fill(weights.down, table->down_shape, table->down_tiles, table->down_views);
  weights.prepared = table;
  return *table;
}

void CudaBackend::experts(const float* x, const ExpertWeights& weights, const Routing& routing, int n_active, int n_tokens,
                          int width, float* out) {
  writes(out);
  floats(x);
  if (n_tokens == 0) return;
  const ExpertTable& table = table_of(weights);
  const int n_slots = n_active + (n_active == 0 || weights.shared_gate_up ? 1 : 0);
  const bool nothing_shared = n_active == 0 && !weights.shared_gate_up;
  if ((n_active > 0 && !table.complete) || nothing_shared)  // this rank's missing shares stay zero
    zero(out, static_cast<size_t>(n_tokens) * n_slots * width * sizeof(float));
  if (nothing_shared) return;
  const ClassChoice choice = choose_experts(facts_, shapes_of(weights, table, n_active), n_tokens);
  const bool by_tensor = choice.rows == RowClass::tensor;
  if (by_tensor || choice.rows == RowClass::mma) {
    const auto run = by_tensor ? &CudaBackend::run_many_experts : &CudaBackend::run_mma_experts;
    if (!by_tensor) note("experts", n_tokens, choice.with({Kernel::mma_gemm, Kernel::none, {}}));
    const bool routed = n_active > 0 && table.gate_up_shape.n > 0, shared = weights.shared_gate_up != nullptr;
    const bool alike = routed && shared && same_shape(view_of(*weights.shared_gate_up), table.gate_up_shape) &&
                       same_shape(view_of(*weights.shared_down), table.down_shape);
    if (routed) (this->*run)(x, weights, table, routing, true, alike, n_active, n_tokens, n_slots, out);
    if (shared && !alike) (this->*run)(x, weights, table, routing, false, true, n_active, n_tokens, n_slots, out);
    // A rank without a share of any expert takes every kernel, at any number of rows, and writes nothing: its zeros are floats.
    if (by_tensor && n_tokens >= kManyExpertRows) leave_brief(out, static_cast<size_t>(n_tokens) * n_slots * width);
    return;
  }
  if (choice.rows == RowClass::few)
    return run_experts(x, weights, table, routing, n_active, n_tokens, n_slots, width, choice, out);

  note("experts", n_tokens, choice.with({Kernel::exact_experts, Kernel::none, {}}));
  ExactExperts args;
  args.gate_up = table.gate_up_views.as<WeightView>();
  args.down = table.down_views.as<WeightView>();
  if (weights.shared_gate_up)
    args.shared_gate_up = view_of(*weights.shared_gate_up), args.shared_down = view_of(*weights.shared_down);
  args.expert_ids = routing.expert_ids;
  args.slot_weights = routing.weights;
  args.n_tokens = n_tokens, args.n_active = n_active, args.n_slots = n_slots, args.width = width;
  args.inner_stride = args.shared_gate_up.n / 2;
  if (n_active > 0)
    for (const LinearWeight* weight : weights.gate_up)
      if (weight) args.inner_stride = std::max(args.inner_stride, view_of(*weight).n / 2);
  if (args.inner_stride == 0) return;
  launch_exact_experts(queue_, args, x, scratch<float>(inner_, static_cast<size_t>(n_tokens) * n_slots * args.inner_stride),
                       out);
}

ExpertShapes CudaBackend::shapes_of(const ExpertWeights& weights, const ExpertTable& table, int n_active) {
  ExpertShapes shapes{n_active, table.uniform, shape_of(table.gate_up_shape), shape_of(table.down_shape), false, {}, {}};
  if (!weights.shared_gate_up) return shapes;
  shapes.has_shared = true;
  shapes.shared_gate_up = shape_of(view_of(*weights.shared_gate_up));
  shapes.shared_down = shape_of(view_of(*weights.shared_down));
  return shapes;
}

// The same by narrow_experts.h: steps that are not long, with lists of their own.
void CudaBackend::run_narrow_experts(const float* x, const ExpertWeights& weights, const ExpertTable& table,
                                     const Routing& routing, bool shared, int n_active, int n_tokens, int n_slots, float* out) {
  NarrowArgs up, down;
  GemmArgs& common = up.gemm;
  common.n_tokens = n_tokens;
  common.n_active = n_active;
  common.n_slots = n_slots;
  common.n_experts = static_cast<int>(weights.gate_up.size());
  common.expert_offsets = routing.expert_offsets;
  common.slot_order = routing.slot_order;
  common.slot_weights = routing.weights;
  down.gemm = common;
  up.gemm.mode = GemmMode::gate_up;
  down.gemm.mode = GemmMode::down;
  up.gemm.routed = table.gate_up_shape;
  down.gemm.routed = table.down_shape;
  up.gemm.experts = table.gate_up_tiles.as<ExpertTiles>();
  down.gemm.experts = table.down_tiles.as<ExpertTiles>();
  if (shared) {
    up.gemm.dense = view_of(*weights.shared_gate_up);
    down.gemm.dense = view_of(*weights.shared_down);
  }
  const WeightView &wide = up.gemm.routed, &back = down.gemm.routed;
  const PackedRows* packed = packed_twin_of(x, n_tokens, wide);
  up.x = packed ? *packed : packed_rows(packed_, packed_scales_, wide, n_tokens);
  const int n_inner = narrow_packed_rows(n_tokens * n_active, common.n_experts, shared ? n_tokens : 0);
  down.x = packed_rows(packed_inner_, inner_scales_, back, n_inner);
  up.inner_rows = scratch<__nv_bfloat16>(inner_, static_cast<size_t>(down.x.stride) * back.n_groups * kGroup);
  down.slots = reinterpret_cast<__nv_bfloat16*>(out);
  if (!packed) launch_pack_rows(queue_, wide.format, x, nullptr, n_tokens, wide.k, up.x, {});
  launch_narrow_experts(queue_, up);
  launch_pack_inner(queue_, up.inner_rows, back.n_groups, down.x);
  launch_narrow_experts(queue_, down);
}

// Packing and the list of row tiles, gate-up with SwiGLU, in FP8 packing again, down: four launches, for the routed
// experts, the shared one or both.
void CudaBackend::run_many_experts(const float* x, const ExpertWeights& weights, const ExpertTable& table,
                                   const Routing& routing, bool routed, bool shared, int n_active, int n_tokens, int n_slots,
                                   float* out) {
  const KernelChoice choice = choose_many_experts(shape_of(table.gate_up_shape), shape_of(table.down_shape), routed,
                                                  static_cast<int>(weights.gate_up.size()), n_tokens);
  note("experts", n_tokens, choice);
  if (choice.kernel == Kernel::narrow_experts)
    return run_narrow_experts(x, weights, table, routing, shared, n_active, n_tokens, n_slots, out);
  const int n_experts = routed ? static_cast<int>(weights.gate_up.size()) : 0, n_shared = shared ? n_tokens : 0;
  const WeightView& wide = routed ? table.gate_up_shape : view_of(*weights.shared_gate_up);
  const WeightView& back = routed ? table.down_shape : view_of(*weights.shared_down);
  const int n_routed = routed ? n_tokens * n_active : 0, rows = std::min(tile_rows(wide.format), tile_rows(back.format));
  RowTile* room = scratch<RowTile>(row_tiles_, most_tiles(rows, n_routed, n_experts, n_shared) + 1);
  TensorGemmArgs up, down;
  const TilePlan plan =
      plan_products(up, down, weights, table, routing, shared, n_active, n_slots, n_experts, n_shared, rows, room);
  up.rows_each = down.rows_each = n_experts > 0 ? n_routed / n_experts : n_shared;
  const PackedRows* packed = packed_twin_of(x, n_tokens, up.weight);
  up.x = packed ? *packed : packed_rows(packed_, packed_scales_, up.weight, n_tokens);
  up.inner = down.x = packed_rows(packed_inner_, inner_scales_, down.weight, most_packed_rows(n_routed, n_experts, n_shared));
  const bool packs_later = down.weight.format == WeightFormat::fp8;
  if (packs_later)
    up.inner_rows = scratch<__nv_bfloat16>(inner_, static_cast<size_t>(down.x.stride) * down.weight.n_groups * kGroup);
  down.slots = reinterpret_cast<__nv_bfloat16*>(out);
  launch_pack_rows(queue_, up.weight.format, x, nullptr, packed ? 0 : n_tokens, up.weight.k, up.x, plan);
  launch_tensor_gemm(queue_, up);
  if (packs_later) launch_pack_inner(queue_, up.inner_rows, down.weight.n_groups, down.x);
  launch_tensor_gemm(queue_, down);
}

// The same by mma.sync, from BF16 rows as they are.
void CudaBackend::run_mma_experts(const float* x, const ExpertWeights& weights, const ExpertTable& table,
                                  const Routing& routing, bool routed, bool shared, int n_active, int n_tokens, int n_slots,
                                  float* out) {
  const int n_experts = routed ? static_cast<int>(weights.gate_up.size()) : 0, n_shared = shared ? n_tokens : 0;
  const int n_routed = routed ? n_tokens * n_active : 0;
  const int n_tiles = most_tiles(kMmaTileRows, n_routed, n_experts, n_shared);
  RowTile* room = scratch<RowTile>(row_tiles_, n_tiles + 1);
  MmaGemmArgs up, down;
  const TilePlan plan =
      plan_products(up, down, weights, table, routing, shared, n_active, n_slots, n_experts, n_shared, kMmaTileRows, room);
  up.most_tiles = down.most_tiles = n_tiles;
  const int width = up.weight.k;
  const void* twin = twin_of(x, n_tokens, width);
  up.x = twin ? twin : to_bf16(x, nullptr, n_tokens, width);
  down.x = up.inner =
      scratch<uint16_t>(inner_, static_cast<size_t>(most_packed_rows(n_routed, n_experts, n_shared)) * down.weight.k);
  down.out = out;
  launch_pack_rows(queue_, WeightFormat::bf16, nullptr, nullptr, 0, width, {}, plan);  // the list alone
  launch_mma_gemm(queue_, up);
  launch_mma_gemm(queue_, down);
}

// Gate-up with SwiGLU, then down: two launches, the shared expert beside the routed ones when both are stored alike.
void CudaBackend::run_experts(const float* x, const ExpertWeights& weights, const ExpertTable& table, const Routing& routing,
                              int n_active, int n_tokens, int n_slots, int width, const ClassChoice& rows, float* out) {
  GemmArgs common;
  common.n_tokens = n_tokens;
  common.n_active = n_active;
  common.n_slots = n_slots;
  common.n_experts = static_cast<int>(weights.gate_up.size());
  common.expert_ids = routing.expert_ids;
  common.expert_offsets = routing.expert_offsets;
  common.slot_order = routing.slot_order;
  common.slot_weights = routing.weights;

  const bool routed = n_active > 0 && table.gate_up_shape.n > 0, shared = weights.shared_gate_up != nullptr;
  const void* twin = twin_of(x, n_tokens, width);
  const bool direct =
      !twin && reads_float((shared ? view_of(*weights.shared_gate_up) : table.gate_up_shape).n_groups, n_tokens);
  const void* activations = direct ? x : twin ? twin : to_bf16(x, nullptr, n_tokens, width);
  GemmArgs up = common, down = common;
  up.mode = GemmMode::gate_up;
  down.mode = GemmMode::down;
  if (shared) {
    up.dense = view_of(*weights.shared_gate_up);
    down.dense = view_of(*weights.shared_down);
    up.dense_x = activations;
    up.dense_out = scratch<uint16_t>(shared_inner_, static_cast<size_t>(n_tokens) * down.dense.k);
    down.dense_x = up.dense_out;
    down.dense_out = out;
  }
  if (routed) {
    up.routed = table.gate_up_shape;
    down.routed = table.down_shape;
    up.experts = table.gate_up_tiles.as<ExpertTiles>();
    down.experts = table.down_tiles.as<ExpertTiles>();
    up.routed_x = activations;
    up.routed_out = scratch<uint16_t>(inner_, static_cast<size_t>(n_tokens) * n_active * down.routed.k);
    down.routed_x = up.routed_out;
    down.routed_out = out;
  }
  const auto launch_one = [&](const GemmArgs& args, bool x_is_float) {
    note(n_active == 0 ? "dense MLP" : "experts", n_tokens, rows.with(launch_gemm(queue_, facts_, args, x_is_float)));
  };
  const auto run = [&](const GemmArgs& args, bool x_is_float) {
    if (routed && shared && args.dense.format != args.routed.format) {
      GemmArgs dense_part = args, routed_part = args;
      dense_part.routed = {};
      routed_part.dense = {};
      launch_one(dense_part, x_is_float);
      launch_one(routed_part, x_is_float);
    } else if (routed || shared) {
      launch_one(args, x_is_float);
    }
  };
  run(up, direct);
  run(down, false);
}

}  // namespace sigmoe::cuda
