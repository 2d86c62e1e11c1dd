// sigmoe_cuda_attention_bench: attention over paged caches, kernel by kernel. First every kernel against the naive float32 one
// over edge shapes (what lies behind a sequence's end is NaN), then times: operations a second for prompts, bytes a second for
// decoding beside the read-only stream of the same run. Exits with 1 when a comparison failed.
//
//   sigmoe_cuda_attention_bench [--check-only | --prefill-only | --decode-only]
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "cuda/attention_decode.h"
#include "cuda/attention_prefill.h"
#include "cuda/bench_kernels.h"
#include "cuda/ops.h"
#include "cuda/split_attention.h"

using namespace sigmoe;
using namespace sigmoe::cuda;

namespace {

constexpr double kBound = 8e-3;     // BF16 queries and weights against float32
constexpr double kFp8Bound = 9e-2;  // E4M3 of everything

template <typename T>
class Device {
 public:
  explicit Device(size_t n) : n_(n) { CUDA_CHECK(cudaMalloc(&data_, std::max<size_t>(n, 1) * sizeof(T))); }
  explicit Device(const std::vector<T>& values) : Device(values.size()) {
    CUDA_CHECK(cudaMemcpy(data_, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice));
  }
  Device(const Device&) = delete;
  ~Device() { cudaFree(data_); }
  T* get() const { return data_; }
  size_t size() const { return n_; }
  std::vector<T> read() const {
    std::vector<T> values(n_);
    CUDA_CHECK(cudaMemcpy(values.data(), data_, n_ * sizeof(T), cudaMemcpyDeviceToHost));
    return values;
  }

 private:
  T* data_ = nullptr;
  size_t n_;
};

struct Case {
  int n_heads, n_kv_heads, head_dim;
  std::vector<std::pair<int, int>> spans;  // per sequence: positions [first, second) of this step
};

// A step over caches filled at random, pages shuffled.
class Step {
 public:
  Step(const Case& c, cudaStream_t stream, DType dtype = DType::bf16)
      : shape_{c.n_heads, c.n_kv_heads, c.head_dim, 0}, queue_{stream, true}, spans_(c.spans), dtype_(dtype) {
    std::vector<int32_t> offsets = {0}, positions;
    int longest = 0;
    for (const auto& [begin, end] : spans_) {
      for (int p = begin; p < end; ++p) positions.push_back(p);
      offsets.push_back(static_cast<int32_t>(positions.size()));
      longest = std::max(longest, end);
    }
    batch_.n_tokens = static_cast<int>(positions.size());
    batch_.n_seqs = static_cast<int>(spans_.size());
    batch_.max_pages = (longest + kPageTokens - 1) / kPageTokens;
    const int n_pages = batch_.n_seqs * batch_.max_pages;
    pages_.resize(n_pages);
    std::iota(pages_.begin(), pages_.end(), 0);
    std::mt19937_64 random(7);
    std::shuffle(pages_.begin(), pages_.end(), random);
    arrays_.push_back(std::make_unique<Device<int32_t>>(positions));
    arrays_.push_back(std::make_unique<Device<int32_t>>(offsets));
    arrays_.push_back(std::make_unique<Device<int32_t>>(pages_));
    batch_.positions = arrays_[0]->get();
    batch_.seq_offsets = arrays_[1]->get();
    batch_.page_tables = arrays_[2]->get();
    const size_t n_cache = static_cast<size_t>(n_pages) * c.n_kv_heads * kPageTokens * c.head_dim;
    const size_t n_rows = static_cast<size_t>(batch_.n_tokens) * c.n_heads * c.head_dim;
    k_ = std::make_unique<Device<uint16_t>>(n_cache);
    v_ = std::make_unique<Device<uint16_t>>(n_cache);
    q_ = std::make_unique<Device<float>>(n_rows);
    out_ = std::make_unique<Device<float>>(n_rows);
    if (dtype_ == DType::bf16) {
      launch_fill_bf16(queue_, 11, 2.0f, n_cache, k_->get());
      launch_fill_bf16(queue_, 12, 1.0f, n_cache, v_->get());
    } else {
      fill_codes(n_cache, c.head_dim);
    }
    launch_fill_f32(queue_, 13, 4.0f, n_rows, q_->get());
  }

  // Codes of up to 480 and scales about 1/64: a megabyte of them, over and over.
  void fill_codes(size_t n_cache, int head_dim) {
    std::mt19937_64 random(3);
    std::vector<uint8_t> codes(std::min<size_t>(n_cache, 1 << 20));
    std::vector<float> scales(codes.size() / head_dim);
    for (const auto* cache : {&k_, &v_}) {
      for (uint8_t& code : codes) code = static_cast<uint8_t>(random() % 0x7f + (random() % 2 ? 0x80 : 0));
      auto* at = reinterpret_cast<uint8_t*>((*cache)->get());
      for (size_t i = 0; i < n_cache; i += codes.size())
        CUDA_CHECK(cudaMemcpy(at + i, codes.data(), std::min(codes.size(), n_cache - i), cudaMemcpyHostToDevice));
      scales_.push_back(std::make_unique<Device<float>>(n_cache / head_dim));
      for (float& scale : scales) scale = std::ldexp(1.0f, -9 + static_cast<int>(random() % 3));
      for (size_t i = 0; i < scales_.back()->size(); i += scales.size())
        CUDA_CHECK(cudaMemcpy(scales_.back()->get() + i, scales.data(),
                              std::min(scales.size(), scales_.back()->size() - i) * sizeof(float), cudaMemcpyHostToDevice));
    }
  }

  // Everything behind a sequence's last key becomes NaN.
  void poison_ends() {
    const size_t value_bytes = dtype_ == DType::bf16 ? 2 : 1;
    for (size_t b = 0; b < spans_.size(); ++b)
      for (int page = spans_[b].second / kPageTokens; page < batch_.max_pages; ++page) {
        const int valid = std::max(0, spans_[b].second - page * kPageTokens);
        for (int head = 0; head < shape_.n_kv_heads; ++head) {
          const size_t at =
              ((static_cast<size_t>(pages_[b * batch_.max_pages + page]) * shape_.n_kv_heads + head) * kPageTokens + valid) *
              shape_.head_dim;
          const size_t bytes = static_cast<size_t>(kPageTokens - valid) * shape_.head_dim * value_bytes;
          for (const auto* cache : {&k_, &v_})
            CUDA_CHECK(
                cudaMemsetAsync(reinterpret_cast<std::byte*>((*cache)->get()) + at * value_bytes, 0xff, bytes, queue_.stream));
          for (const auto& scales : scales_)
            CUDA_CHECK(cudaMemsetAsync(scales->get() + at / shape_.head_dim, 0xff, sizeof(float) * (kPageTokens - valid),
                                       queue_.stream));
        }
      }
  }

  std::vector<float> result(const std::function<void()>& kernel) {
    CUDA_CHECK(cudaMemsetAsync(out_->get(), 0xff, out_->size() * sizeof(float), queue_.stream));
    kernel();
    CUDA_CHECK(cudaStreamSynchronize(queue_.stream));
    return out_->read();
  }

  void naive() { launch_exact_attention(queue_, batch_, shape_, q_->get(), kv(), out_->get()); }
  void prefill(int least_rows = 1) {
    launch_prefill_attention(queue_, batch_, shape_, least_rows, 0, batch_.n_seqs, false, q_->get(), nullptr, kv(),
                             out_->get());
  }
  void pack() {
    if (!packed_v_) {
      const size_t n = pages_.size() * shape_.n_kv_heads * kPageTokens * shape_.head_dim;
      packed_v_ = std::make_unique<Device<std::byte>>(n);
      if (dtype_ != DType::bf16) packed_k_ = std::make_unique<Device<std::byte>>(n);
    }
    launch_pack_pages(queue_, batch_, shape_, 1, 0, batch_.n_seqs, kv(), packed_k(), packed_v_->get());
  }
  void packed_prefill() {
    launch_fp8_prefill_attention(queue_, batch_, shape_, 1, 0, batch_.n_seqs, q_->get(), nullptr, kv(), packed_k(),
                                 packed_v_->get(), out_->get());
  }
  void fp8_prefill() {
    pack();
    packed_prefill();
  }
  void chain() { chain_part(batch_, 0); }
  // Rows from first_row on, which are those of `batch`.
  void chain_part(const BatchView& batch, int first_row) {
    if (!chain_partial_) {
      chain_partial_ =
          std::make_unique<Device<std::byte>>(chain_partial_bytes(shape_, batch_, most_chain_rows(batch_, batch_.n_seqs)));
      chain_rows_ = std::make_unique<Device<int32_t>>(most_chain_rows(batch_, batch_.n_seqs));
    }
    const size_t at = static_cast<size_t>(first_row) * shape_.n_heads * shape_.head_dim;
    launch_chain_attention(queue_, batch, shape_, 0, batch.n_seqs, q_->get() + at, kv(),
                           {reinterpret_cast<float*>(chain_partial_->get()), chain_rows_->get()}, out_->get() + at, nullptr,
                           WeightFormat::fp8);
  }
  void prefill_part(const BatchView& batch, int first_row) {
    const size_t at = static_cast<size_t>(first_row) * shape_.n_heads * shape_.head_dim;
    launch_prefill_attention(queue_, batch, shape_, 1, 0, batch.n_seqs, false, q_->get() + at, nullptr, kv(), out_->get() + at);
  }
  void split() {
    if (!scratch_) {
      scratch_ = std::make_unique<Device<std::byte>>(split_partial_bytes(shape_, batch_.n_tokens, batch_.max_pages));
      arrivals_ = std::make_unique<Device<int32_t>>(std::vector<int32_t>(batch_.n_tokens * shape_.n_kv_heads));
    }
    launch_split_attention(queue_, batch_, shape_, 0, 0, batch_.n_tokens, q_->get(), kv(),
                           {reinterpret_cast<float*>(scratch_->get()), arrivals_->get()}, out_->get(), nullptr);
  }

  // Every row of the step as a decode step of one sequence.
  void each_row() {
    const Device<int32_t> offsets(std::vector<int32_t>{0, 1});
    for (int b = 0, row = 0; b < batch_.n_seqs; ++b)
      for (int i = spans_[b].first; i < spans_[b].second; ++i, ++row) {
        BatchView one = batch_;
        one.n_tokens = one.n_seqs = 1;
        one.positions += row;
        one.seq_offsets = offsets.get();
        one.page_tables += static_cast<int64_t>(b) * batch_.max_pages;
        chain_part(one, row);
      }
    CUDA_CHECK(cudaStreamSynchronize(queue_.stream));
  }

  KvView kv() const {
    KvView view{k_->get(), v_->get(), dtype_};
    if (!scales_.empty()) view.k_scales = scales_[0]->get(), view.v_scales = scales_[1]->get();
    return view;
  }
  double operations() const {
    double n = 0;
    for (const auto& [begin, end] : spans_)
      n += 4.0 * shape_.n_heads * shape_.head_dim * (0.5 * end * (end + 1.0) - 0.5 * begin * (begin + 1.0));
    return n;
  }
  double bytes() const {  // of keys and values, each once
    double n = 0;
    for (const auto& span : spans_)
      n += 2.0 * shape_.n_kv_heads * (dtype_ == DType::bf16 ? 2 * shape_.head_dim : shape_.head_dim + 4) * span.second;
    return n;
  }
  const BatchView& batch() const { return batch_; }
  const AttentionShape& shape() const { return shape_; }

 private:
  void* packed_k() const { return packed_k_ ? packed_k_->get() : nullptr; }

  AttentionShape shape_;
  Queue queue_;
  BatchView batch_;
  std::vector<std::pair<int, int>> spans_;
  std::vector<int32_t> pages_;
  DType dtype_;
  std::vector<std::unique_ptr<Device<float>>> scales_;
  std::vector<std::unique_ptr<Device<int32_t>>> arrays_;
  std::unique_ptr<Device<uint16_t>> k_, v_;
  std::unique_ptr<Device<float>> q_, out_;
  std::unique_ptr<Device<std::byte>> scratch_, chain_partial_, packed_k_, packed_v_;
  std::unique_ptr<Device<int32_t>> arrivals_, chain_rows_;
};

// Relative error; says where the worst rows are when it is too large.
bool compare(const char* kernel, const Case& c, const std::vector<float>& found, const std::vector<float>& expected,
             double bound = kBound) {
  double difference = 0, norm = 0;
  size_t n_nan = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    if (!std::isfinite(found[i])) ++n_nan;
    difference += std::pow(static_cast<double>(found[i]) - expected[i], 2);
    norm += std::pow(static_cast<double>(expected[i]), 2);
  }
  const double error = std::sqrt(difference / norm);
  const bool good = n_nan == 0 && error < bound;
  std::printf("%s %-8s %2d/%d heads of %3d,", good ? "ok  " : "FAIL", kernel, c.n_heads, c.n_kv_heads, c.head_dim);
  for (size_t b = 0; b < std::min<size_t>(c.spans.size(), 4); ++b) std::printf(" %d-%d", c.spans[b].first, c.spans[b].second);
  std::printf(": error %.2e, not finite %zu of %zu\n", error, n_nan, expected.size());
  if (good) return true;
  const int width = c.n_heads * c.head_dim;
  int shown = 0;
  for (size_t row = 0; row < expected.size() / width && shown < 6; ++row)
    for (int head = 0; head < c.n_heads && shown < 6; ++head) {
      double d = 0, n = 0;
      std::string dims;
      for (int i = 0; i < c.head_dim; ++i) {
        const size_t at = row * width + head * c.head_dim + i;
        const double e = std::abs(static_cast<double>(found[at]) - expected[at]);
        d += e * e, n += static_cast<double>(expected[at]) * expected[at];
        dims += !std::isfinite(found[at]) ? 'N' : e > 0.05 ? 'x' : '.';
      }
      if (d < 4 * bound * bound * n) continue;
      const size_t at = row * width + head * c.head_dim;
      std::printf("  row %zu head %d error %.2e found %.4f %.4f %.4f expected %.4f %.4f %.4f dims %s\n", row, head,
                  std::sqrt(d / n), found[at], found[at + 1], found[at + 2], expected[at], expected[at + 1], expected[at + 2],
                  dims.c_str());
      ++shown;
    }
  return false;
}

double median_us(cudaStream_t stream, int repeats, const std::function<void()>& work) {
  cudaEvent_t start, stop;
  CUDA_CHECK(cudaEventCreate(&start));
  CUDA_CHECK(cudaEventCreate(&stop));
  std::vector<float> times;
  for (int i = 0; i < repeats + 2; ++i) {
    CUDA_CHECK(cudaEventRecord(start, stream));
    work();
    CUDA_CHECK(cudaEventRecord(stop, stream));
    CUDA_CHECK(cudaEventSynchronize(stop));
    float ms;
    CUDA_CHECK(cudaEventElapsedTime(&ms, start, stop));
    if (i >= 2) times.push_back(ms * 1000);
  }
  cudaEventDestroy(start);
  cudaEventDestroy(stop);
  std::nth_element(times.begin(), times.begin() + times.size() / 2, times.end());
  return times[times.size() / 2];
}

// Of one call, `calls` of them (over different data, when work rotates) replayed as a graph.
double graph_us(cudaStream_t stream, int calls, const std::function<void(int)>& work) {
  for (int i = 0; i < calls; ++i) work(i);
  CUDA_CHECK(cudaStreamSynchronize(stream));
  cudaGraph_t graph;
  cudaGraphExec_t replay;
  CUDA_CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  for (int i = 0; i < calls; ++i) work(i);
  CUDA_CHECK(cudaStreamEndCapture(stream, &graph));
  CUDA_CHECK(cudaGraphInstantiate(&replay, graph, 0));
  const double us = median_us(stream, 9, [&] { CUDA_CHECK(cudaGraphLaunch(replay, stream)); }) / calls;
  cudaGraphExecDestroy(replay);
  cudaGraphDestroy(graph);
  return us;
}

bool check_all(cudaStream_t stream) {
  const std::vector<Case> cases = {
      {32, 4, 128, {{0, 128}}},
      {8, 1, 128, {{0, 16}}},
      {8, 1, 128, {{0, 1}}},
      {32, 4, 128, {{0, 129}, {100, 131}, {255, 256}, {0, 300}}},
      {32, 4, 128, {{1000, 1513}, {128, 256}, {127, 129}}},
      {10, 2, 128, {{0, 200}, {77, 400}}},
      {3, 3, 128, {{0, 150}, {120, 390}}},
      {8, 1, 64, {{0, 257}, {500, 640}}},
      {10, 2, 64, {{0, 65}, {384, 512}}},
      {4, 4, 64, {{0, 300}}},
      {64, 2, 128, {{0, 40}, {250, 270}}},
      {32, 4, 128, {{0, 2500}}},
  };
  bool good = true;
  for (const Case& c : cases) {
    Step step(c, stream);
    step.poison_ends();
    const std::vector<float> expected = step.result([&] { step.naive(); });
    const std::vector<float> found = step.result([&] { step.prefill(); });
    good = compare("prefill", c, found, expected) && good;
    if (step.result([&] { step.prefill(); }) != found) std::printf("FAIL prefill: another run, other bits\n"), good = false;
  }
  for (const Case& c : cases)
    for (const DType dtype : {DType::bf16, DType::f8_e4m3}) {
      if (c.head_dim != 128) continue;
      Step step(c, stream, dtype);
      step.poison_ends();
      const std::vector<float> expected = step.result([&] { step.naive(); });
      const std::vector<float> found = step.result([&] { step.fp8_prefill(); });
      good = compare(dtype == DType::bf16 ? "fp8" : "fp8 fp8", c, found, expected, kFp8Bound) && good;
      if (step.result([&] { step.fp8_prefill(); }) != found) std::printf("FAIL fp8: another run, other bits\n"), good = false;
    }
  std::vector<std::pair<int, int>> many;  // so many that keys are cut otherwise
  for (int b = 0; b < 40; ++b) many.push_back({120 * b + b % 3, 120 * b + 5});
  const std::vector<Case> chains = {
      {32, 4, 128, {{0, 1}}},
      {32, 4, 128, {{15, 16}, {127, 128}, {128, 129}, {255, 256}, {256, 257}, {300, 301}, {2047, 2048}, {2048, 2049}}},
      {32, 4, 128, {{0, 5}, {125, 130}, {254, 262}, {2040, 2056}, {8190, 8194}, {20, 21}, {700, 716}}},
      {10, 2, 128, {{0, 3}, {500, 516}, {2047, 2049}}},
      {16, 1, 128, {{70, 71}, {600, 609}}},
      {4, 4, 64, {{0, 16}, {300, 301}, {2045, 2053}}},
      {8, 1, 64, {{1000, 1001}, {127, 131}}},
      {64, 1, 128, {{0, 4}, {400, 403}}},
      {8, 2, 128, {{40000, 40001}, {16380, 16386}}},
      {8, 1, 128, many},
  };
  for (const Case& c : chains)
    for (const DType dtype : {DType::bf16, DType::f8_e4m3}) {
      Step step(c, stream, dtype);
      step.poison_ends();
      const std::vector<float> expected = step.result([&] { step.naive(); });
      const std::vector<float> found = step.result([&] { step.chain(); });
      good = compare(dtype == DType::bf16 ? "chain" : "chain fp8", c, found, expected) && good;
      if (step.result([&] { step.chain(); }) != found) std::printf("FAIL chain: another run, other bits\n"), good = false;
      if (c.spans.size() >= 32) continue;
      const std::vector<float> alone = step.result([&] { step.each_row(); });
      const bool same = alone == found;
      if (!same) std::printf("FAIL chain: rows one by one have other bits\n"), good = false;
    }
  // Both kernels over a mixed step: every row is exactly one's.
  const Case mixed{32, 4, 128, {{50, 51}, {0, 200}, {300, 316}, {300, 317}, {1000, 1001}}};
  Step both(mixed, stream);
  both.poison_ends();
  const std::vector<float> naive = both.result([&] { both.naive(); });
  good = compare("both", mixed, both.result([&] { both.chain(), both.prefill(kMostChainRows + 1); }), naive) && good;
  // A prompt in one piece and in pieces: the same bits.
  const Case whole{32, 4, 128, {{0, 1200}}};
  Step all(whole, stream);
  const std::vector<float> expected = all.result([&] { all.prefill(); });
  for (const auto& [begin, end] : std::vector<std::pair<int, int>>{{0, 333}, {333, 334}, {700, 1200}}) {
    // The same cache and queries: rows and pages of the whole step, cut.
    BatchView batch = all.batch();
    const std::vector<int32_t> offsets = {0, end - begin};
    const Device<int32_t> device_offsets(offsets);
    batch.n_tokens = end - begin;
    batch.positions += begin;
    batch.seq_offsets = device_offsets.get();
    const size_t width = 32 * 128;
    const std::vector<float> part = all.result([&] { all.prefill_part(batch, begin); });
    const bool same =
        std::equal(expected.begin() + begin * width, expected.begin() + end * width, part.begin() + begin * width);
    std::printf("%s prefill rows %d-%d alone: %s\n", same ? "ok  " : "FAIL", begin, end, same ? "the same bits" : "other bits");
    good = good && same;
  }
  return good;
}

void time_prefill(cudaStream_t stream) {
  std::printf(
      "prefill, causal, 32/4 heads of 128: tokens; BF16, us, TFLOPS; in FP8 with packing, us, TFLOPS, packing, us: BF16 cache; "
      "FP8 cache\n");
  const auto row = [&](const char* name, const Case& c, int repeats) {
    Step step(c, stream);
    const double us = median_us(stream, repeats, [&] { step.prefill(); });
    std::printf("  %s %10.1f %7.1f", name, us, step.operations() / us * 1e-6);
    for (const DType dtype : {DType::bf16, DType::f8_e4m3}) {
      Step fp8(c, stream, dtype);
      const double fp8_us = median_us(stream, repeats, [&] { fp8.fp8_prefill(); });
      const double packing_us = median_us(stream, repeats, [&] { fp8.pack(); });
      std::printf("  %10.1f %7.1f %7.1f", fp8_us, step.operations() / fp8_us * 1e-6, packing_us);
    }
    std::printf("\n");
    std::fflush(stdout);
  };
  for (const auto& [begin, end] : std::vector<std::pair<int, int>>{
           {0, 512}, {0, 2048}, {0, 4096}, {0, 8192}, {0, 16384}, {0, 32768}, {24576, 32768}, {122880, 131072}}) {
    char name[32];
    std::snprintf(name, sizeof name, "%6d-%6d", begin, end);
    row(name, {32, 4, 128, {{begin, end}}}, end > 20000 ? 5 : 15);
  }
  row("four sequences, 8192 rows", {32, 4, 128, {{0, 3000}, {2000, 4500}, {0, 1000}, {8000, 9692}}}, 15);
}

void time_decode(cudaStream_t stream, double read_tbps) {
  std::printf("decode, 32/4 heads of 128: batch x context, us a layer, TB/s (of the read stream)\n");
  for (const int context : {1024, 8192, 32768})
    for (const int n_seqs : {1, 8, 32, 128}) {
      if (static_cast<int64_t>(context) * n_seqs > (1 << 20) * 2) continue;
      std::vector<std::unique_ptr<Step>> layers;  // so that the cache is read from memory
      const double bytes = 2048.0 * context * n_seqs;
      const int n_layers = std::clamp(static_cast<int>(400e6 / bytes), 1, 64);
      for (int i = 0; i < n_layers; ++i)
        layers.push_back(
            std::make_unique<Step>(Case{32, 4, 128, std::vector<std::pair<int, int>>(n_seqs, {context - 1, context})}, stream));
      const int calls = std::max(n_layers, 8);
      std::printf("  %3d x %6d", n_seqs, context);
      const auto report = [&](const char* name, double us) {
        const double tbps = layers[0]->bytes() / us * 1e-6;
        std::printf("  %s %7.1f %5.2f (%2.0f%%)", name, us, tbps, 100 * tbps / read_tbps);
      };
      report("split", graph_us(stream, calls, [&](int i) { layers[i % n_layers]->split(); }));
      report("chain", graph_us(stream, calls, [&](int i) { layers[i % n_layers]->chain(); }));
      layers.clear();
      for (int i = 0; i < n_layers; ++i)
        layers.push_back(std::make_unique<Step>(
            Case{32, 4, 128, std::vector<std::pair<int, int>>(n_seqs, {context - 1, context})}, stream, DType::f8_e4m3));
      report("fp8", graph_us(stream, calls, [&](int i) { layers[i % n_layers]->chain(); }));
      std::printf("\n");
      std::fflush(stdout);
    }
}

// A token and drafts behind it: the bytes of one token's step.
void time_chains(cudaStream_t stream, double read_tbps) {
  std::printf("chains: batch x rows at context, us a layer, TB/s (of the read stream)\n");
  for (const auto& [n_seqs, n_rows] : std::vector<std::pair<int, int>>{{8, 4}, {32, 4}, {32, 8}, {32, 16}}) {
    const int context = 4000;
    std::vector<std::unique_ptr<Step>> layers;
    for (int i = 0; i < 4; ++i)
      layers.push_back(std::make_unique<Step>(
          Case{32, 4, 128, std::vector<std::pair<int, int>>(n_seqs, {context - n_rows, context})}, stream));
    const double us = graph_us(stream, 8, [&](int i) { layers[i % 4]->chain(); });
    std::printf("  %d x %d at %d %8.1f %6.2f (%.0f%%)\n", n_seqs, n_rows, context, us, layers[0]->bytes() / us * 1e-6,
                100 * layers[0]->bytes() / us * 1e-6 / read_tbps);
  }
}

double read_stream_tbps(cudaStream_t stream) {
  const size_t bytes = size_t{4} << 30;
  const Device<std::byte> data(bytes);
  const Device<uint32_t> sink(4);
  const Queue queue{stream, false};
  int n_sms = 0;
  CUDA_CHECK(cudaDeviceGetAttribute(&n_sms, cudaDevAttrMultiProcessorCount, 0));
  launch_fill_bf16(queue, 3, 1.0f, bytes / 2, data.get());
  return bytes / median_us(stream, 9, [&] { launch_read_stream(queue, n_sms, data.get(), bytes, sink.get()); }) * 1e-6;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    cudaDeviceProp properties;
    CUDA_CHECK(cudaGetDeviceProperties(&properties, 0));
    cudaStream_t stream;
    CUDA_CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    const auto asked = [&](const char* option) { return argc > 1 && std::strcmp(argv[1], option) == 0; };
    const bool decode_only = asked("--decode-only");
    const bool good = decode_only || check_all(stream);
    if (asked("--check-only")) return good ? 0 : 1;
    const double read_tbps = read_stream_tbps(stream);
    std::printf("%s: read stream %.3f TB/s\n", properties.name, read_tbps);
    if (!decode_only) time_prefill(stream);
    if (asked("--prefill-only")) return good ? 0 : 1;
    time_decode(stream, read_tbps);
    time_chains(stream, read_tbps);
    return good ? 0 : 1;
  } catch (const std::exception& error) {
    std::printf("FAIL %s\n", error.what());
    return 1;
  }
}
