// The experts of one layer in two passes over one list of work each: gate-up with SwiGLU, then down with the routing
// weight. A piece of work is some groups of panels of one expert and all its rows, so a touched expert's weights are read
// once per step.
#include <algorithm>
#include <cstring>

#include "cpu/cpu_backend.h"

namespace sigmoe {

void CpuBackend::run_gate_up(const ExpertStep& step, const ExpertTask& task, int64_t group, int worker) {
  const PackedWeight& weight = *task.gate_up;
  GemmArgs args;
  args.w = weight.group(group);
  args.c = workers_[worker].tile.get<float>(kRowChunk * kGroupRows);
  args.c_stride = kGroupRows;
  args.scratch = workers_[worker].gemm_scratch.data();
  const int64_t n_routed = static_cast<int64_t>(step.n_tokens) * step.n_active, width = weight.n / 2;

  for (int64_t begin = 0; begin < task.n_rows; begin += kRowChunk) {
    args.m = static_cast<int>(std::min(kRowChunk, task.n_rows - begin));
    const void* rows[kRowChunk];
    for (int r = 0; r < args.m; ++r) {
      const int64_t row = task.first_row + begin + r;
      const int64_t token = row < n_routed ? step.routing.slot_order[row] / step.n_active : row - n_routed;
      rows[r] = task.x + token * task.in.row_bytes();
    }
    args.rows = rows;
    gemm_of(weight, task.in)(args);
    for (int r = 0; r < args.m; ++r)
      for (int p = 0; p < args.w.n_panels; p += 2) {  // gate panel, up panel
        float inner[kPanelRows];
        const int64_t column = (group * kGroupPanels + p) / 2 * kPanelRows;
        const float* gate = args.c + r * kGroupRows + p * kPanelRows;
        simd_->swiglu(gate, gate + kPanelRows, kPanelRows, inner);
        write_activations(task.inner, inner, column, std::min<int64_t>(kPanelRows, width - column),
                          task.inner_rows + (begin + r) * task.inner.row_bytes());
      }
  }
}

void CpuBackend::run_down(const ExpertStep& step, const ExpertTask& task, int64_t group, int worker) {
  const PackedWeight& weight = *task.down;
  GemmArgs args;
  args.w = weight.group(group);
  args.c = workers_[worker].tile.get<float>(kRowChunk * kGroupRows);
  args.c_stride = kGroupRows;
  args.scratch = workers_[worker].gemm_scratch.data();
  const int64_t n_routed = static_cast<int64_t>(step.n_tokens) * step.n_active;
  const int64_t column = group * kGroupRows, n_columns = std::min<int64_t>(kGroupRows, weight.n - column);

  for (int64_t begin = 0; begin < task.n_rows; begin += kRowChunk) {
    args.m = static_cast<int>(std::min(kRowChunk, task.n_rows - begin));
    const void* rows[kRowChunk];
    for (int r = 0; r < args.m; ++r) rows[r] = task.inner_rows + (begin + r) * task.inner.row_bytes();
    args.rows = rows;
    gemm_of(weight, task.inner)(args);
    for (int r = 0; r < args.m; ++r) {
      const int64_t row = task.first_row + begin + r;
      const bool routed = row < n_routed;
      const int64_t slot = routed ? step.routing.slot_order[row] : 0;
      const int64_t out_row =
          routed ? slot / step.n_active * step.n_slots + slot % step.n_active : (row - n_routed) * step.n_slots + step.n_active;
      simd_->scale(args.c + r * kGroupRows, routed ? step.routing.weights[slot] : 1.0f, n_columns,
                   step.out + out_row * step.width + column);
    }
  }
}

void CpuBackend::experts(const float* x, const ExpertWeights& weights, const Routing& routing, int n_active, int n_tokens,
                         int width, float* out) {
  const bool shared_slot = n_active == 0 || weights.shared_gate_up;
  const ExpertStep step{routing, n_active, n_tokens, n_active + (shared_slot ? 1 : 0), width, out};
  const int64_t n_routed = static_cast<int64_t>(n_tokens) * n_active;

  tasks_.clear();
  bool empty_share = false;
  const auto add_task = [&](const LinearWeight* gate_up, const LinearWeight* down, int64_t first_row, int64_t n_rows) {
    if (n_rows == 0) return;
    if (!gate_up) {
      empty_share = true;
      return;
    }
    ExpertTask task{&packed(*gate_up), &packed(*down), first_row, n_rows, nullptr, {}, {}};
    task.in = form_of(*task.gate_up, Products::fastest);
    task.inner = form_of(*task.down, Products::fastest);
    tasks_.push_back(task);
  };
  if (shared_slot) add_task(weights.shared_gate_up, weights.shared_down, n_routed, n_tokens);  // the longest item first
  for (size_t e = 0; n_active > 0 && e < weights.gate_up.size(); ++e)
    add_task(weights.gate_up[e], weights.down[e], routing.expert_offsets[e],
             routing.expert_offsets[e + 1] - routing.expert_offsets[e]);
  if (empty_share) std::memset(out, 0, static_cast<size_t>(n_tokens) * step.n_slots * width * sizeof(float));

  // Tokens are laid out once for each form that the experts ask for: one, unless a checkpoint mixes formats.
  int64_t inner_bytes = 0, x_bytes = 0;
  for (size_t i = 0; i < tasks_.size(); ++i) {
    inner_bytes += tasks_[i].n_rows * tasks_[i].inner.row_bytes();
    if (i == 0 || !(tasks_[i].in == tasks_[i - 1].in)) x_bytes += n_tokens * tasks_[i].in.row_bytes();
  }
  std::byte* x_rows = rows_.get<std::byte>(x_bytes);
  std::byte* inner_rows = inner_.get<std::byte>(inner_bytes);
  for (size_t i = 0; i < tasks_.size(); ++i) {
    ExpertTask& task = tasks_[i];
    if (i > 0 && task.in == tasks_[i - 1].in) {
      task.x = tasks_[i - 1].x;
    } else {
      lay_out_rows(task.in, x, nullptr, n_tokens, x_rows);
      task.x = x_rows;
      x_rows += n_tokens * task.in.row_bytes();
    }
    task.inner_rows = inner_rows;
    if (task.inner.padded()) std::memset(inner_rows, 0, task.n_rows * task.inner.row_bytes());
    inner_rows += task.n_rows * task.inner.row_bytes();
  }

  const auto run_pass = [&](const PackedWeight* ExpertTask::*weight, auto run) {
    int64_t n_work = 0;
    for (const ExpertTask& task : tasks_) n_work += (task.*weight)->n_groups();
    expert_pieces_.clear();
    for (size_t i = 0; i < tasks_.size(); ++i) {
      const int64_t n_groups = (tasks_[i].*weight)->n_groups(),
                    at_once = (tasks_[i].*weight)->groups_at_once(n_work, pool_.size());
      for (int64_t group = 0; group < n_groups; group += at_once)
        expert_pieces_.push_back(
            {static_cast<int32_t>(i), static_cast<int32_t>(group), static_cast<int32_t>(std::min(group + at_once, n_groups))});
    }
    pool_.parallel_for(static_cast<int64_t>(expert_pieces_.size()), [&](int64_t i, int worker) {
      const ExpertPiece& piece = expert_pieces_[i];
      for (int64_t group = piece.first_group; group < piece.end_group; ++group)
        (this->*run)(step, tasks_[piece.task], group, worker);
    });
  };
  run_pass(&ExpertTask::gate_up, &CpuBackend::run_gate_up);
  run_pass(&ExpertTask::down, &CpuBackend::run_down);
}

}  // namespace sigmoe
