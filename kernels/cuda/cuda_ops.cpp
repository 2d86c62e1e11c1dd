// The ops that are neither attention nor experts: what the kernel that takes an op needs.
#include <algorithm>

#include "cuda/cuda_backend.h"
#include "cuda/norm_many.h"
#include "cuda/ops.h"
#include "cuda/rank_rows.h"

namespace sigmoe::cuda {

void CudaBackend::embed(const Tensor& table, const int32_t* ids, int n_tokens, float* out) {
  writes(out);
  if (n_tokens > 0) launch_embed(queue_, table, ids, n_tokens, out);
}

void CudaBackend::reduce_add_rms_norm(float* residual, float* addend, int n_slots, Comm* comm, const float* weight, float eps,
                                      int n_tokens, int width, float* out) {
  if (n_tokens == 0 || (!addend && !out)) return;
  floats(residual);
  writes(residual);
  if (out) writes(out);
  if (addend && addend == pushed_.partial) {  // under way already
    launch_take_row(queue_, {pushed_.exchange, pushed_.residual, residual, addend, weight, eps}, out);
    pushed_ = {};
    return;
  }
  // What all ranks must agree on depends on nothing that one of them has for itself, as packs_ does.
  const bool sums_ranks = addend && comm;
  const KernelChoice choice = sums_ranks && out ? choose_sum(facts_, world_ ? world_->facts() : RankFacts{}, n_tokens, width)
                                                : choose_norm(facts_, n_tokens, width, out && packs_);
  if (out) note(sums_ranks ? "sum over ranks and norm" : "norm", n_tokens, choice);
  const bool packs = choice.kernel == Kernel::norm_many || choice.kernel == Kernel::many_reduce;
  const bool addend_is_bf16 = addend && is_brief(addend);
  if (!addend_is_bf16) floats(addend);
  if (addend_is_bf16 && !packs) {  // the other kernels read float32
    float* sums = scratch<float>(slot_sums_, static_cast<size_t>(n_tokens) * width);
    launch_sum_slots(queue_, addend, true, n_slots, n_tokens, width, sums);
    addend = sums;
    n_slots = 1;
  }
  void* twin = nullptr;
  const int most_twin_tokens = facts_.many_rows() ? kManyExpertRows - 1 : facts_.mma_rows() ? n_tokens : kMostTwinTokens;
  if (out && !facts_.exact && n_tokens > 1 && n_tokens <= most_twin_tokens && norm_has_twin(width)) {
    twin = scratch<uint16_t>(normed_, static_cast<size_t>(n_tokens) * width);
    twin_ = {out, n_tokens, width, twin, {}, {}};
  }
  if (packs) {
    ManyNormArgs args;
    args.residual = residual;
    args.addend = addend;
    args.addend_is_bf16 = addend_is_bf16;
    args.n_slots = n_slots;
    args.weight = weight;
    args.eps = eps;
    args.n_tokens = n_tokens, args.width = width;
    args.out = out;
    if (packs_) {
      WeightView multiplier;  // of any weight that `out` may meet
      multiplier.format = args.format = *packs_;
      multiplier.n_groups = width / kGroup;
      args.packed = packed_rows(packed_normed_, normed_scales_, multiplier, n_tokens);
      twin_ = {out, n_tokens, width, twin, args.packed, args.format};
    }
    return sums_ranks ? world_->reduce_many(queue_, args, twin) : launch_many_norm(queue_, args);
  }
  if (sums_ranks && world_) {
    const ReduceArgs args{residual, addend, n_slots, n_tokens, width, weight, eps, out, twin};
    return world_->reduce_add_rms_norm(
        queue_, args, world_->wants_sums() ? scratch<float>(gathered_, static_cast<size_t>(n_tokens) * width) : nullptr);
  }
  if (sums_ranks) {  // through the host: right on any world of ranks, and only that
    const size_t n = static_cast<size_t>(n_tokens) * width;
    float* sums = scratch<float>(gathered_, n);
    launch_sum_slots(queue_, addend, false, n_slots, n_tokens, width, sums);
    std::vector<float> host(n);
    download(host.data(), sums, n * sizeof(float));
    comm->all_reduce_sum(host.data(), static_cast<int64_t>(n));
    upload(sums, host.data(), n * sizeof(float));
    addend = sums;
    n_slots = 1;
  }
  launch_reduce_add_rms_norm(queue_, residual, addend, n_slots, weight, eps, n_tokens, width, out, twin);
}

void CudaBackend::writes(const void* address) {
  const float* at = static_cast<const float*>(address);
  if (twin_.rows && at >= twin_.rows && at < twin_.rows + static_cast<size_t>(twin_.n_rows) * twin_.width) twin_ = {};
  brief_->forget(address);
  floats(address);  // those of which a part is written
  if (address == pushed_.partial) pushed_ = {};
}

// Whoever reads at `address` sees floats.
void CudaBackend::floats(const void* address) {
  const BriefRows rows = brief_->take(address);
  if (!rows.data) return;
  float* wide = nullptr;
  try {
    wide = scratch<float>(slot_sums_, rows.n);  // where it grows the list may change
  } catch (...) {
    brief_->leave(rows);
    throw;
  }
  launch_widen(queue_, rows.data, rows.n, 1.0f / rows.factor, wide);
  CUDA_CHECK(cudaMemcpyAsync(rows.data, wide, rows.n * sizeof(float), cudaMemcpyDeviceToDevice, queue_.stream));
}

const void* CudaBackend::twin_of(const float* x, int n_rows, int width) const {
  return twin_.rows == x && n_rows <= twin_.n_rows && width == twin_.width ? twin_.bf16 : nullptr;
}

const PackedRows* CudaBackend::packed_twin_of(const float* x, int n_rows, const WeightView& weight) {
  packs_ = weight.format;
  const bool fits = twin_.rows == x && n_rows <= twin_.n_rows && weight.k == twin_.width && weight.format == twin_.format;
  return fits && twin_.packed.data ? &twin_.packed : nullptr;
}

const void* CudaBackend::to_bf16(const float* x, const int32_t* row_ids, int n_rows, int width) {
  uint16_t* converted = scratch<uint16_t>(x_, static_cast<size_t>(n_rows) * width);
  launch_to_bf16(queue_, x, row_ids, n_rows, width, converted);
  return converted;
}

// y (n_rows, n) = rows of x, picked by row_ids when given, times weight^T; in BF16 if it may be and there are many.
void CudaBackend::multiply(const char* op, const float* x, const int32_t* row_ids, int n_rows, const WeightView& weight,
                           float* y, bool may_be_brief) {
  floats(x);
  writes(y);
  if (n_rows == 0) return;
  const WeightShape shape = shape_of(weight);
  const ClassChoice choice = choose_linear(facts_, shape, n_rows);
  const auto note_kernel = [&](const KernelChoice& kernel) {
    if (!choices_) return;
    const std::string of = op + (" of " + std::to_string(weight.n)) + " x " + std::to_string(weight.k);
    note(of.c_str(), n_rows, choice.with(kernel));
  };
  if (choice.rows == RowClass::exact) {
    note_kernel({Kernel::exact_linear, Kernel::none, {}});
    return launch_exact_linear(queue_, x, row_ids, weight, n_rows, y);
  }
  if (choice.rows == RowClass::tensor) {
    const bool splits = tensor_splits(facts_.n_sms, shape, n_rows) > 1;
    note_kernel({splits ? Kernel::tensor_split : Kernel::tensor_gemm, Kernel::none, {}});
    TensorGemmArgs args;
    args.weight = weight;
    args.n_rows = n_rows;
    if (may_be_brief && n_rows >= kBriefRows) {
      args.brief_out = reinterpret_cast<__nv_bfloat16*>(y);
      leave_brief(y, static_cast<size_t>(n_rows) * weight.n);
    } else {
      args.out = y;
    }
    if (const PackedRows* packed = row_ids ? nullptr : packed_twin_of(x, n_rows, weight)) {
      args.x = *packed;
    } else {
      args.x = packed_rows(packed_, packed_scales_, weight, n_rows);
      launch_pack_rows(queue_, weight.format, x, row_ids, n_rows, weight.k, args.x, {});
    }
    return launch_tensor_gemm(queue_, args);
  }
  if (choice.rows == RowClass::mma) {
    note_kernel({Kernel::mma_gemm, Kernel::none, {}});
    MmaGemmArgs args;
    args.weight = weight;
    const void* twin = row_ids ? nullptr : twin_of(x, n_rows, weight.k);
    args.x = twin ? twin : to_bf16(x, row_ids, n_rows, weight.k);
    args.n_rows = n_rows;
    args.out = y;
    return launch_mma_gemm(queue_, args);
  }
  GemmArgs args;
  args.n_tokens = n_rows;
  args.dense = weight;
  args.dense_out = y;
  const void* twin = twin_of(x, n_rows, weight.k);
  const bool direct = !twin && reads_float(weight.n_groups, n_rows);
  args.dense_x = direct ? x : twin ? twin : to_bf16(x, row_ids, n_rows, weight.k);
  if (direct || twin) args.row_ids = row_ids;
  note_kernel(launch_gemm(queue_, facts_, args, direct));
}

namespace {
int packed_blocks(const WeightView& weight) { return weight.n_groups * kGroup / block_k(weight.format); }
}  // namespace

// Memory for n_rows of what `weight` multiplies.
PackedRows CudaBackend::packed_rows(Scratch& data, Scratch& scales, const WeightView& weight, int n_rows) {
  const int stride = round_up_8(n_rows);
  return {scratch<uint8_t>(data, PackedRows::data_bytes(packed_blocks(weight), stride)), scratch<float>(scales, stride),
          stride};
}

void CudaBackend::linear(const float* x, const LinearWeight& weight, int n_tokens, float* y) {
  // Sums over ranks are told what partial results are in by their op (cuda_experts.cpp), not by each rank's linear layer.
  const bool may_be_brief = !world_ && !meets_on_host_;
  multiply("linear", x, nullptr, n_tokens, view_of(weight), y, may_be_brief);
}

void CudaBackend::route(const float* x, const LinearWeight& gate, const float* bias, const RouterShape& shape, int n_tokens,
                        const int32_t* forced_ids, float* logits, const Routing& out) {
  const WeightView& view = view_of(gate);
  if (!can_route(shape) || (view.format != WeightFormat::f32 && view.format != WeightFormat::bf16))
    throw EngineError(ErrorCode::unsupported, "a router of " + std::to_string(shape.n_experts) + " experts in " +
                                                  std::to_string(shape.n_groups) + " groups, " +
                                                  std::to_string(shape.n_active) + " active, weights in " +
                                                  weight_format_name(view.format) +
                                                  ": the CUDA kernel takes 1024 experts, 32 groups, 32 active, F32 or BF16");
  floats(x);
  if (n_tokens == 0) {
    zero(out.expert_offsets, (shape.n_experts + 1) * sizeof(int32_t));
    return;
  }
  const int32_t* forced = nullptr;
  if (forced_ids) {
    const size_t n = static_cast<size_t>(n_tokens) * shape.n_active;
    int32_t* device = scratch<int32_t>(forced_, n);
    upload(device, forced_ids, n * sizeof(int32_t));
    forced = device;
  }
  RouterScratch split;
  split.partial = scratch<float>(partial_logits_, static_cast<size_t>(kRouterSlices) * n_tokens * shape.n_experts);
  split.arrivals = scratch<int32_t>(router_arrivals_, 1);
  const KernelChoice choice = choose_route(facts_, shape_of(view), n_tokens);
  note("route", n_tokens, choice);
  launch_route(queue_, x, view, bias, shape, n_tokens, choice.kernel == Kernel::route_tensor, forced, split, logits, out);
}

void CudaBackend::head_logits(const float* x, const int32_t* row_ids, int n_rows, const LinearWeight& lm_head, Comm* comm,
                              const std::vector<int64_t>& vocab_widths, float* logits) {
  const WeightView& view = view_of(lm_head);
  if (!comm || n_rows == 0) return multiply("head", x, row_ids, n_rows, view, logits);
  if (world_) {
    bool grown = false;
    float* own = world_->gather_part(vocab_widths, n_rows, grown);
    if (grown) forget_recorded();
    multiply("head", x, row_ids, n_rows, view, own);
    return world_->gather(queue_, vocab_widths, n_rows, logits);
  }
  const size_t n = static_cast<size_t>(n_rows) * view.n;
  float* part = scratch<float>(gathered_, n);
  multiply("head", x, row_ids, n_rows, view, part);
  int64_t total = 0;
  for (const int64_t vocab_width : vocab_widths) total += vocab_width;
  std::vector<float> host(n), whole(static_cast<size_t>(n_rows) * total);
  download(host.data(), part, n * sizeof(float));
  comm->all_gather_columns(host.data(), whole.data(), n_rows, vocab_widths);
  upload(logits, whole.data(), whole.size() * sizeof(float));
}

void CudaBackend::sample(const SampleArgs& args) {
  if (args.n_rows == 0) return;
  float* penalised = scratch<float>(penalised_, static_cast<size_t>(args.n_rows) * args.vocab_size);
  launch_sample(queue_, args, penalised, scratch<uint64_t>(group_bests_, group_bests_bytes(args.n_rows) / sizeof(uint64_t)));
}

void CudaBackend::reset_counts(uint32_t* counts_row, int vocab_size, const int32_t* prompt, int n_prompt,
                               const int32_t* generated, int n_generated) {
  zero(counts_row, static_cast<size_t>(vocab_size) * sizeof(uint32_t));
  int32_t* history = scratch<int32_t>(history_, static_cast<size_t>(n_prompt) + n_generated);
  if (n_prompt > 0) upload(history, prompt, n_prompt * sizeof(int32_t));
  if (n_generated > 0) upload(history + n_prompt, generated, n_generated * sizeof(int32_t));
  launch_count_tokens(queue_, counts_row, history, n_prompt, history + n_prompt, n_generated);
}

void CudaBackend::join_norms(const float* embedding, const float* embedding_norm, const float* hidden, const float* hidden_norm,
                             float eps, int n_tokens, int width, float* out) {
  floats(embedding), floats(hidden);
  writes(out);
  if (n_tokens > 0) launch_join_norms(queue_, embedding, embedding_norm, hidden, hidden_norm, eps, n_tokens, width, out);
}

void CudaBackend::copy_rows(const float* from, const int32_t* from_ids, int64_t from_stride, float* to, const int32_t* to_ids,
                            int64_t to_stride, int n_rows, int width) {
  floats(from);
  writes(to);
  if (n_rows > 0) launch_copy_rows(queue_, from, from_ids, from_stride, to, to_ids, to_stride, n_rows, width);
}

}  // namespace sigmoe::cuda
