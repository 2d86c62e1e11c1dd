// The experts of one layer in one launch: out (T, slots, D), slot (t, a) = weight * down(silu(gate x) * up x).
//
//   cube    sums  = x gate_up^T           the rows of x that an expert needs, gathered as they are copied to L1
//   vector  inner = silu(gate) * up       rounded to the type that the cube multiplies, INT8 with a scale per row
//   cube    sums  = inner down^T          over the first sums, which nobody needs any more
//   vector  out   = sums * slot weight    to the token's place
//
// with a barrier of all cores between the stages. Within a stage the tiles of all experts form one list, dealt out in turn.
#pragma once

#include "ascend/device/args/experts.h"
#include "ascend/device/cube_gemm.h"

namespace sigmoe_cube_kernels {

struct ExpertsMemory {
  GM_ADDR x;
  GM_ADDR x_scales;  // int8 only
  GM_ADDR table;
  GM_ADDR expert_offsets;
  GM_ADDR slot_order;
  GM_ADDR slot_weights;
  GM_ADDR work;
  GM_ADDR out;
};

// Walks the experts that have rows, the shared one last, and deals their items out to the cores.
class ExpertWalk {
 public:
  __aicore__ inline ExpertWalk(const ExpertsMemory& memory, const ExpertsTiling& t, int32_t core, int32_t cores)
      : t_(t), core_(core), cores_(cores) {
    offsets_.SetGlobalBuffer(reinterpret_cast<__gm__ int32_t*>(memory.expert_offsets));
  }

  __aicore__ inline bool next() {
    dealt_ += items_;
    items_ = 0;
    while (++expert_ < t_.n_experts) {
      first_ = end_;
      end_ = offsets_.GetValue(expert_ + 1);
      rows_ = end_ - first_;
      if (rows_ > 0) return true;
    }
    first_ = t_.tokens * t_.n_active;
    rows_ = t_.tokens;
    return expert_ == t_.n_experts && t_.shared;
  }

  // The first of this expert's `items` items that is this core's; the next is `cores` further.
  __aicore__ inline int32_t deal(int32_t items) {
    items_ = items;
    return static_cast<int32_t>((core_ + cores_ - dealt_ % cores_) % cores_);
  }

  __aicore__ inline int32_t expert() const { return expert_; }
  __aicore__ inline bool shared() const { return expert_ == t_.n_experts; }
  __aicore__ inline int32_t first() const { return first_; }
  __aicore__ inline int32_t rows() const { return rows_; }
  __aicore__ inline int32_t inner() const { return shared() ? t_.shared_inner : t_.inner; }

 private:
  const ExpertsTiling& t_;
  GlobalTensor<int32_t> offsets_;
  int64_t dealt_ = 0;
  int32_t core_, cores_, expert_ = -1, first_ = 0, end_ = 0, rows_ = 0, items_ = 0;
};

template <typename T>
class ExpertsCube {
 public:
  using Sum = typename CubeSum<T>::Type;

  __aicore__ inline void init(const ExpertsMemory& memory, const ExpertsTiling& t, TPipe* pipe) {
    memory_ = memory;
    t_ = t;
    gemm_.init(pipe);
    x_.SetGlobalBuffer(reinterpret_cast<__gm__ T*>(memory.x));
    table_.SetGlobalBuffer(reinterpret_cast<__gm__ uint64_t*>(memory.table));
    slot_order_.SetGlobalBuffer(reinterpret_cast<__gm__ int32_t*>(memory.slot_order));
    sums_.SetGlobalBuffer(reinterpret_cast<__gm__ Sum*>(memory.work));
    inner_.SetGlobalBuffer(reinterpret_cast<__gm__ T*>(memory.work + t.inner_at));
  }

  __aicore__ inline void gate_up() {
    ExpertWalk walk(memory_, t_, static_cast<int32_t>(GetBlockIdx()), static_cast<int32_t>(GetBlockNum()));
    while (walk.next()) tiles_of(walk, kGateUp, 2 * walk.inner(), t_.width, walk.shared() ? t_.shared_up_tile : t_.up_tile);
  }

  __aicore__ inline void down() {
    ExpertWalk walk(memory_, t_, static_cast<int32_t>(GetBlockIdx()), static_cast<int32_t>(GetBlockNum()));
    while (walk.next()) tiles_of(walk, kDown, t_.width, walk.inner(), t_.down_tile);
  }

 private:
  __aicore__ inline void tiles_of(ExpertWalk& walk, ExpertTable which, int32_t n, int32_t k, int32_t column_tile) {
    const uint64_t address = table_.GetValue(which * (t_.n_experts + 1) + walk.expert());
    if (address == 0) return;
    GlobalTensor<T> weight;
    weight.SetGlobalBuffer(reinterpret_cast<__gm__ T*>(address));
    const WeightLayout layout{n, k, sizeof(T)};
    const int32_t row_blocks = static_cast<int32_t>(ceil_div(walk.rows(), kTileRows));
    const int32_t tiles = row_blocks * static_cast<int32_t>(ceil_div(n, column_tile));
    for (int32_t tile = walk.deal(tiles); tile < tiles; tile += static_cast<int32_t>(GetBlockNum())) {
      const int32_t row = tile % row_blocks * kTileRows, column = tile / row_blocks * column_tile;
      const int32_t rows = row + kTileRows < walk.rows() ? kTileRows : walk.rows() - row;
      const int32_t columns = column + column_tile < n ? column_tile : n - column;
      if (which == kDown)
        gemm_.set_rows(inner_, t_.inner_pitch, nullptr, walk.first() + row, rows);
      else if (walk.shared())
        gemm_.set_rows(x_, t_.x_pitch, nullptr, row, rows);
      else
        gemm_.set_rows(x_, t_.x_pitch, tokens(walk.first() + row, rows), 0, rows);
      gemm_.multiply(weight, layout, column / static_cast<int32_t>(kGroupRows), columns,
                     sums_[static_cast<int64_t>(walk.first() + row) * t_.sum_pitch + column],
                     static_cast<uint32_t>(t_.sum_pitch));
    }
  }

  __aicore__ inline const int32_t* tokens(int32_t first, int32_t rows) {
    for (int32_t i = 0; i < rows; ++i) tokens_[i] = slot_order_.GetValue(first + i) / t_.n_active;
    return tokens_;
  }

  ExpertsMemory memory_;
  ExpertsTiling t_;
  CubeGemm<T> gemm_;
  GlobalTensor<T> x_, inner_;
  GlobalTensor<Sum> sums_;
  GlobalTensor<uint64_t> table_;
  GlobalTensor<int32_t> slot_order_;
  int32_t tokens_[kTileRows];
};

}  // namespace sigmoe_cube_kernels
