#include "ascend/host/tiling_rows.h"

#include <algorithm>
#include <string>

#include "backend/error.h"

namespace sigmoe::ascend {
namespace {

constexpr int32_t kBlock = 32;
constexpr int32_t kChunk = 8192;  // elements of a long row at a time

int32_t round_up(int64_t value, int32_t unit) { return static_cast<int32_t>((value + unit - 1) / unit * unit); }

int32_t rows_per_core(int n_rows, const Cores& cores) { return std::max(1, (n_rows + cores.aiv - 1) / cores.aiv); }

[[noreturn]] void refuse(const char* kernel, int width) {
  throw EngineError(ErrorCode::unsupported,
                    std::string(kernel) + ": rows of " + std::to_string(width) + " do not fit a vector core's memory");
}

}  // namespace

int32_t ub_bytes(const AddRmsNormTiling& t) {
  int32_t bytes = t.row_bytes * (2 * t.n_buffers + 1);
  if (t.has_out) bytes += 2 * t.row_bytes;
  if (t.shadow != kNoShadow) bytes += t.n_buffers * t.row_bytes / 2;
  if (t.shadow == kShadowInt8) bytes += t.n_buffers * kBlock;
  return bytes;
}

int32_t ub_bytes(const ConvertRowsTiling& t) {
  const int32_t chunk = round_up(t.chunk, kBlock), n_buffers = t.to_type == kRowInt8 ? 1 : 2;
  const auto width_of = [](int32_t type) { return type == kRowF32 ? 4 : type == kRowBf16 ? 2 : 1; };
  int32_t bytes = chunk * (n_buffers * (width_of(t.from_type) + width_of(t.to_type)) + 4);
  if (t.to_type == kRowInt8) bytes += chunk * 4 + 2 * kBlock;
  return bytes;
}

AddRmsNormTiling make_add_rms_norm_tiling(int n_tokens, int width, int n_slots, bool has_out, ShadowKind shadow, float eps,
                                          const Cores& cores) {
  AddRmsNormTiling tiling{};
  tiling.n_tokens = n_tokens;
  tiling.width = width;
  tiling.n_slots = n_slots;
  tiling.rows_per_core = rows_per_core(n_tokens, cores);
  tiling.row_bytes = round_up(int64_t{width} * 4, 2 * kBlock);  // half of it, a shadow's row, is whole blocks too
  tiling.has_out = has_out;
  tiling.shadow = shadow;
  tiling.out_stride = tiling.shadow_stride = width;
  tiling.eps = eps;
  tiling.one_over_width = 1.0f / static_cast<float>(width);
  for (tiling.n_buffers = 2; tiling.n_buffers > 0; --tiling.n_buffers)
    if (width < kUbBytes / 4 && ub_bytes(tiling) <= kUbBytes) return tiling;
  refuse("add_rms_norm", width);
}

ConvertRowsTiling make_convert_rows_tiling(int n_rows, int width, RowType from, RowType to, const Cores& cores) {
  ConvertRowsTiling tiling{};
  tiling.n_rows = n_rows;
  tiling.width = width;
  tiling.from_type = from;
  tiling.to_type = to;
  tiling.rows_per_core = rows_per_core(n_rows, cores);
  tiling.from_stride = tiling.to_stride = width;
  tiling.chunk = to == kRowInt8 ? width : std::min(width, kChunk);
  if (width > kUbBytes || ub_bytes(tiling) > kUbBytes) refuse("convert_rows", width);
  return tiling;
}

}  // namespace sigmoe::ascend
