#include "cuda/cuda_backend.h"

#include <algorithm>
#include <cstring>

#include "cuda/attention_decode.h"
#include "cuda/attention_prefill.h"
#include "cuda/mma_attention.h"
#include "cuda/narrow_experts.h"
#include "cuda/norm_many.h"
#include "cuda/ops.h"
#include "cuda/qk_store_many.h"

namespace sigmoe::cuda {
namespace {

constexpr size_t kLandingBytes = 64 << 10;
constexpr size_t kBusRowBytes = 1024;       // what a block of a copying kernel takes
constexpr size_t kMostBusBytes = 64 << 10;  // longer copies are sooner by a copy engine
constexpr size_t kMaxRecorded = 256;
constexpr int kMostTwinTokens = 128;                     // longer steps quantise or convert for themselves
constexpr size_t kMaxSplitBytes = size_t{64} << 20;      // attention partials; longer batches take several launches
constexpr size_t kMaxChainBytes = size_t{256} << 20;     // likewise
constexpr size_t kMaxExpandedBytes = size_t{512} << 20;  // FP8 pages as BF16; more sequences take several launches

bool same_shape(const WeightView& a, const WeightView& b) {
  return a.n == b.n && a.k == b.k && a.format == b.format && a.gate_up == b.gate_up && a.row_shift == b.row_shift &&
         a.k_shift == b.k_shift && a.scale_columns == b.scale_columns;
}

// Makes the GPU the calling thread's own: everything a thread asks of the runtime goes to the GPU it has named last.
int select_device(int index) {
  int n_devices = 0;
  CUDA_CHECK(cudaGetDeviceCount(&n_devices));
  if (index >= n_devices)
    throw EngineError(
        ErrorCode::not_found,
        "GPU " + std::to_string(index) + " asked for (counting from 0): the driver lists " + std::to_string(n_devices),
        "lower tensorParallelSize or dataParallelSize, or let the process see more GPUs (CUDA_VISIBLE_DEVICES)");
  CUDA_CHECK(cudaSetDevice(index));
  return index;
}

}  // namespace

CudaBackend::Stream::Stream() { CUDA_CHECK(cudaStreamCreateWithFlags(&handle, cudaStreamNonBlocking)); }
CudaBackend::Stream::~Stream() {
  cudaStreamSynchronize(handle);
  cudaStreamDestroy(handle);
}

CudaBackend::CudaBackend(const BackendOptions& options)
    : exact_(options.compute == DType::f32),
      before_hopper_(options.kernels == "mma"),
      deterministic_(options.deterministic),
      device_(select_device(options.device_index)) {
  if (options.kernels != "auto" && options.kernels != "mma")
    throw EngineError(ErrorCode::invalid_argument,
                      "kernels '" + options.kernels + "' asked for; on cuda there are auto and mma",
                      "mma: many rows by the kernels of cards before Hopper, on any card");
  cudaDeviceProp properties;
  CUDA_CHECK(cudaGetDeviceProperties(&properties, device_));
  queue_ = {compute_.handle, properties.major >= 9};
  sm_ = 10 * properties.major + properties.minor;
  if (before_hopper_ || (sm_ == 90 && !has_tensor_gemm())) sm_ = 80;
  steps_ = std::make_unique<UploadQueue>(compute_.handle);
  weights_ = std::make_unique<UploadQueue>(loading_.handle);
  CUDA_CHECK(cudaMallocHost(reinterpret_cast<void**>(&landing_), kLandingBytes));
  for (cudaEvent_t& mark : marks_) CUDA_CHECK(cudaEventCreate(&mark));
  for (Landing& landing : landings_) {
    CUDA_CHECK(cudaMallocHost(reinterpret_cast<void**>(&landing.host), kMostDownloadBytes));
    CUDA_CHECK(cudaEventCreateWithFlags(&landing.landed, cudaEventDisableTiming));
  }
  use_many_row_kernels(!deterministic_);
  info_.device = "cuda";
  info_.name = properties.name;
  info_.kernels = exact_ ? "exact" : "sm_" + std::to_string(properties.major) + std::to_string(properties.minor);
  if (before_hopper_ && !exact_) info_.kernels += ", mma";
  if (deterministic_ && !exact_) info_.kernels += ", deterministic";
  info_.compute = exact_ ? DType::f32 : DType::bf16;
  info_.kv_dtype = kv_cache_dtype(options, info_.compute, !exact_ && sm_ == 90);
  if (deterministic_ && info_.kv_dtype == DType::f8_e4m3)
    throw EngineError(ErrorCode::unsupported,
                      "deterministic with an FP8 KV cache was asked for: its kernels are of two classes",
                      "use KV cache type bfloat16");
  info_.n_threads = options.n_threads;
}

CudaBackend::~CudaBackend() {
  cudaSetDevice(device_);
  forget_recorded();
  for (const cudaEvent_t mark : marks_) cudaEventDestroy(mark);
  for (const Landing& landing : landings_) {
    cudaEventDestroy(landing.landed);
    cudaFreeHost(landing.host);
  }
  cudaFreeHost(landing_);
}

// ---- memory ----------------------------------------------------------------------------------------------------------

DeviceBuffer CudaBackend::alloc(size_t bytes, const char* what) {
  enter();
  void* data = device_malloc(bytes, what);
  DeviceBuffer buffer(data, bytes, [](void* memory, size_t) { cudaFree(memory); });
  writes(data);
  CUDA_CHECK(cudaMemsetAsync(data, 0, bytes, queue_.stream));
  return buffer;
}

void CudaBackend::upload(void* device, const void* host, size_t bytes) {
  enter();
  writes(device);
  if (bytes == 0 || bytes % kBusRowBytes != 0 || bytes > kMostBusBytes) return steps_->copy(device, host, bytes);
  steps_->lend(host, bytes, [&](const std::byte* pinned) { copy_by_kernel(pinned, device, bytes); });
}

// Small copies between a step and the next are kernels of the steps' own queue: a copy engine has to be waited for twice, once
// before it starts and once when it is done.
void CudaBackend::copy_by_kernel(const void* from, void* to, size_t bytes) {
  const bool rows = bytes % kBusRowBytes == 0;
  const int width = static_cast<int>((rows ? kBusRowBytes : bytes) / sizeof(float));
  launch_copy_rows(queue_, static_cast<const float*>(from), nullptr, width, static_cast<float*>(to), nullptr, width,
                   rows ? static_cast<int>(bytes / kBusRowBytes) : 1, width);
}

void CudaBackend::download(void* host, const void* device, size_t bytes) {
  enter();
  if (slots_.holds(device)) expand_slots();
  const bool small = bytes <= kLandingBytes;
  CUDA_CHECK(cudaMemcpyAsync(small ? landing_ : host, device, bytes, cudaMemcpyDeviceToHost, queue_.stream));
  synchronize();
  if (small && bytes > 0) std::memcpy(host, landing_, bytes);
}

void CudaBackend::start_download(int place, const void* device, size_t bytes) {
  enter();
  SIGMOE_CHECK(bytes <= kMostDownloadBytes, "a download is larger than its place");
  SIGMOE_CHECK(bytes % sizeof(float) == 0, "a download of part of a word");
  if (bytes > 0) copy_by_kernel(device, landings_[place].host, bytes);
  CUDA_CHECK(cudaEventRecord(landings_[place].landed, queue_.stream));
}

std::byte* CudaBackend::finish_download(int place) {
  enter();
  CUDA_CHECK(cudaEventSynchronize(landings_[place].landed));
  if (world_) world_->check();
  return landings_[place].host;
}

void CudaBackend::zero(void* device, size_t bytes) {
  enter();
  writes(device);
  CUDA_CHECK(cudaMemsetAsync(device, 0, bytes, queue_.stream));
}

uint64_t CudaBackend::free_bytes() const {
  enter();
  size_t free = 0, total = 0;
  CUDA_CHECK(cudaMemGetInfo(&free, &total));
  return free;
}

void CudaBackend::synchronize() {
  enter();
  CUDA_CHECK(cudaStreamSynchronize(queue_.stream));
  if (world_) world_->check();
}

void CudaBackend::enter() const { CUDA_CHECK(cudaSetDevice(device_)); }

void CudaBackend::join(Comm& comm) {
  enter();
  world_ = DeviceWorld::join(comm, device_, queue_.stream);
  meets_on_host_ = !world_;
}

// The first run of a key only runs: it sizes scratch memory and makes tables. The second is recorded, the rest replay.
void CudaBackend::run_recorded(uint64_t key, const std::function<void()>& ops) {
  if (meets_on_host_) return ops();
  enter();
  if (recorded_.size() >= kMaxRecorded && !recorded_.contains(key)) forget_recorded();
  twin_ = {};
  if (recorded_[key].n_runs++ == 0) {
    ops();
    twin_ = {};
    return;
  }
  if (!recorded_[key].graph) {
    cudaGraph_t graph = nullptr;
    CUDA_CHECK(cudaStreamBeginCapture(queue_.stream, cudaStreamCaptureModeThreadLocal));
    recording_ = true;
    try {
      ops();
    } catch (...) {
      recording_ = false;
      cudaStreamEndCapture(queue_.stream, &graph);
      if (graph) cudaGraphDestroy(graph);
      throw;
    }
    recording_ = false;
    twin_ = {};
    CUDA_CHECK(cudaStreamEndCapture(queue_.stream, &graph));
    const cudaError_t status = cudaGraphInstantiate(&recorded_[key].graph, graph, 0);
    cudaGraphDestroy(graph);
    CUDA_CHECK(status);
    recorded_[key].slots = slots_;
  }
  CUDA_CHECK(cudaGraphLaunch(recorded_[key].graph, queue_.stream));
  slots_ = recorded_[key].slots;
}

bool CudaBackend::would_replay(uint64_t key) const {
  const auto found = recorded_.find(key);
  return found != recorded_.end() && found->second.graph;
}

void CudaBackend::mark(int index) { CUDA_CHECK(cudaEventRecord(marks_[index], queue_.stream)); }

double CudaBackend::ms_between(int first, int second) const {
  float ms = 0;
  CUDA_CHECK(cudaEventElapsedTime(&ms, marks_[first], marks_[second]));
  return ms;
}

void CudaBackend::forget_recorded() {
  if (recorded_.empty()) return;
  cudaStreamSynchronize(queue_.stream);
  for (const auto& [key, recorded] : recorded_)
    if (recorded.graph) cudaGraphExecDestroy(recorded.graph);
  recorded_.clear();
}

// ---- weights ---------------------------------------------------------------------------------------------------------

std::unique_ptr<LinearBuilder> CudaBackend::begin_linear(const LinearDesc& desc) {
  enter();
  return begin_weight(desc, arena_, *weights_, exact_);
}

std::unique_ptr<LinearWeight> CudaBackend::random_linear(const LinearDesc& desc, uint64_t seed) {
  return random_weight(desc, seed, arena_, *weights_);
}

const CudaBackend::ExpertTable& CudaBackend::table_of(const ExpertWeights& weights) {
  const auto* known = static_cast<const ExpertTable*>(weights.prepared.get());
  if (known && known->gate_up == weights.gate_up && known->down == weights.down) return *known;
  auto table = std::make_shared<ExpertTable>();
  table->gate_up = weights.gate_up;
  table->down = weights.down;
  const auto fill = [&](const std::vector<const LinearWeight*>& experts, WeightView& shape, DeviceBuffer& tiles,
                        DeviceBuffer& views) {
    std::vector<ExpertTiles> host_tiles(experts.size());
    std::vector<WeightView> host_views(experts.size());
    bool first = true;
    for (size_t e = 0; e < experts.size(); ++e) {
      if (!experts[e]) {
        table->complete = false;
        continue;
      }
      host_views[e] = view_of(*experts[e]);
      host_tiles[e] = {host_views[e].tiles, host_views[e].scales};
      if (first) shape = host_views[e];
      first = false;
      table->uniform = table->uniform && same_shape(shape, host_views[e]);
    }
    shape.tiles = nullptr;
    shape.scales = nullptr;
    tiles = alloc(host_tiles.size() * sizeof(ExpertTiles), "expert tables");
    views = alloc(host_views.size() * sizeof(WeightView), "expert tables");
    upload(tiles.data(), host_tiles.data(), host_tiles.size() * sizeof(ExpertTiles));
    upload(views.data(), host_views.data(), host_views.size() * sizeof(WeightView));
  };
  fill(weights.gate_up, table->gate_up_shape, table->gate_up_tiles, table->gate_up_views);
  fill(weights.down, table->down_shape, table->down_tiles, table->down_views);
  weights.prepared = table;
  return *table;
}

// ---- ops -------------------------------------------------------------------------------------------------------------

void CudaBackend::embed(const Tensor& table, const int32_t* ids, int n_tokens, float* out) {
  writes(out);
  if (n_tokens > 0) launch_embed(queue_, table, ids, n_tokens, out);
}

void CudaBackend::reduce_add_rms_norm(float* residual, float* addend, int n_slots, Comm* comm, const float* weight, float eps,
                                      int n_tokens, int width, float* out) {
  if (n_tokens == 0 || (!addend && !out)) return;
  writes(residual);
  if (out) writes(out);
  const bool packs = out && many_rows_ && packs_ && n_tokens >= kManyExpertRows && norm_packs(width) && !(addend && comm);
  const bool addend_is_bf16 = addend && slots_.holds(addend);
  if (addend_is_bf16 && !packs) {  // the other kernels read float32
    float* sums = scratch<float>(slot_sums_, static_cast<size_t>(n_tokens) * width);
    launch_sum_slots(queue_, addend, true, n_slots, n_tokens, width, sums);
    addend = sums;
    n_slots = 1;
  }
  if (addend && comm && world_) {
    const ReduceArgs args{residual, addend, n_slots, n_tokens, width, weight, eps, out};
    return world_->reduce_add_rms_norm(
        queue_, args, world_->wants_sums() ? scratch<float>(gathered_, static_cast<size_t>(n_tokens) * width) : nullptr);
  }
  if (addend && comm) {  // through the host: right on any world of ranks, and only that
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
    WeightView multiplier;  // of any weight that `out` may meet
    multiplier.format = args.format = *packs_;
    multiplier.n_groups = width / kGroup;
    args.packed = packed_rows(packed_normed_, normed_scales_, multiplier, n_tokens);
    launch_many_norm(queue_, args);
    twin_ = {out, n_tokens, width, nullptr, args.packed, args.format};
    return;
  }
  void* twin = nullptr;
  const int most_twin_tokens = many_rows_ ? kManyExpertRows - 1 : mma_rows_ ? n_tokens : kMostTwinTokens;
  if (out && !exact_ && n_tokens > 1 && n_tokens <= most_twin_tokens && norm_has_twin(width)) {
    twin = scratch<uint16_t>(normed_, static_cast<size_t>(n_tokens) * width);
    twin_ = {out, n_tokens, width, twin, {}, {}};
  }
  launch_reduce_add_rms_norm(queue_, residual, addend, n_slots, weight, eps, n_tokens, width, out, twin);
}

void CudaBackend::writes(const void* address) {
  const float* at = static_cast<const float*>(address);
  if (twin_.rows && at >= twin_.rows && at < twin_.rows + static_cast<size_t>(twin_.n_rows) * twin_.width) twin_ = {};
  if (slots_.holds(address)) slots_ = {};
}

// Whoever reads the slots sees floats.
void CudaBackend::expand_slots() {
  const size_t n = slots_.bytes / sizeof(uint16_t);
  float* floats = scratch<float>(slot_sums_, n);
  launch_sum_slots(queue_, slots_.data, true, 1, 1, static_cast<int>(n), floats);
  CUDA_CHECK(cudaMemcpyAsync(slots_.data, floats, n * sizeof(float), cudaMemcpyDeviceToDevice, queue_.stream));
  slots_ = {};
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

// y (n_rows, n) = rows of x, picked by row_ids when given, times weight^T.
void CudaBackend::multiply(const float* x, const int32_t* row_ids, int n_rows, const WeightView& weight, float* y) {
  writes(y);
  if (n_rows == 0) return;
  if (exact_) return launch_exact_linear(queue_, x, row_ids, weight, n_rows, y);
  if (takes_many_rows(n_rows, weight)) {
    TensorGemmArgs args;
    args.weight = weight;
    args.n_rows = n_rows;
    args.out = y;
    if (const PackedRows* packed = row_ids ? nullptr : packed_twin_of(x, n_rows, weight)) {
      args.x = *packed;
    } else {
      args.x = packed_rows(packed_, packed_scales_, weight, n_rows);
      launch_pack_rows(queue_, weight.format, x, row_ids, n_rows, weight.k, args.x, {});
    }
    return launch_tensor_gemm(queue_, args);
  }
  if (takes_mma_rows(n_rows, weight)) {
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
  const bool direct = !twin && reads_float(weight, n_rows);
  args.dense_x = direct ? x : twin ? twin : to_bf16(x, row_ids, n_rows, weight.k);
  if (direct || twin) args.row_ids = row_ids;
  launch_gemm(queue_, args, direct);
}

// Memory for n_rows of what `weight` multiplies.
PackedRows CudaBackend::packed_rows(Scratch& data, Scratch& scales, const WeightView& weight, int n_rows) {
  const int n_blocks = weight.n_groups * kGroup / block_k(weight.format), stride = round_up_8(n_rows);
  return {scratch<uint8_t>(data, PackedRows::data_bytes(n_blocks, stride)),
          scratch<float>(scales, PackedRows::n_scales(n_blocks, stride)), stride};
}

void CudaBackend::linear(const float* x, const LinearWeight& weight, int n_tokens, float* y) {
  multiply(x, nullptr, n_tokens, view_of(weight), y);
}

void CudaBackend::qk_norm_rope_store(const BatchView& batch, const AttentionShape& shape, const float* qkv, const float* q_norm,
                                     const float* k_norm, float eps, const float* cos, const float* sin, const KvView& kv,
                                     float* q_out) {
  writes(q_out);
  if (batch.n_tokens == 0) return;
  if (many_rows_ && batch.n_tokens >= kManyExpertRows && fits_many_store(shape, kv.dtype))
    return launch_many_qk_norm_rope_store(queue_, batch, shape, qkv, q_norm, k_norm, eps, cos, sin, kv, q_out);
  launch_qk_norm_rope_store(queue_, batch, shape, qkv, q_norm, k_norm, eps, cos, sin, kv, q_out);
}

void CudaBackend::attention(const BatchView& batch, const AttentionShape& shape, const float* q, const KvView& kv, float* out) {
  writes(out);
  if (batch.n_tokens == 0) return;
  if (kv.dtype == DType::f8_e4m3) {
    if (!has_chain_attention(shape, sm_))
      throw EngineError(ErrorCode::unsupported,
                        "an FP8 KV cache of heads of " + std::to_string(shape.head_dim) + " dims has no CUDA kernel",
                        "use KV cache type bfloat16");
    return attention_by_rows(batch, shape, q, kv, out);
  }
  if (exact_ || !has_split_attention(shape, kv.dtype)) return launch_exact_attention(queue_, batch, shape, q, kv, out);
  // Few sequences whose rows may all be tokens and drafts: split attention is sooner there. A draft's step has as many
  // sequences as one without drafts, so drafts change no class.
  const bool few = batch.n_seqs < 24 && batch.n_tokens <= kMostChainRows * batch.n_seqs;
  if (!deterministic_ && !few && has_chain_attention(shape, sm_)) return attention_by_rows(batch, shape, q, kv, out);
  // Two classes of rows here too, but in those steps; only what may have both is split up.
  int n_rows = batch.n_tokens, most_rows = 0;
  if (mma_rows_ && !few && batch.n_tokens - batch.n_seqs >= kMostChainRows && has_mma_attention(shape)) {
    launch_mma_attention(queue_, batch, shape, kMostChainRows + 1, q, kv, out);
    if (batch.n_seqs == 1) return;
    n_rows = batch.n_seqs * kMostChainRows, most_rows = kMostChainRows;
  }
  const size_t row_bytes = split_partial_bytes(shape, 1, batch.max_pages);
  const int rows_at_once = static_cast<int>(std::clamp<size_t>(kMaxSplitBytes / row_bytes, 1, n_rows));
  const int width = shape.n_heads * shape.head_dim;
  uint16_t* twin = nullptr;
  if (most_rows == 0 && batch.n_tokens > 1 && batch.n_tokens <= (many_rows_ ? kManyRows - 1 : kMostTwinTokens)) {
    twin = scratch<uint16_t>(normed_, static_cast<size_t>(batch.n_tokens) * width);
    twin_ = {out, batch.n_tokens, width, twin, {}, {}};
  }
  const SplitScratch split = split_scratch(batch, shape, rows_at_once);
  for (int row = 0; row < n_rows; row += rows_at_once)
    launch_split_attention_of_few(queue_, batch, shape, most_rows, row, std::min(rows_at_once, n_rows - row), q, kv, split, out,
                                  twin);
}

SplitScratch CudaBackend::split_scratch(const BatchView& batch, const AttentionShape& shape, int n_rows) {
  return {scratch<float>(partial_attention_, split_partial_bytes(shape, n_rows, batch.max_pages) / sizeof(float)),
          scratch<int32_t>(arrivals_, static_cast<size_t>(n_rows) * shape.n_kv_heads)};
}

// Two classes of rows: those of sequences with at most kMostChainRows rows in the step, and the others. Within a class a row's
// bits depend on its position alone.
void CudaBackend::attention_by_rows(const BatchView& batch, const AttentionShape& shape, const float* q, const KvView& kv,
                                    float* out) {
  if (batch.n_seqs > 1 || batch.n_tokens <= kMostChainRows) {
    int n_at_once = batch.n_seqs;
    const auto bytes = [&] { return chain_partial_bytes(shape, batch, most_chain_rows(batch, n_at_once)); };
    while (n_at_once > 1 && bytes() > kMaxChainBytes) n_at_once = (n_at_once + 1) / 2;
    const ChainScratch chain{scratch<float>(partial_attention_, bytes() / sizeof(float)),
                             scratch<int32_t>(chain_rows_, most_chain_rows(batch, n_at_once))};
    for (int b = 0; b < batch.n_seqs; b += n_at_once)
      launch_chain_attention(queue_, batch, shape, b, std::min(n_at_once, batch.n_seqs - b), q, kv, chain, out);
  }
  if (batch.n_tokens - batch.n_seqs < kMostChainRows) return;
  const int least_rows = kMostChainRows + 1;
  if (kv.dtype != DType::f8_e4m3)
    return launch_prefill_attention(queue_, batch, shape, least_rows, 0, batch.n_seqs, false, q, kv, out);
  const size_t seq_bytes = static_cast<size_t>(batch.max_pages) * shape.n_kv_heads * kPageTokens * shape.head_dim * 2;
  const int n_at_once = static_cast<int>(std::clamp<size_t>(kMaxExpandedBytes / (2 * seq_bytes), 1, batch.n_seqs));
  std::byte* pages = scratch<std::byte>(expanded_, 2 * n_at_once * seq_bytes);
  const KvView expanded{pages, pages + n_at_once * seq_bytes, DType::bf16};
  for (int b = 0; b < batch.n_seqs; b += n_at_once) {
    const int n = std::min(n_at_once, batch.n_seqs - b);
    launch_expand_pages(queue_, batch, shape, least_rows, b, n, kv, expanded.k, expanded.v);
    launch_prefill_attention(queue_, batch, shape, least_rows, b, n, true, q, expanded, out);
  }
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
  launch_route(queue_, x, view, bias, shape, n_tokens, many_rows_, forced, split, logits, out);
}

void CudaBackend::experts(const float* x, const ExpertWeights& weights, const Routing& routing, int n_active, int n_tokens,
                          int width, float* out) {
  writes(out);
  if (n_tokens == 0) return;
  const ExpertTable& table = table_of(weights);
  const int n_slots = n_active + (n_active == 0 || weights.shared_gate_up ? 1 : 0);
  const bool nothing_shared = n_active == 0 && !weights.shared_gate_up;
  if ((n_active > 0 && !table.complete) || nothing_shared)  // this rank's missing shares stay zero
    zero(out, static_cast<size_t>(n_tokens) * n_slots * width * sizeof(float));
  if (nothing_shared) return;
  const auto tensor = [&](const WeightView& view) { return n_tokens >= kManyExpertRows && takes_many_rows(n_tokens, view); };
  const auto mma = [&](const WeightView& view) { return n_tokens >= kMmaExpertRows && takes_mma_rows(n_tokens, view); };
  const bool by_tensor = takes_many_experts(weights, table, n_active, tensor);
  if (by_tensor || takes_many_experts(weights, table, n_active, mma)) {
    const auto run = by_tensor ? &CudaBackend::run_many_experts : &CudaBackend::run_mma_experts;
    const bool routed = n_active > 0 && table.gate_up_shape.n > 0, shared = weights.shared_gate_up != nullptr;
    const bool alike = routed && shared && same_shape(view_of(*weights.shared_gate_up), table.gate_up_shape) &&
                       same_shape(view_of(*weights.shared_down), table.down_shape);
    if (routed) (this->*run)(x, weights, table, routing, true, alike, n_active, n_tokens, n_slots, out);
    if (shared && !alike) (this->*run)(x, weights, table, routing, false, true, n_active, n_tokens, n_slots, out);
    if (by_tensor) slots_ = {out, static_cast<size_t>(n_tokens) * n_slots * width * sizeof(uint16_t)};
    return;
  }
  if (!exact_ && (n_active == 0 || table.uniform))
    return run_experts(x, weights, table, routing, n_active, n_tokens, n_slots, width, out);

  ExactExperts args;
  args.gate_up = table.gate_up_views.as<WeightView>();
  args.down = table.down_views.as<WeightView>();
  if (weights.shared_gate_up)
    args.shared_gate_up = view_of(*weights.shared_gate_up), args.shared_down = view_of(*weights.shared_down);
  args.expert_ids = routing.expert_ids;
  args.slot_weights = routing.weights;
  args.n_tokens = n_tokens, args.n_active = n_active, args.n_slots = n_slots, args.width = width;
  args.inner_stride = args.shared_gate_up.n / 2;
  if (n_active > 0)
    for (const LinearWeight* weight : weights.gate_up)
      if (weight) args.inner_stride = std::max(args.inner_stride, view_of(*weight).n / 2);
  if (args.inner_stride == 0) return;
  launch_exact_experts(queue_, args, x, scratch<float>(inner_, static_cast<size_t>(n_tokens) * n_slots * args.inner_stride),
                       out);
}

template <typename Takes>
bool CudaBackend::takes_many_experts(const ExpertWeights& weights, const ExpertTable& table, int n_active,
                                     const Takes& takes) const {
  const auto fits = [&](const WeightView& gate_up, const WeightView& down) {
    return gate_up.n == 0 || (gate_up.format == down.format && takes(gate_up) && takes(down));
  };
  return (n_active == 0 || (table.uniform && fits(table.gate_up_shape, table.down_shape))) &&
         (!weights.shared_gate_up || fits(view_of(*weights.shared_gate_up), view_of(*weights.shared_down)));
}

// The same by narrow_experts.h: steps that are not long, with lists of their own. False: it has no such kernel.
bool CudaBackend::run_narrow_experts(const float* x, const ExpertWeights& weights, const ExpertTable& table,
                                     const Routing& routing, bool shared, int n_active, int n_tokens, int n_slots, float* out) {
  NarrowArgs up, down;
  GemmArgs& common = up.gemm;
  common.n_tokens = n_tokens;
  common.n_active = n_active;
  common.n_slots = n_slots;
  common.n_experts = static_cast<int>(weights.gate_up.size());
  common.expert_offsets = routing.expert_offsets;
  common.slot_order = routing.slot_order;
  common.slot_weights = routing.weights;
  down.gemm = common;
  up.gemm.mode = GemmMode::gate_up;
  down.gemm.mode = GemmMode::down;
  up.gemm.routed = table.gate_up_shape;
  down.gemm.routed = table.down_shape;
  up.gemm.experts = table.gate_up_tiles.as<ExpertTiles>();
  down.gemm.experts = table.down_tiles.as<ExpertTiles>();
  if (shared) {
    up.gemm.dense = view_of(*weights.shared_gate_up);
    down.gemm.dense = view_of(*weights.shared_down);
  }
  const WeightView &wide = up.gemm.routed, &back = down.gemm.routed;
  if (n_tokens > kMostNarrowRows || !fits_narrow_experts(wide, back, common.n_experts)) return false;
  const PackedRows* packed = packed_twin_of(x, n_tokens, wide);
  up.x = packed ? *packed : packed_rows(packed_, packed_scales_, wide, n_tokens);
  up.inner = down.x = packed_rows(packed_inner_, inner_scales_, back,
                                  narrow_packed_rows(n_tokens * n_active, common.n_experts, shared ? n_tokens : 0));
  down.slots = reinterpret_cast<__nv_bfloat16*>(out);
  if (!packed) launch_pack_rows(queue_, wide.format, x, nullptr, n_tokens, wide.k, up.x, {});
  launch_narrow_experts(queue_, up);
  launch_narrow_experts(queue_, down);
  return true;
}

// Packing and the list of row tiles, gate-up with SwiGLU, down: three launches, for the routed experts, the shared one or both.
void CudaBackend::run_many_experts(const float* x, const ExpertWeights& weights, const ExpertTable& table,
                                   const Routing& routing, bool routed, bool shared, int n_active, int n_tokens, int n_slots,
                                   float* out) {
  if (routed && run_narrow_experts(x, weights, table, routing, shared, n_active, n_tokens, n_slots, out)) return;
  const int n_experts = routed ? static_cast<int>(weights.gate_up.size()) : 0, n_shared = shared ? n_tokens : 0;
  const int n_routed = routed ? n_tokens * n_active : 0;
  TensorGemmArgs up, down;
  up.mode = GemmMode::gate_up;
  down.mode = GemmMode::down;
  up.weight = shared ? view_of(*weights.shared_gate_up) : table.gate_up_shape;
  down.weight = shared ? view_of(*weights.shared_down) : table.down_shape;
  up.experts = table.gate_up_tiles.as<ExpertTiles>();
  down.experts = table.down_tiles.as<ExpertTiles>();
  const PackedRows* packed = packed_twin_of(x, n_tokens, up.weight);
  up.x = packed ? *packed : packed_rows(packed_, packed_scales_, up.weight, n_tokens);
  up.inner = down.x = packed_rows(packed_inner_, inner_scales_, down.weight, most_packed_rows(n_routed, n_experts, n_shared));
  down.slots = reinterpret_cast<__nv_bfloat16*>(out);

  TilePlan plan;
  plan.expert_offsets = routing.expert_offsets;
  plan.experts = up.experts;
  plan.n_experts = n_experts;
  plan.n_shared = n_shared;
  plan.tiles = scratch<RowTile>(row_tiles_, most_tiles(n_routed, n_experts, n_shared) + 1);
  plan.n_tiles = reinterpret_cast<int32_t*>(plan.tiles++);  // the first place holds the count
  for (TensorGemmArgs* args : {&up, &down}) {
    args->tiles = plan.tiles;
    args->n_tiles = plan.n_tiles;
    args->n_experts = n_experts;
    args->slot_order = routing.slot_order;
    args->slot_weights = routing.weights;
    args->n_active = n_active;
    args->n_slots = n_slots;
  }
  launch_pack_rows(queue_, up.weight.format, x, nullptr, packed ? 0 : n_tokens, up.weight.k, up.x, plan);
  launch_tensor_gemm(queue_, up);
  launch_tensor_gemm(queue_, down);
}

// The same by mma.sync, from BF16 rows as they are.
void CudaBackend::run_mma_experts(const float* x, const ExpertWeights& weights, const ExpertTable& table,
                                  const Routing& routing, bool routed, bool shared, int n_active, int n_tokens, int n_slots,
                                  float* out) {
  const int n_experts = routed ? static_cast<int>(weights.gate_up.size()) : 0, n_shared = shared ? n_tokens : 0;
  const int n_routed = routed ? n_tokens * n_active : 0;
  MmaGemmArgs up, down;
  up.mode = GemmMode::gate_up;
  down.mode = GemmMode::down;
  up.weight = shared ? view_of(*weights.shared_gate_up) : table.gate_up_shape;
  down.weight = shared ? view_of(*weights.shared_down) : table.down_shape;
  up.experts = table.gate_up_tiles.as<ExpertTiles>();
  down.experts = table.down_tiles.as<ExpertTiles>();

  TilePlan plan;
  plan.expert_offsets = routing.expert_offsets;
  plan.experts = up.experts;
  plan.n_experts = n_experts;
  plan.n_shared = n_shared;
  plan.tiles = scratch<RowTile>(row_tiles_, most_tiles(n_routed, n_experts, n_shared) + 1);
  plan.n_tiles = reinterpret_cast<int32_t*>(plan.tiles++);  // the first place holds the count
  for (MmaGemmArgs* args : {&up, &down}) {
    args->tiles = plan.tiles;
    args->n_tiles = plan.n_tiles;
    args->most_tiles = most_tiles(n_routed, n_experts, n_shared);
    args->n_experts = n_experts;
    args->slot_order = routing.slot_order;
    args->slot_weights = routing.weights;
    args->n_active = n_active;
    args->n_slots = n_slots;
  }
  const int width = up.weight.k;
  const void* twin = twin_of(x, n_tokens, width);
  up.x = twin ? twin : to_bf16(x, nullptr, n_tokens, width);
  down.x = up.inner =
      scratch<uint16_t>(inner_, static_cast<size_t>(most_packed_rows(n_routed, n_experts, n_shared)) * down.weight.k);
  down.out = out;
  launch_pack_rows(queue_, WeightFormat::bf16, nullptr, nullptr, 0, width, {}, plan);  // the list alone
  launch_mma_gemm(queue_, up);
  launch_mma_gemm(queue_, down);
}

// Gate-up with SwiGLU, then down: two launches, the shared expert beside the routed ones when both are stored alike.
void CudaBackend::run_experts(const float* x, const ExpertWeights& weights, const ExpertTable& table, const Routing& routing,
                              int n_active, int n_tokens, int n_slots, int width, float* out) {
  GemmArgs common;
  common.n_tokens = n_tokens;
  common.n_active = n_active;
  common.n_slots = n_slots;
  common.n_experts = static_cast<int>(weights.gate_up.size());
  common.expert_ids = routing.expert_ids;
  common.expert_offsets = routing.expert_offsets;
  common.slot_order = routing.slot_order;
  common.slot_weights = routing.weights;

  const bool routed = n_active > 0 && table.gate_up_shape.n > 0, shared = weights.shared_gate_up != nullptr;
  const void* twin = twin_of(x, n_tokens, width);
  const bool direct = !twin && reads_float(shared ? view_of(*weights.shared_gate_up) : table.gate_up_shape, n_tokens);
  const void* activations = direct ? x : twin ? twin : to_bf16(x, nullptr, n_tokens, width);
  GemmArgs up = common, down = common;
  up.mode = GemmMode::gate_up;
  down.mode = GemmMode::down;
  if (shared) {
    up.dense = view_of(*weights.shared_gate_up);
    down.dense = view_of(*weights.shared_down);
    up.dense_x = activations;
    up.dense_out = scratch<uint16_t>(shared_inner_, static_cast<size_t>(n_tokens) * down.dense.k);
    down.dense_x = up.dense_out;
    down.dense_out = out;
  }
  if (routed) {
    up.routed = table.gate_up_shape;
    down.routed = table.down_shape;
    up.experts = table.gate_up_tiles.as<ExpertTiles>();
    down.experts = table.down_tiles.as<ExpertTiles>();
    up.routed_x = activations;
    up.routed_out = scratch<uint16_t>(inner_, static_cast<size_t>(n_tokens) * n_active * down.routed.k);
    down.routed_x = up.routed_out;
    down.routed_out = out;
  }
  const auto run = [&](const GemmArgs& args, bool x_is_float) {
    if (routed && shared && args.dense.format != args.routed.format) {
      GemmArgs dense_part = args, routed_part = args;
      dense_part.routed = {};
      routed_part.dense = {};
      launch_gemm(queue_, dense_part, x_is_float);
      launch_gemm(queue_, routed_part, x_is_float);
    } else if (routed || shared) {
      launch_gemm(queue_, args, x_is_float);
    }
  };
  run(up, direct);
  run(down, false);
}

void CudaBackend::head_logits(const float* x, const int32_t* row_ids, int n_rows, const LinearWeight& lm_head, Comm* comm,
                              const std::vector<int64_t>& vocab_widths, float* logits) {
  const WeightView& view = view_of(lm_head);
  if (!comm || n_rows == 0) return multiply(x, row_ids, n_rows, view, logits);
  if (world_) {
    bool grown = false;
    float* own = world_->gather_part(vocab_widths, n_rows, grown);
    if (grown) forget_recorded();
    multiply(x, row_ids, n_rows, view, own);
    return world_->gather(queue_, vocab_widths, n_rows, logits);
  }
  const size_t n = static_cast<size_t>(n_rows) * view.n;
  float* part = scratch<float>(gathered_, n);
  multiply(x, row_ids, n_rows, view, part);
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
  writes(out);
  if (n_tokens > 0) launch_join_norms(queue_, embedding, embedding_norm, hidden, hidden_norm, eps, n_tokens, width, out);
}

void CudaBackend::copy_rows(const float* from, const int32_t* from_ids, int64_t from_stride, float* to, const int32_t* to_ids,
                            int64_t to_stride, int n_rows, int width) {
  writes(to);
  if (n_rows > 0) launch_copy_rows(queue_, from, from_ids, from_stride, to, to_ids, to_stride, n_rows, width);
}

}  // namespace sigmoe::cuda
