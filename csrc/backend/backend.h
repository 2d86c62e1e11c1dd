// The seam between the engine and a device. The engine says what to compute through this interface; a backend owns
// device memory, the layout of weights, and the kernels. Adding an op touches five places: this file,
// kernels/cpu/reference.cpp, one file per device, one test, one benchmark entry.
//
// Dimension letters: T tokens in this step · B sequences · D model width · H query heads · G KV heads · Dh head size ·
// F expert inner width · E experts · A active experts per token · V vocabulary · P tokens per page · R rows to sample.
// Under tensor parallelism H, G, F and V are this rank's share; D, E and A never shrink.
//
// Activations between ops are float32 (T, ...) row-major in device memory; which precision a backend multiplies in is
// its compute type. Ops are enqueued in order and may be asynchronous; download() and synchronize() wait.
#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "backend/comm.h"
#include "backend/dtype.h"
#include "backend/error.h"
#include "backend/tensor.h"

namespace sigmoe {

constexpr int kPageTokens = 128;  // P: one KV page holds this many tokens

// ---- memory ----------------------------------------------------------------------------------------------------

// Owned device memory, 64-byte aligned or better, zero-filled.
class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  DeviceBuffer(void* data, size_t bytes, std::function<void(void*, size_t)> release)
      : data_(data), bytes_(bytes), release_(std::move(release)) {}
  DeviceBuffer(DeviceBuffer&& other) noexcept { swap(other); }
  DeviceBuffer& operator=(DeviceBuffer&& other) noexcept {
    swap(other);
    return *this;
  }
  ~DeviceBuffer() {
    if (data_) release_(data_, bytes_);
  }
  void* data() const { return data_; }
  size_t bytes() const { return bytes_; }
  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  void swap(DeviceBuffer& other) {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    std::swap(release_, other.release_);
  }
  void* data_ = nullptr;
  size_t bytes_ = 0;
  std::function<void(void*, size_t)> release_;
};

// ---- weights ---------------------------------------------------------------------------------------------------

// How the elements of a linear weight are stored in the checkpoint. Every format means
// W[n, k] = stored[n, k] * scale[n, block(k)], with one block and scale 1 for the first two.
enum class WeightFormat : uint8_t {
  f32,   // 4 bytes
  bf16,  // 2 bytes
  fp8,   // 1 byte E4M3; 128x128 blocks, one scale per row, or one per tensor
  int4,  // 4 bits, two to a byte, low nibble first along k, stored value minus 8; one scale per row and group of k
  int8,  // 1 byte, two's complement; one scale per row
};

const char* weight_format_name(WeightFormat format);

// Bytes of one checkpoint row of k elements.
constexpr size_t weight_row_bytes(WeightFormat format, int64_t k) {
  switch (format) {
    case WeightFormat::f32: return static_cast<size_t>(k) * 4;
    case WeightFormat::bf16: return static_cast<size_t>(k) * 2;
    case WeightFormat::fp8: return static_cast<size_t>(k);
    case WeightFormat::int4: return static_cast<size_t>(k) / 2;
    case WeightFormat::int8: return static_cast<size_t>(k);
  }
  return 0;
}

// What a linear layer is for. Backends that narrow weights leave the edges (head, joins) wider; a router is multiplied in
// float32.
enum class LinearUse : uint8_t { body, edge, router };

// Element k of a checkpoint row, before its scale.
inline float stored_weight(WeightFormat format, const std::byte* row, int64_t k) {
  switch (format) {
    case WeightFormat::f32: {
      float value;
      std::memcpy(&value, row + 4 * k, 4);
      return value;
    }
    case WeightFormat::bf16: {
      uint16_t bits;
      std::memcpy(&bits, row + 2 * k, 2);
      return bf16_to_f32(bits);
    }
    case WeightFormat::fp8: return f8e4m3_to_f32(static_cast<uint8_t>(row[k]));
    case WeightFormat::int8: return static_cast<float>(static_cast<int8_t>(row[k]));
    case WeightFormat::int4: {
      const int pair = static_cast<int>(row[k / 2]);
      return static_cast<float>((k % 2 == 0 ? pair & 15 : pair >> 4) - 8);
    }
  }
  return 0.0f;
}

// This rank's slice of a linear layer y = x W^T, W (n, k).
struct LinearDesc {
  WeightFormat format = WeightFormat::bf16;
  int64_t n = 0;  // output features of the slice
  int64_t k = 0;  // input features of the slice
  // Boundaries of the scale blocks along k, half-open: block b covers [k_bounds[b], k_bounds[b+1]). First 0, last k.
  // A slice that starts inside a checkpoint block has a short first block. Empty for f32 and bf16.
  std::vector<int64_t> k_bounds;
  // Rows [0, n/2) are the gate and [n/2, n) the up projection of one SwiGLU; backends may interleave them.
  bool gate_up = false;
  std::string name;  // for messages
  LinearUse use = LinearUse::body;
};

// A weight in the backend's own layout. Opaque to the engine.
class LinearWeight {
 public:
  virtual ~LinearWeight() = default;
  virtual size_t bytes() const = 0;  // device memory held, scales included
};

// Fills one LinearWeight from checkpoint bytes, so that no second copy of a tensor ever exists. put_rows may be called
// from several threads at once for disjoint row ranges. All rows and scales must have been put before finish().
class LinearBuilder {
 public:
  virtual ~LinearBuilder() = default;
  // rows [row, row + n_rows) of the slice; source rows are `stride_bytes` apart and already start at the slice's k = 0.
  // Throws bad_checkpoint when a value is NaN or infinite.
  virtual void put_rows(int64_t row, int64_t n_rows, const std::byte* source, size_t stride_bytes) = 0;
  // scales (n_rows, blocks) f32 for rows [row, row + n_rows); blocks = k_bounds.size() - 1. Not for f32 and bf16.
  virtual void put_scales(int64_t row, int64_t n_rows, const float* scales) = 0;
  virtual std::unique_ptr<LinearWeight> finish() = 0;
};

// ---- what a step looks like on the device ------------------------------------------------------------------------

// A flat batch of T tokens from B sequences: prefill chunks and decode rows mixed. All pointers are device memory.
struct BatchView {
  int n_tokens = 0;                      // T
  int n_seqs = 0;                        // B; the last ones may have no rows. B = T only where each has one
  int max_pages = 0;                     // columns of page_tables
  const int32_t* token_ids = nullptr;    // (T) in [0, V)
  const int32_t* positions = nullptr;    // (T) position of each token in its sequence
  const int32_t* seq_offsets = nullptr;  // (B + 1): rows of sequence b are [seq_offsets[b], seq_offsets[b+1])
  const int32_t* page_tables = nullptr;  // (B, max_pages) page numbers; entries past the sequence's last are undefined
};

// One layer's KV cache: k and v are (pages, G, P, Dh) each; the order of the P * Dh elements inside a (page, KV head) is
// the backend's own. k is stored after norm and RoPE. f8_e4m3: a value is its code times the scale of its token and KV head.
struct KvView {
  void* k = nullptr;
  void* v = nullptr;
  DType dtype = DType::bf16;
  float* k_scales = nullptr;  // (pages, G, P) each, of an f8_e4m3 cache alone
  float* v_scales = nullptr;
};

struct AttentionShape {
  int n_heads = 0;     // H
  int n_kv_heads = 0;  // G; query head j reads KV head j / (H / G)
  int head_dim = 0;    // Dh
  int rotary_dim = 0;  // leading dims of a head that RoPE turns, NeoX pairs (j, j + rotary_dim/2)
};

struct RouterShape {
  int n_experts = 0;  // E
  int n_active = 0;   // A
  int n_groups = 1;   // consecutive experts form a group
  int n_groups_kept = 1;
  bool normalise = true;  // divide the chosen scores by their sum (+ 1e-20)
  float scaling = 1.0f;   // then multiply by this
};

// Where each token goes. All pointers are device memory.
struct Routing {
  int32_t* expert_ids = nullptr;      // (T, A) in [0, E)
  float* weights = nullptr;           // (T, A)
  int32_t* expert_offsets = nullptr;  // (E + 1): slots of expert e are slot_order[expert_offsets[e] .. expert_offsets[e+1])
  int32_t* slot_order = nullptr;      // (T * A) flat (token * A + choice) indices sorted by expert, then by token
};

// The experts of one layer on this rank. A dense MLP is the case with no routed experts and the MLP as `shared`.
struct ExpertWeights {
  std::vector<const LinearWeight*> gate_up;      // E entries (2F, D); null where this rank's share of F is empty
  std::vector<const LinearWeight*> down;         // E entries (D, F); likewise
  const LinearWeight* shared_gate_up = nullptr;  // (2Fs, D) or null
  const LinearWeight* shared_down = nullptr;     // (D, Fs) or null
  mutable std::shared_ptr<void> prepared;        // what a backend makes of the above on first use (tables of pointers)
};

// One row to sample: everything the sampler needs besides logits and counts. Plain data, uploaded as it is.
//
// A chain checks drafted tokens: rows that follow each other, all of one slot, of which every row but the first names in
// if_previous the token that was drafted for the row before it. Such a row is sampled only if the row before it was sampled and
// gave that very token; otherwise its token is -1 and nothing is counted. A chain's rows run in order, each seeing the counts
// that those before it left, so a chain gives exactly the tokens that sampling one by one would have given.
struct SampleRow {
  int32_t slot = 0;          // row of the counts table; chains of one step use distinct slots. -1: none, for rows without
                             // penalties that are not counted
  int32_t position = 0;      // position of the token being sampled: the counter of the random stream
  uint64_t seed = 0;         // its key
  float temperature = 1.0f;  // 0: greedy
  float top_p = 1.0f;
  float min_p = 0.0f;
  int32_t top_k = 0;  // 0: off
  float repetition_penalty = 1.0f;
  float presence_penalty = 0.0f;
  float frequency_penalty = 0.0f;
  int32_t n_logprobs = -1;               // alternatives to report; -1: no logprobs at all
  int32_t bias_begin = 0, bias_end = 0;  // range in bias_ids / bias_values
  int32_t ban_begin = 0, ban_end = 0;    // range in ban_ids: tokens that must not be sampled now
  int32_t mask_row = -1;                 // row of masks: tokens that may be sampled; -1: all
  int32_t forced_token = -1;             // this token whatever the logits say, its logprobs as ever; -1: sample one
  int32_t if_previous = -1;              // the token that the row before must have given; -1: the first row of a chain
};

constexpr int kMaxLogprobs = 20;

constexpr int mask_words(int64_t vocab_size) { return static_cast<int>((vocab_size + 31) / 32); }

struct SampleArgs {
  const float* logits = nullptr;    // (R, V) f32, the whole vocabulary; not modified
  int n_rows = 0;                   // R
  int vocab_size = 0;               // V
  const SampleRow* rows = nullptr;  // (R)
  const int32_t* bias_ids = nullptr;
  const float* bias_values = nullptr;
  const int32_t* ban_ids = nullptr;
  const uint32_t* masks = nullptr;  // (mask rows, mask_words(V)): bit id % 32 of word id / 32 set: may be sampled
  uint32_t* counts = nullptr;       // (slots, V): bit 31 = token is in the prompt, low bits = times generated
  int32_t* tokens = nullptr;        // (R) out, -1 where a chain has ended; else counts[slot][token] is incremented too
  float* logprobs = nullptr;        // (R) out: log-softmax of the unmodified logits at the token; 0 where not asked
  int32_t* top_ids = nullptr;       // (R, kMaxLogprobs) out: most likely first, -1 past n_logprobs
  float* top_logprobs = nullptr;    // (R, kMaxLogprobs) out
};

// ---- the interface -----------------------------------------------------------------------------------------------

struct BackendOptions {
  int n_threads = 0;             // host backends: threads of this rank; 0 = all the process may use
  std::string kernels = "auto";  // cpu: auto | reference | generic | avx2 | avx512 | avx512bf16 | amx
  DType compute = DType::bf16;   // bf16: multiply in BF16 where the path can; f32: the float32 mode; i8: W8A8, Ascend alone
  // What the KV cache holds: auto is the compute type's own, bfloat16 that or an error, fp8 E4M3 with a scale per token and
  // head.
  std::string kv_cache = "auto";
  // What attention multiplies in over sequences with many rows in a step: auto is the compute type's own, bfloat16 that or an
  // error, fp8 E4M3 of values and attention weights, with an FP8 cache of queries and keys, too. Decoding is as ever.
  std::string prefill_attention = "auto";
  int device_index = 0;        // which of several accelerators; a rank has its own
  bool deterministic = false;  // a row's bits must depend neither on the step's other rows nor on how a prompt was cut: one
                               // kernel class at every row count. CPU paths and float32 modes are so anyway
};

// What a cache holds as options.kv_cache asks: `own`, or FP8 where has_fp8. Throws when the backend has not what is asked for.
DType kv_cache_dtype(const BackendOptions& options, DType own, bool has_fp8);
// Whether options.prefill_attention asks for FP8 in place of `own`. Throws when the backend has not what is asked for.
bool fp8_prefill(const BackendOptions& options, DType own, bool has_fp8);
const char* attention_dtype_name(DType dtype);  // as an option of the two names it

// Bytes of K and V of one token and KV head, scales included.
constexpr size_t kv_head_bytes(DType dtype, int64_t head_dim) {
  return 2 * (static_cast<size_t>(head_dim) * dtype_bytes(dtype) + (dtype == DType::f8_e4m3 ? sizeof(float) : 0));
}

struct BackendInfo {
  std::string device;           // "cpu"
  std::string name;             // "AMD EPYC ..., 2 threads"
  std::string kernels;          // the path that runs: "avx512bf16"
  DType compute = DType::f32;   // what products are multiplied in
  DType kv_dtype = DType::f32;  // what the KV cache must hold
  bool fp8_prefill = false;     // attention of prompts multiplies in E4M3, over heads of kFp8PrefillHeadDim dims
  int n_threads = 0;
  std::string weights;  // how weights are kept where that costs accuracy, once they are loaded; else empty
};
constexpr int kFp8PrefillHeadDim = 128;
// What attention of prompts multiplies in over heads of `head_dim` dims.
DType prefill_dtype(const BackendInfo& info, int64_t head_dim);

class BenchDevice;

class Backend {
 public:
  virtual ~Backend() = default;

  virtual const BackendInfo& info() const = 0;

  // Memory. alloc throws out_of_memory naming `what`, the bytes asked and the bytes free.
  // upload may be called from several threads at once for disjoint ranges.
  virtual DeviceBuffer alloc(size_t bytes, const char* what) = 0;
  virtual void upload(void* device, const void* host, size_t bytes) = 0;
  virtual void download(void* host, const void* device, size_t bytes) = 0;
  virtual void zero(void* device, size_t bytes) = 0;
  virtual void synchronize() = 0;
  virtual uint64_t free_bytes() const = 0;  // that alloc could hand out now

  // A download in two halves: the copy is enqueued behind what was enqueued before it, and waiting for it waits for nothing
  // enqueued later. Of small pieces, as many at a time as there are places.
  static constexpr int kDownloads = 2;
  static constexpr size_t kMostDownloadBytes = 64 << 10;
  virtual void start_download(int place, const void* device, size_t bytes) {
    downloads_[place].resize(bytes);
    download(downloads_[place].data(), device, bytes);
  }
  virtual std::byte* finish_download(int place) { return downloads_[place].data(); }  // good until its next start

  // Called once on the thread of every rank of a world, on all at the same time, before the first step: how ranks find each
  // other where they do not meet through the host. The comm is the one that ops are given, and outlives the backend.
  virtual void join(Comm& comm) {}

  // Runs `ops`, calls of the methods below whose pointers and sizes are the same whenever `key` is: a backend may record
  // what they enqueue and replay it instead of calling ops again. ops must not read results back.
  virtual void run_recorded(uint64_t key, const std::function<void()>& ops) { ops(); }
  // Whether a recorded step is so much cheaper than the same calls that steps are worth padding to sizes seen before, with head
  // and sampler inside; and whether this key would be replayed now, neither recorded nor called.
  virtual bool records_steps() const { return false; }
  virtual bool would_replay(uint64_t key) const { return true; }

  // Marks a point between ops; ms_between() two of them needs a download() or synchronize() behind both.
  static constexpr int kMarks = 4;
  virtual void mark(int index) {
    synchronize();
    marks_[index] = std::chrono::steady_clock::now();
  }
  virtual double ms_between(int first, int second) const {
    return std::chrono::duration<double, std::milli>(marks_[second] - marks_[first]).count();
  }

  // What benchmarks need of this device (backend/bench_device.h), gone before the backend; null: nothing special.
  virtual std::unique_ptr<BenchDevice> bench_device();

  // Throws unsupported when no kernel can read this format or shape.
  virtual std::unique_ptr<LinearBuilder> begin_linear(const LinearDesc& desc) = 0;

  // out (T, D) f32 = table[ids], table (V, D) bf16 or f32.
  virtual void embed(const Tensor& table, const int32_t* ids, int n_tokens, float* out) = 0;

  // residual (T, D) += sum over slots of addend (T, n_slots, D), in slot order, summed over ranks when comm is given
  // (each rank holds a partial result); then out (T, D) = RMSNorm(residual) * weight, in float32. addend may be null
  // (nothing to add) and out may be null (no norm wanted). addend is scratch afterwards. weight (D) f32.
  virtual void reduce_add_rms_norm(float* residual, float* addend, int n_slots, Comm* comm, const float* weight, float eps,
                                   int n_tokens, int width, float* out) = 0;

  // y (T, n) = x (T, k) W^T.
  virtual void linear(const float* x, const LinearWeight& weight, int n_tokens, float* y) = 0;

  // Splits qkv (T, (H + 2G) * Dh): all q heads, then k heads, then v heads. q and k heads are RMS-normed over Dh with one
  // shared weight each (null: no norm), their first rotary_dim dims turned by the row's position, q written to
  // q_out (T, H, Dh) f32, k and v to their page slots. cos, sin (positions, rotary_dim/2) f32.
  virtual void qk_norm_rope_store(const BatchView& batch, const AttentionShape& shape, const float* qkv, const float* q_norm,
                                  const float* k_norm, float eps, const float* cos, const float* sin, const KvView& kv,
                                  float* q_out) = 0;

  // out (T, H * Dh) = softmax(q k^T / sqrt(Dh)) v over positions [0, position of the row] of the row's own sequence.
  virtual void attention(const BatchView& batch, const AttentionShape& shape, const float* q, const KvView& kv, float* out) = 0;

  // logits (T, E) = x (T, D) gate^T in float32; scores = sigmoid(logits); choice by scores + bias within the kept groups
  // (a group's score is the sum of its two best); weights from the unbiased scores. Ties: the lower expert wins.
  // `forced_ids` (T, A) in host memory, when given, replaces the choice (tests). gate (E, D) is a LinearWeight used in float32.
  virtual void route(const float* x, const LinearWeight& gate, const float* bias, const RouterShape& shape, int n_tokens,
                     const int32_t* forced_ids, float* logits, const Routing& out) = 0;

  // out (T, slots, D): slot a < A is weights[t, a] * down(silu(gate x) * up x) of expert_ids[t, a]; then, when shared
  // weights are given or A is 0, one last slot for the shared expert with weight 1. slots = A + (shared ? 1 : 0).
  // Slots whose weights are null are zero. routing is ignored when n_active is 0.
  virtual void experts(const float* x, const ExpertWeights& weights, const Routing& routing, int n_active, int n_tokens,
                       int width, float* out) = 0;

  // logits (R, V of all ranks) f32 = rows of x (T, D) picked by row_ids (R) on the device (null: 0, 1, 2, ...), times lm_head^T
  // (this rank's vocab_widths[rank] rows), gathered over ranks.
  virtual void head_logits(const float* x, const int32_t* row_ids, int n_rows, const LinearWeight& lm_head, Comm* comm,
                           const std::vector<int64_t>& vocab_widths, float* logits) = 0;

  // Order: ban and mask, logit bias, repetition, presence and frequency penalties, temperature, min-p, top-k, top-p; then a
  // draw with Philox4x32-10 keyed by seed, counted by position. Ties rank the lower id first. All in float32.
  virtual void sample(const SampleArgs& args) = 0;

  // Puts a sequence's history into counts[slot] (V): clears it, marks prompt tokens, counts generated ones. prompt and
  // generated are host memory.
  virtual void reset_counts(uint32_t* counts_row, int vocab_size, const int32_t* prompt, int n_prompt, const int32_t* generated,
                            int n_generated) = 0;

  // out (T, 2D) = concat(RMSNorm(embedding, embedding_norm), RMSNorm(hidden, hidden_norm)): the input of an MTP layer's
  // eh_proj and, with its own norms, of a draft layer.
  virtual void join_norms(const float* embedding, const float* embedding_norm, const float* hidden, const float* hidden_norm,
                          float eps, int n_tokens, int width, float* out) = 0;

  // Row i of n_rows: `width` floats from `from` + from_ids[i] * from_stride to `to` + to_ids[i] * to_stride. Null ids count
  // 0, 1, 2, ...; ids are device memory. No row is read that is written, and one that is written twice gets the same values.
  // Values are copied bit by bit, whatever they stand for.
  virtual void copy_rows(const float* from, const int32_t* from_ids, int64_t from_stride, float* to, const int32_t* to_ids,
                         int64_t to_stride, int n_rows, int width) = 0;

 private:
  std::array<std::chrono::steady_clock::time_point, kMarks> marks_{};
  std::array<std::vector<std::byte>, kDownloads> downloads_;
};

}  // namespace sigmoe
