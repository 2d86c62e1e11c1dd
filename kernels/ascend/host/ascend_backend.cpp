#include "ascend/host/ascend_backend.h"

#include <algorithm>

#include "ascend/device/args/weight_layout.h"
#include "ascend/host/tiling_linear.h"
#include "ascend/host/tiling_rows.h"

namespace sigmoe::ascend {
namespace {

RowType row_type(DType dtype) {
  switch (dtype) {
    case DType::bf16: return kRowBf16;
    case DType::i8: return kRowInt8;
    default: return kRowF32;
  }
}

}  // namespace

AscendBackend::AscendBackend(const Runtime& runtime, const BackendOptions& options)
    : device_(runtime, options.device_index), compute_(options.compute) {
  if (options.kernels != "auto")
    throw EngineError(ErrorCode::invalid_argument,
                      "kernels '" + options.kernels + "' asked for; on " + runtime.device + " the only choice is auto");
  const Cores cores = device_.cores();
  info_.device = runtime.device;
  info_.name = device_.soc_name();
  info_.kernels = std::string(runtime.kernels->built_for) + ", " + std::to_string(cores.aic) + " cube and " +
                  std::to_string(cores.aiv) + " vector cores" +
                  (device_.captures() ? "" : ", steps not recorded: " + device_.capture_refused());
  aclnn_ = AclnnProducts::make_if_asked(device_);
  if (aclnn_) info_.kernels += ", dense prefill by aclnn";
  info_.compute = compute_;
  const DType own = compute_ == DType::f32 ? DType::f32 : DType::bf16;  // attention of W8A8 is in BF16
  info_.kv_dtype = kv_cache_dtype(options, own, false);
  info_.fp8_prefill = fp8_prefill(options, own, false);
  info_.n_threads = options.n_threads;
}

AscendBackend::~AscendBackend() { device_.forget_recorded(); }

const BackendInfo& AscendBackend::info() const {
  info_.weights = requantisation_.text();
  return info_;
}

void AscendBackend::grow(Scratch& scratch, size_t bytes) {
  if (bytes <= scratch.memory.bytes()) return;
  SIGMOE_CHECK(!device_.recording(), "scratch memory must have grown before a step is recorded");
  device_.forget_recorded();
  scratch.memory = {};
  scratch.memory = alloc(bytes + bytes / 4, scratch.what);
}

// A replay leaves no shadows behind that anybody here knows of, and must not build on any.
void AscendBackend::run_recorded(uint64_t key, const std::function<void()>& ops) {
  drop_shadows();
  if (collectives_)
    ops();  // no ACL graph with HCCL calls in it has been tried
  else
    device_.run_recorded(key, ops);
  drop_shadows();
}

std::unique_ptr<LinearBuilder> AscendBackend::begin_linear(const LinearDesc& desc) {
  return begin_weight(desc, compute_, device_, requantisation_);
}

// ---- narrow rows -----------------------------------------------------------------------------------------------------

ShadowKind AscendBackend::begin_shadow(Shadow& shadow, const float* source, int64_t n_rows, int64_t width) {
  shadow.source = nullptr;
  if (compute_ == DType::f32) return kNoShadow;
  shadow.dtype = compute_;
  const int64_t pitch = row_pitch(width, static_cast<int64_t>(dtype_bytes(compute_)));
  scratch<std::byte>(shadow.rows, n_rows * pitch * dtype_bytes(compute_));
  if (compute_ == DType::i8) scratch<float>(shadow.scales, n_rows);
  shadow.source = source;
  shadow.n_rows = n_rows;
  shadow.width = width;
  return compute_ == DType::i8 ? kShadowInt8 : kShadowBf16;
}

void AscendBackend::wrote(const float* rows, int64_t n) {
  for (Shadow* shadow : {&norm_shadow_, &attended_shadow_})
    if (shadow->source && rows < shadow->source + shadow->n_rows * shadow->width && shadow->source < rows + n)
      shadow->source = nullptr;
}

void AscendBackend::drop_shadows() { norm_shadow_.source = attended_shadow_.source = nullptr; }

AscendBackend::Operand AscendBackend::operand(const float* x, const int32_t* row_ids, int n_rows, int64_t width, DType dtype) {
  const int64_t pitch = row_pitch(width, static_cast<int64_t>(dtype_bytes(dtype)));
  if (!row_ids) {
    if (dtype == DType::f32) return {x, nullptr, width};
    for (const Shadow* shadow : {&norm_shadow_, &attended_shadow_})
      if (shadow->source == x && shadow->n_rows >= n_rows && shadow->width == width && shadow->dtype == dtype)
        return {shadow->rows.memory.data(), shadow->scales.memory.as<float>(), pitch};
  }
  auto* rows = scratch<std::byte>(narrow_, n_rows * pitch * dtype_bytes(dtype));
  float* scales = dtype == DType::i8 ? scratch<float>(narrow_scales_, n_rows) : nullptr;
  convert(x, kRowF32, row_ids, width, rows, row_type(dtype), nullptr, pitch, scales, n_rows, static_cast<int>(width));
  return {rows, scales, pitch};
}

void AscendBackend::convert(const void* from, int from_type, const int32_t* from_ids, int64_t from_stride, void* to,
                            int to_type, const int32_t* to_ids, int64_t to_stride, float* scales, int n_rows, int width) {
  ConvertRowsTiling tiling =
      make_convert_rows_tiling(n_rows, width, static_cast<RowType>(from_type), static_cast<RowType>(to_type), device_.cores());
  tiling.has_from_ids = from_ids != nullptr;
  tiling.has_to_ids = to_ids != nullptr;
  tiling.from_stride = from_stride;
  tiling.to_stride = to_stride;
  device_.launch(Kernel::convert_rows, row_blocks(n_rows, tiling), {from, from_ids, to, to_ids, scales}, tiling);
}

void AscendBackend::embed(const Tensor& table, const int32_t* ids, int n_tokens, float* out) {
  if (n_tokens == 0) return;
  const int width = static_cast<int>(table.shape[1]);
  convert(table.data, row_type(table.dtype), ids, width, out, kRowF32, nullptr, width, nullptr, n_tokens, width);
  wrote(out, static_cast<int64_t>(n_tokens) * width);
}

void AscendBackend::copy_rows(const float* from, const int32_t* from_ids, int64_t from_stride, float* to, const int32_t* to_ids,
                              int64_t to_stride, int n_rows, int width) {
  if (n_rows == 0) return;
  convert(from, kRowF32, from_ids, from_stride, to, kRowF32, to_ids, to_stride, nullptr, n_rows, width);
  drop_shadows();  // where the rows went is known to the device alone
}

// ---- norms -----------------------------------------------------------------------------------------------------------

void AscendBackend::norm(float* residual, const float* addend, int n_slots, const float* weight, float eps, int n_tokens,
                         int width, float* out, int64_t out_stride, Shadow* shadow) {
  const ShadowKind kind = shadow && out ? begin_shadow(*shadow, out, n_tokens, width) : kNoShadow;
  AddRmsNormTiling tiling =
      make_add_rms_norm_tiling(n_tokens, width, addend ? n_slots : 0, out != nullptr, kind, eps, device_.cores());
  tiling.out_stride = out_stride;
  void* copy = nullptr;
  float* scales = nullptr;
  if (kind != kNoShadow) {
    tiling.shadow_stride = row_pitch(width, static_cast<int64_t>(dtype_bytes(compute_)));
    copy = shadow->rows.memory.data();
    scales = shadow->scales.memory.as<float>();
  }
  device_.launch(Kernel::add_rms_norm, row_blocks(n_tokens, tiling), {residual, addend, weight, out, copy, scales}, tiling);
}

void AscendBackend::reduce_add_rms_norm(float* residual, float* addend, int n_slots, Comm* comm, const float* weight, float eps,
                                        int n_tokens, int width, float* out) {
  if (n_tokens == 0 || (!addend && !out)) return;
  const int64_t n = static_cast<int64_t>(n_tokens) * width;
  if (addend && comm) {
    float* sums = scratch<float>(gathered_, n);
    zero(sums, n * sizeof(float));
    norm(sums, addend, n_slots, nullptr, eps, n_tokens, width, nullptr, width, nullptr);
    collectives(*comm).all_reduce_sum(sums, n);
    addend = sums;
    n_slots = 1;
  }
  wrote(residual, n);
  if (out) wrote(out, n);
  norm(residual, addend, n_slots, weight, eps, n_tokens, width, out, width, &norm_shadow_);
}

void AscendBackend::join_norms(const float* embedding, const float* embedding_norm, const float* hidden,
                               const float* hidden_norm, float eps, int n_tokens, int width, float* out) {
  if (n_tokens == 0) return;
  // Nothing is added, so neither input is written.
  norm(const_cast<float*>(embedding), nullptr, 0, embedding_norm, eps, n_tokens, width, out, 2 * width, nullptr);
  norm(const_cast<float*>(hidden), nullptr, 0, hidden_norm, eps, n_tokens, width, out + width, 2 * width, nullptr);
  wrote(out, int64_t{2} * n_tokens * width);
}

// ---- products --------------------------------------------------------------------------------------------------------

void AscendBackend::multiply(const Operand& x, const AscendWeight& weight, int n_rows, float* y) {
  if (aclnn_ && n_rows >= AclnnProducts::kLeastRows && weight.dtype != DType::f32 && !device_.recording()) {
    const int width = static_cast<int>(weight.n);
    auto* narrow = scratch<uint16_t>(aclnn_out_, static_cast<size_t>(n_rows) * width);
    aclnn_->multiply(x.rows, x.scales, x.pitch, weight, n_rows, narrow,
                     [&](size_t bytes) { return scratch<std::byte>(workspace_, bytes); });
    return convert(narrow, kRowBf16, nullptr, width, y, kRowF32, nullptr, width, nullptr, n_rows, width);
  }
  LinearShape shape;
  shape.rows = n_rows;
  shape.n = weight.n;
  shape.k = weight.k;
  shape.x_pitch = x.pitch;
  shape.element_bytes = static_cast<int64_t>(dtype_bytes(weight.dtype));
  const LinearTiling tiling = make_linear_tiling(shape, device_.cores());
  const auto blocks = static_cast<uint32_t>(device_.cores().aic);
  if (weight.dtype == DType::i8)
    device_.launch(Kernel::linear_int8, blocks, {x.rows, x.scales, nullptr, weight.data.data, weight.scales.data, y}, tiling);
  else
    device_.launch(weight.dtype == DType::bf16 ? Kernel::linear_bf16 : Kernel::linear_f32, blocks,
                   {x.rows, nullptr, weight.data.data, y}, tiling);
}

void AscendBackend::linear(const float* x, const LinearWeight& weight, int n_tokens, float* y) {
  if (n_tokens == 0) return;
  const AscendWeight& w = weight_of(weight);
  multiply(operand(x, nullptr, n_tokens, w.k, w.dtype), w, n_tokens, y);
  wrote(y, n_tokens * w.n);
}

void AscendBackend::head_logits(const float* x, const int32_t* row_ids, int n_rows, const LinearWeight& lm_head, Comm* comm,
                                const std::vector<int64_t>& vocab_widths, float* logits) {
  if (n_rows == 0) return;
  const AscendWeight& w = weight_of(lm_head);
  const Operand rows = operand(x, row_ids, n_rows, w.k, w.dtype);
  if (!comm) {
    multiply(rows, w, n_rows, logits);
    wrote(logits, n_rows * w.n);
    return;
  }
  // HCCL gathers equal parts, and the last rank's share of the vocabulary may be smaller: parts as wide as the widest, then
  // side by side.
  const int world = comm->world();
  const int64_t widest = *std::max_element(vocab_widths.begin(), vocab_widths.end());
  int64_t total = 0;
  for (const int64_t width : vocab_widths) total += width;
  float* parts = scratch<float>(gathered_, static_cast<size_t>(world + 1) * n_rows * widest);
  float* mine = parts + static_cast<int64_t>(world) * n_rows * widest;
  multiply(rows, w, n_rows, mine);
  collectives(*comm).all_gather(mine, parts, n_rows * widest);
  int64_t column = 0;
  for (int rank = 0; rank < world; ++rank) {
    const int64_t width = vocab_widths[rank];
    convert(parts + static_cast<int64_t>(rank) * n_rows * widest, kRowF32, nullptr, width, logits + column, kRowF32, nullptr,
            total, nullptr, n_rows, static_cast<int>(width));
    column += width;
  }
  wrote(logits, n_rows * total);
}

Collectives& AscendBackend::collectives(Comm& comm) {
  if (!collectives_ || &collectives_->comm() != &comm) collectives_ = std::make_unique<Collectives>(device_, comm);
  return *collectives_;
}

}  // namespace sigmoe::ascend
