#include "cpu/packed_weight.h"

#include <algorithm>
#include <cmath>
#include <functional>

namespace sigmoe {
namespace {

LineFormat line_format(WeightFormat format) {
  switch (format) {
    case WeightFormat::f32: return LineFormat::f32;
    case WeightFormat::bf16: return LineFormat::bf16;
    case WeightFormat::fp8: return LineFormat::fp8;
    case WeightFormat::int4: return LineFormat::int4;
    case WeightFormat::int8: return LineFormat::int8;
  }
  throw EngineError(ErrorCode::internal, "unknown weight format");
}

constexpr int64_t round_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

// Bytes of k values of one row, as stored in a checkpoint and in packed lines alike.
int64_t format_bytes(LineFormat format, int64_t k) {
  return format == LineFormat::int8 ? k : (k * 4) >> static_cast<int>(format);
}

class PackedBuilder : public LinearBuilder {
 public:
  PackedBuilder(const LinearDesc& desc, std::shared_ptr<const KLayout> layout, SlabArena& arena)
      : weight_(std::make_unique<PackedWeight>()), half_(desc.gate_up ? desc.n / 2 : desc.n) {
    PackedWeight& w = *weight_;
    w.name = desc.name;
    w.format = line_format(desc.format);
    w.n = desc.n;
    w.gate_up = desc.gate_up;
    w.n_panels = round_up(half_, kPanelRows) / kPanelRows * (desc.gate_up ? 2 : 1);
    w.panel_bytes = format_bytes(w.format, layout->packed_k) * kPanelRows;
    w.memory = arena.allocate(w.n_panels * w.panel_bytes, "weight " + desc.name);
    n_blocks_ = layout->scaled ? static_cast<int64_t>(layout->bounds.size()) - 1 : 0;
    w.scales.resize(w.n_panels * n_blocks_ * kPanelRows);
    w.layout = std::move(layout);
  }

  void put_rows(int64_t row, int64_t n_rows, const std::byte* source, size_t stride_bytes) override {
    const PackedWeight& w = *weight_;
    for_panels(row, n_rows, [&](int64_t first, int64_t panel, int lane, int count) {
      const std::byte* rows = source + (first - row) * stride_bytes;
      const int64_t group = panel / kGroupPanels, in_group = std::min<int64_t>(kGroupPanels, w.n_panels - group * kGroupPanels);
      uint8_t* lines =
          reinterpret_cast<uint8_t*>(w.memory.data) + group * kGroupPanels * w.panel_bytes + panel % kGroupPanels * 64;
      const KLayout& layout = *w.layout;
      bool finite = true;
      for (int s = 0; s < layout.n_segments(); ++s) {
        const int begin = s;
        if (layout.contiguous) s = layout.n_segments() - 1;  // one run
        const int64_t from = layout.segment_source[begin], to = layout.segment_end(s);
        finite &= pack_lines(w.format, rows + format_bytes(w.format, from), stride_bytes, format_bytes(w.format, to - from),
                             lane, count, lines + format_bytes(w.format, layout.segment_begin[begin]) * kPanelRows * in_group,
                             in_group * 64);
      }
      if (!finite)
        throw EngineError(ErrorCode::bad_checkpoint,
                          w.name + " holds a NaN or an infinity in rows " + std::to_string(first) + " to " +
                              std::to_string(first + count - 1),
                          "the file is damaged; fetch it again and compare its checksum");
    });
  }

  void put_scales(int64_t row, int64_t n_rows, const float* scales) override {
    for_panels(row, n_rows, [&](int64_t first, int64_t panel, int lane, int count) {
      for (int i = 0; i < count; ++i)
        for (int64_t b = 0; b < n_blocks_; ++b) {
          const float scale = scales[(first - row + i) * n_blocks_ + b];
          if (!std::isfinite(scale))
            throw EngineError(ErrorCode::bad_checkpoint,
                              weight_->name + " has a scale that is NaN or infinite in row " + std::to_string(first + i),
                              "the file is damaged; fetch it again and compare its checksum");
          weight_->scales[(panel * n_blocks_ + b) * kPanelRows + lane + i] = scale;
        }
    });
  }

  std::unique_ptr<LinearWeight> finish() override {
    PackedWeight& w = *weight_;
    w.scale_per_row = !rows_agree();
    if (n_blocks_ > 0 && !w.scale_per_row) {  // one scale per panel and block is enough
      for (int64_t i = 0; i < w.n_panels * n_blocks_; ++i) w.scales[i] = w.scales[i * kPanelRows];
      w.scales.resize(w.n_panels * n_blocks_);
      w.scales.shrink_to_fit();
    }
    return std::move(weight_);
  }

 private:
  // body(first row, panel, lane, count) for the panels that rows [row, row + n_rows) lie in.
  template <typename Body>
  void for_panels(int64_t row, int64_t n_rows, Body body) {
    SIGMOE_CHECK(row >= 0 && n_rows >= 0 && row + n_rows <= weight_->n, weight_->name + ": rows outside the weight");
    for (const int64_t end = row + n_rows; row < end;) {
      const int64_t part = row / half_, within = row % half_;  // part 1 is the up projection
      const int64_t panel = within / kPanelRows * (weight_->gate_up ? 2 : 1) + part;
      const int lane = static_cast<int>(within % kPanelRows);
      const int count = static_cast<int>(std::min({kPanelRows - int64_t{lane}, end - row, half_ - within}));
      body(row, panel, lane, count);
      row += count;
    }
  }

  bool rows_agree() {
    bool agree = true;
    for_panels(0, weight_->n, [&](int64_t, int64_t panel, int, int count) {
      for (int64_t b = 0; b < n_blocks_ && agree; ++b) {
        const float* scales = &weight_->scales[(panel * n_blocks_ + b) * kPanelRows];
        agree = std::all_of(scales, scales + count, [&](float scale) { return scale == scales[0]; });
      }
    });
    return agree;
  }

  std::unique_ptr<PackedWeight> weight_;
  int64_t half_;  // rows of one projection
  int64_t n_blocks_ = 0;
};

}  // namespace

std::shared_ptr<const KLayout> KLayouts::find_or_make(const LinearDesc& desc) {
  constexpr int64_t kMostK = 1 << 28;  // keeps packed k and byte offsets of a line inside their types
  SIGMOE_CHECK(desc.n > 0 && desc.k > 0 && desc.k < kMostK, desc.name + ": empty or absurd shape");
  SIGMOE_CHECK(!desc.gate_up || desc.n % 2 == 0, desc.name + ": gate and up rows differ in number");
  const bool scaled = !desc.k_bounds.empty();
  std::vector<int32_t> bounds{0, static_cast<int32_t>(desc.k)};
  if (scaled) {
    SIGMOE_CHECK(desc.k_bounds.front() == 0 && desc.k_bounds.back() == desc.k &&
                     std::is_sorted(desc.k_bounds.begin(), desc.k_bounds.end(), std::less_equal<>()),
                 desc.name + ": scale blocks do not cover k");
    bounds.assign(desc.k_bounds.begin(), desc.k_bounds.end());
  }
  if (desc.format == WeightFormat::int4)
    for (const int32_t k : bounds)
      if (k % 2 != 0)
        throw EngineError(
            ErrorCode::unsupported,
            desc.name + ": a scale group of INT4 weights ends at k " + std::to_string(k) + ", in the middle of a byte",
            "use a tensor parallel size that cuts at even k");
  const std::lock_guard guard(lock_);
  for (const auto& known : layouts_)
    if (known->bounds == bounds && known->scaled == scaled) return known;

  auto layout = std::make_shared<KLayout>();
  layout->k = desc.k;
  layout->scaled = scaled;
  int32_t packed = 0;
  for (size_t b = 0; b + 1 < bounds.size(); ++b)
    for (int32_t k = bounds[b]; k < bounds[b + 1]; k += kMaxSegment) {
      layout->contiguous &= packed == k;
      layout->segment_begin.push_back(packed);
      layout->segment_block.push_back(static_cast<int32_t>(b));
      layout->segment_source.push_back(k);
      packed += static_cast<int32_t>(round_up(std::min(kMaxSegment, bounds[b + 1] - k), kSegmentUnit));
    }
  layout->segment_begin.push_back(packed);
  layout->packed_k = packed;
  layout->bounds = std::move(bounds);
  layouts_.push_back(layout);
  return layout;
}

int64_t PackedWeight::groups_at_once(int64_t n_work, int n_threads) const {
  constexpr int64_t kRunBytes = 128 * 1024, kPiecesPerThread = 4;  // a core reads such a run in some five microseconds
  const int64_t wanted = kRunBytes / (panel_bytes * kGroupPanels), shared = n_work / (n_threads * kPiecesPerThread);
  return std::max<int64_t>(1, std::min(wanted, shared));
}

PanelGroup PackedWeight::group(int64_t index) const {
  const int64_t panel = index * kGroupPanels;
  PanelGroup view;
  view.lines = reinterpret_cast<const uint8_t*>(memory.data) + panel * panel_bytes;
  view.n_panels = static_cast<int>(std::min<int64_t>(kGroupPanels, n_panels - panel));
  view.segment_begin = layout->segment_begin.data();
  view.n_segments = layout->n_segments();
  if (layout->scaled) {
    view.segment_block = layout->segment_block.data();
    view.scale_panel_stride = (static_cast<int64_t>(layout->bounds.size()) - 1) * (scale_per_row ? kPanelRows : 1);
    view.scales = scales.data() + panel * view.scale_panel_stride;
    view.scale_per_row = scale_per_row;
  }
  return view;
}

std::unique_ptr<LinearBuilder> begin_packed_linear(const LinearDesc& desc, std::shared_ptr<const KLayout> layout,
                                                   SlabArena& arena) {
  return std::make_unique<PackedBuilder>(desc, std::move(layout), arena);
}

}  // namespace sigmoe
