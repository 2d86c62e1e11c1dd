// Linear weights as the kernels read them: panels of 16 output rows as 64-byte lines, the lines of four panels alternating
// (simd.h), k cut into segments that one scale covers. Elements keep their checkpoint format, so memory holds no more than the
// file.
#pragma once

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "cpu/host_memory.h"
#include "cpu/simd.h"

namespace sigmoe {

// Where the k of a weight lie in packed order. Weights with equal layouts share one object, so that activations laid out
// for one of them serve all.
struct KLayout {
  int64_t k = 0, packed_k = 0;
  std::vector<int32_t> bounds;  // of the scale blocks; {0, k} without scales
  bool scaled = false;
  std::vector<int32_t> segment_begin;   // (segments + 1) packed k; multiples of kSegmentUnit
  std::vector<int32_t> segment_block;   // (segments)
  std::vector<int32_t> segment_source;  // (segments) first k of each
  bool contiguous = true;               // packed position of k is k

  int n_segments() const { return static_cast<int>(segment_block.size()); }
  int64_t segment_end(int s) const { return s + 1 < n_segments() ? segment_source[s + 1] : k; }
};

class KLayouts {
 public:
  // Throws unsupported for bounds that packed lines cannot start at.
  std::shared_ptr<const KLayout> find_or_make(const LinearDesc& desc);

 private:
  std::mutex lock_;
  std::vector<std::shared_ptr<const KLayout>> layouts_;
};

class PackedWeight : public LinearWeight {
 public:
  size_t bytes() const override { return n_panels * panel_bytes + scales.size() * sizeof(float); }

  int64_t n_groups() const { return (n_panels + kGroupPanels - 1) / kGroupPanels; }
  // Groups that one piece of work takes: enough bytes in a row that starting on them costs little, and yet several pieces
  // for every thread when n_work groups of such weights are to be done.
  int64_t groups_at_once(int64_t n_work, int n_threads) const;
  PanelGroup group(int64_t index) const;  // for a kernel

  std::string name;
  LineFormat format = LineFormat::bf16;
  int64_t n = 0;         // output rows; gate and up together when gate_up
  int64_t n_panels = 0;  // with gate_up: panel 2i holds gate rows [16i, 16i + 16), panel 2i + 1 the up rows beside them
  bool gate_up = false;
  std::shared_ptr<const KLayout> layout;
  SlabArena::Piece memory;
  int64_t panel_bytes = 0;
  std::vector<float> scales;  // (panels, blocks), or (panels, blocks, 16) when rows of a panel differ
  bool scale_per_row = false;
};

std::unique_ptr<LinearBuilder> begin_packed_linear(const LinearDesc& desc, std::shared_ptr<const KLayout> layout,
                                                   SlabArena& arena);

// Transposes `rows` (at most 16) rows of n_bytes into lanes [lane, lane + rows) of lines `line_stride` bytes apart, reading
// every source cache line once. Lanes outside the range are left alone. Returns false when a value is NaN or infinite.
bool pack_lines(LineFormat format, const std::byte* source, size_t stride_bytes, int64_t n_bytes, int lane, int rows,
                uint8_t* lines, int64_t line_stride);

}  // namespace sigmoe
