// Linear layers: y = x W^T, and the head, which is one with picked rows and a vocabulary gathered over ranks.
// Work is divided by groups of four panels; a group's lines are expanded once for all rows of a chunk.
#include <algorithm>
#include <cstring>

#include "cpu/cpu_backend.h"

namespace sigmoe {

ActivationForm CpuBackend::form_of(const PackedWeight& weight, Products products) const {
  const bool bf16 = products == Products::fastest && bf16_gemm_ && bf16_gemm_[static_cast<int>(weight.format)];
  return {weight.layout.get(), bf16, !bf16 && weight.format == LineFormat::fp8 ? kFp8ActivationScale : 1.0f};
}

GemmFn CpuBackend::gemm_of(const PackedWeight& weight, const ActivationForm& form) const {
  return (form.bf16 ? bf16_gemm_ : simd_->gemm)[static_cast<int>(weight.format)];
}

void CpuBackend::write_activations(const ActivationForm& form, const float* values, int64_t first, int64_t n,
                                   std::byte* row) const {
  const auto write = [&](const float* from, int64_t count, int64_t packed) {
    if (form.bf16)
      simd_->to_bf16(from, count, reinterpret_cast<uint16_t*>(row) + packed);
    else
      simd_->scale(from, form.scale, count, reinterpret_cast<float*>(row) + packed);
  };
  const KLayout& layout = *form.layout;
  if (layout.contiguous) return write(values, n, first);
  for (int s = 0; s < layout.n_segments(); ++s) {
    const int64_t begin = std::max<int64_t>(first, layout.segment_source[s]), end = std::min(first + n, layout.segment_end(s));
    if (begin < end) write(values + begin - first, end - begin, layout.segment_begin[s] + begin - layout.segment_source[s]);
  }
}

void CpuBackend::lay_out_rows(const ActivationForm& form, const float* x, const int32_t* row_ids, int64_t n_rows,
                              std::byte* out) {
  const int64_t row_bytes = form.row_bytes();
  pool_.parallel_for(n_rows, [&](int64_t r, int) {
    std::byte* row = out + r * row_bytes;
    if (form.padded()) std::memset(row, 0, row_bytes);
    write_activations(form, x + (row_ids ? row_ids[r] : r) * form.layout->k, 0, form.layout->k, row);
  });
}

void CpuBackend::multiply(const float* x, const int32_t* row_ids, int64_t n_rows, const PackedWeight& weight, Products products,
                          float* y) {
  SIGMOE_CHECK(!weight.gate_up, weight.name + ": gate and up rows are interleaved, only experts() reads them");
  const ActivationForm form = form_of(weight, products);
  const GemmFn gemm = gemm_of(weight, form);
  std::byte* rows = rows_.get<std::byte>(n_rows * form.row_bytes());
  const void** pointers = row_pointers_.get<const void*>(n_rows);
  for (int64_t r = 0; r < n_rows; ++r) pointers[r] = rows + r * form.row_bytes();
  lay_out_rows(form, x, row_ids, n_rows, rows);

  const int64_t n_chunks = (n_rows + kRowChunk - 1) / kRowChunk, n_groups = weight.n_groups();
  const int64_t at_once = weight.groups_at_once(n_groups * n_chunks, pool_.size());
  const int64_t n_pieces = (n_groups + at_once - 1) / at_once;
  pool_.parallel_for(n_pieces * n_chunks, [&](int64_t item, int w) {
    const int64_t first = item / n_chunks * at_once, row = item % n_chunks * kRowChunk;
    GemmArgs args;
    args.rows = pointers + row;
    args.m = static_cast<int>(std::min(kRowChunk, n_rows - row));
    args.c = workers_[w].tile.get<float>(kRowChunk * kGroupRows);
    args.c_stride = kGroupRows;
    args.scratch = workers_[w].gemm_scratch.data();
    for (int64_t group = first; group < std::min(first + at_once, n_groups); ++group) {
      args.w = weight.group(group);
      gemm(args);
      const int64_t column = group * kGroupRows, n_columns = std::min<int64_t>(kGroupRows, weight.n - column);
      for (int64_t r = 0; r < args.m; ++r)
        std::memcpy(y + (row + r) * weight.n + column, args.c + r * kGroupRows, n_columns * sizeof(float));
    }
  });
}

void CpuBackend::linear(const float* x, const LinearWeight& weight, int n_tokens, float* y) {
  multiply(x, nullptr, n_tokens, packed(weight), Products::fastest, y);
}

void CpuBackend::head_logits(const float* x, const int32_t* row_ids, int n_rows, const LinearWeight& lm_head, Comm* comm,
                             const std::vector<int64_t>& vocab_widths, float* logits) {
  const PackedWeight& weight = packed(lm_head);
  const bool several_ranks = comm && comm->world() > 1;
  float* part = several_ranks ? part_logits_.get<float>(n_rows * weight.n) : logits;
  multiply(x, row_ids, n_rows, weight, Products::fastest, part);
  if (several_ranks) comm->all_gather_columns(part, logits, n_rows, vocab_widths);
}

}  // namespace sigmoe
