// Several GPUs of one process as one world: sums and gathers by kernels that write into each other's memory over NVLink or
// PCIe, or by NCCL where the GPUs cannot. No call waits on the host, so steps with them can be recorded.
//
// Small sums are one-shot: every rank pushes its partial rows to all others, each eight bytes carrying a float and the number
// of the call, so that a reader knows what it reads without any flag or barrier. Larger ones are two-shot: every rank sums one
// segment of each row and hands it on. Both add in rank order and finish with the residual and the norm of
// launch_reduce_add_rms_norm, bit for bit: a row does not know which of the two computed it, nor on which rank. Two Hoppers sum
// many rows in one meeting instead (comm_many.cu), and rows of 48 or more in BF16.
//
// A wait on the device ends when the world is shut down, or after PeerView::patience_ns: the rank then throws from its next
// check(), and the process lives on.
#pragma once

#include <memory>
#include <vector>

#include "backend/comm.h"
#include "cuda/kernel_choice.h"
#include "cuda/launch.h"

namespace sigmoe::cuda {

constexpr int kMaxRanks = 8;
constexpr int kOneShotRows = 32;     // of one launch at most
constexpr int kTwoShotRows = 512;    // likewise; longer batches take several
constexpr int kTwoShotBlocks = 128;  // at most: all of them must run at once
constexpr int kGatherBlocks = 64;
constexpr int kMaxPeerWidth = 16384;  // floats of a row
constexpr int kRowTiles = 256;        // blocks of a kernel that hands out one row

// What a kernel knows of the world. All pointers are good on every GPU of it.
struct PeerView {
  int rank = 0, world = 1;
  std::byte* memory[kMaxRanks] = {};  // each rank's exchange memory
  uint32_t* stop = nullptr;           // in host memory: not 0 once waits have to end
  uint64_t patience_ns = 10'000'000'000;
  int n_blocks = 64;  // of a two-shot kernel: all of them run at once, on every rank
};

// Where things lie in the exchange memory, for R ranks and rows of `width` floats. Counters are the rank's own; the rest peers
// write.
struct ExchangeLayout {
  ExchangeLayout() = default;
  ExchangeLayout(int width, int world);
  size_t one_shot_counters = 0, two_shot_counters = 0, gather_counters = 0;  // u32 per block
  size_t one_shot = 0;       // (2, kOneShotRows, R, 2, width / 4) of 16 bytes: two floats, each with its call's number
  size_t partial = 0;        // (2, kTwoShotRows, R, ceil(width / 4 / R)) float4: segments to sum, by source
  size_t reduced = 0;        // (2, kTwoShotRows, width / 4) float4
  size_t partial_flags = 0;  // (kTwoShotRows, kMaxRanks) u32
  size_t reduced_flags = 0;  // likewise
  size_t gather_flags = 0;   // (2, kGatherBlocks, kMaxRanks) u32: written, read
  size_t meeting_counter = 0, meeting_flags = 0;  // one u32; (kMaxRanks) u32
  size_t row_counters = 0;                        // (2, kRowTiles) u32: of RowExchange
  size_t row_words = 0;                           // (2, R, 2, width / 4) of 16 bytes, as one_shot has them
  size_t bytes = 0;
  int width = 0;
};

// One row whose parts the kernels that make them push to all ranks themselves (rank_row.cuh), in one of two areas that take
// turns: whoever pushes to an area has seen words in the other one that every rank sent after reading this one.
struct RowExchange {
  PeerView peers;
  size_t words = 0, counters = 0;  // of the area, in every rank's exchange memory
};

struct ReduceArgs {
  float* residual = nullptr;      // (T, width)
  const float* addend = nullptr;  // (T, n_slots, width)
  int n_slots = 0, n_tokens = 0, width = 0;
  const float* weight = nullptr;  // (width)
  float eps = 0.0f;
  float* out = nullptr;  // (T, width), or null: no norm wanted
  void* twin = nullptr;  // (T, width) BF16 or null: `out` again, for the products that follow
};

// comm_reduce.cu. n_tokens at most kOneShotRows, kTwoShotRows; width a multiple of 4, at most kMaxPeerWidth. `clusters`: the
// device has thread block clusters (sm_90).
void launch_one_shot_reduce(const Queue& queue, const PeerView& peers, const ExchangeLayout& at, const ReduceArgs& args,
                            bool clusters);
void launch_two_shot_reduce(const Queue& queue, const PeerView& peers, const ExchangeLayout& at, const ReduceArgs& args);

// comm_gather.cu: out (rows, sum of widths) <- part (rows, widths[r]) of every rank r, side by side. `parts`: where each rank
// has put its own; it may be overwritten when the kernel has ended.
struct GatherArgs {
  const float* parts[kMaxRanks] = {};
  int widths[kMaxRanks] = {};
  int n_rows = 0, total = 0;
  float* out = nullptr;
};
void launch_gather(const Queue& queue, const PeerView& peers, const ExchangeLayout& at, const GatherArgs& args);

// All ranks wait for each other, one block each: the least that any of the above can take.
void launch_meeting(const Queue& queue, const PeerView& peers, const ExchangeLayout& at);

class Nccl;
struct ManyNormArgs;
struct PeerMemory;

// One rank's end of the world. Every method is called by all ranks at the same point of their work.
class DeviceWorld {
 public:
  // Returns once every rank has called it. Null when ranks share a GPU: those meet through the host. Throws not_found when the
  // GPUs cannot reach each other's memory and NCCL is not there either.
  static std::unique_ptr<DeviceWorld> join(Comm& comm, int device, cudaStream_t stream);
  // The way chosen by join(), or by a benchmark. Every rank must have a GPU of its own.
  enum class Way { peer_memory, nccl };
  DeviceWorld(Comm& comm, int device, cudaStream_t stream, Way way);
  ~DeviceWorld();
  DeviceWorld(const DeviceWorld&) = delete;
  DeviceWorld& operator=(const DeviceWorld&) = delete;

  Way way() const { return nccl_ ? Way::nccl : Way::peer_memory; }

  // As Backend::reduce_add_rms_norm. `sums` (T, width) is scratch, used by NCCL only.
  void reduce_add_rms_norm(const Queue& queue, const ReduceArgs& args, float* sums);
  bool wants_sums() const { return nccl_ != nullptr; }

  // Area 0 or 1 for rows of `width` floats; peer memory only. The first call of a width waits for all ranks.
  RowExchange row_exchange(int width, int area);

  // What choose_sum() goes by, and the same of many rows where it says many_reduce: packed for the products behind
  // (norm_many.h), and in BF16 where there is a `twin`.
  RankFacts facts() const;
  void reduce_many(const Queue& queue, const ManyNormArgs& args, void* twin);

  // Where this rank has to put its part of a gather of so many rows; widths as in gather(). Growing it waits for all ranks and
  // is an error while a step is recorded; true in `grown` when addresses given out before are void.
  float* gather_part(const std::vector<int64_t>& widths, int n_rows, bool& grown);
  void gather(const Queue& queue, const std::vector<int64_t>& widths, int n_rows, float* out);

  // Benchmarks' yardsticks, where ranks reach each other's memory: a meeting that carries nothing, and `bytes` of the next rank
  // read by the copy engine. The first call of the latter waits for all ranks.
  void meet(const Queue& queue);
  void read_next(const Queue& queue, size_t bytes);

  // Throws a device error when waits of this rank were ended before what they waited for had come.
  void check() const;

  // The largest number of rows that goes one-shot; 0: what was measured to be best; -1: none.
  void set_one_shot_rows(int rows) { one_shot_rows_ = rows; }
  void set_patience(uint64_t ns) { view_.patience_ns = ns; }

 private:
  void share(size_t bytes, const char* what, std::vector<std::shared_ptr<PeerMemory>>& held);
  void reserve(int width);

  Comm& comm_;
  int device_;
  cudaStream_t stream_;
  bool clusters_ = false, all_hopper_ = false;
  int one_shot_rows_ = 0;
  PeerView view_;
  ExchangeLayout layout_;
  std::shared_ptr<uint32_t> stop_;
  std::shared_ptr<cudaMemPool_t> pool_;
  std::vector<std::shared_ptr<PeerMemory>> exchange_;      // every rank's, kept until all are done with it
  std::vector<std::shared_ptr<PeerMemory>> gather_parts_;  // likewise
  size_t gather_floats_ = 0;                               // of each rank's part
  std::vector<std::shared_ptr<PeerMemory>> yardsticks_;    // likewise
  size_t yardstick_bytes_ = 0;                             // of each half of them
  float* staging_ = nullptr;                               // NCCL's gathers
  std::unique_ptr<Nccl> nccl_;
};

}  // namespace sigmoe::cuda
