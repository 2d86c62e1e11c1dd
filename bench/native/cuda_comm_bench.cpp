// sigmoe_cuda_comm_bench: what several GPUs cost and give.
//
//   sigmoe_cuda_comm_bench reduce --ranks 2        all-reduce + residual + norm by one shot, two shots and NCCL, 1 to 512 rows
//   sigmoe_cuda_comm_bench decode --ranks 2 --shape ling-flash-2.0 --dtype fp8 --batch 1,32,128 [--experts tp|ep]
//
// `reduce` first compares with the one-GPU kernel, bit by bit on every rank, and repeats a thousand calls for the same bits;
// times are of graph replays, medians over them. `decode` makes random weights of each rank's share on its own GPU; run it with
// --ranks 1 for what to compare with.
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <set>
#include <sstream>
#include <thread>

#include "cuda/bench_kernels.h"
#include "cuda/cuda_backend.h"
#include "cuda/ops.h"
#include "engine/forward/graph.h"
#include "engine/schedule/page_pool.h"
#include "engine/weights/synthetic.h"

using namespace sigmoe;
using namespace sigmoe::cuda;

namespace {

constexpr int kRepeats = 15;
constexpr uint64_t kPatienceNs = 2'000'000'000;

struct Options {
  std::string mode = "reduce", shape = "ling-flash-2.0", dtype = "fp8", head = "bf16", experts = "tp";
  std::vector<int> batches = {1, 32, 128}, rows = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512};
  int ranks = 2, width = 4096, context = 1024, nccl = 1;
};

std::vector<int> list_of(const std::string& text) {
  std::vector<int> out;
  std::istringstream list(text);
  for (std::string item; std::getline(list, item, ',');) out.push_back(std::stoi(item));
  return out;
}

Options parse(int argc, char** argv) {
  Options o;
  if (argc > 1) o.mode = argv[1];
  for (int i = 2; i + 1 < argc; i += 2) {
    const std::string name = argv[i], value = argv[i + 1];
    if (name == "--ranks")
      o.ranks = std::stoi(value);
    else if (name == "--shape")
      o.shape = value;
    else if (name == "--dtype")
      o.dtype = value;
    else if (name == "--head")
      o.head = value;
    else if (name == "--experts")
      o.experts = value;
    else if (name == "--batch")
      o.batches = list_of(value);
    else if (name == "--rows")
      o.rows = list_of(value);
    else if (name == "--width")
      o.width = std::stoi(value);
    else if (name == "--context")
      o.context = std::stoi(value);
    else if (name == "--nccl")
      o.nccl = std::stoi(value);
    else
      throw EngineError(ErrorCode::invalid_argument, "no option " + name);
  }
  return o;
}

// Runs work(rank, comm) on a thread of its own for every rank. The first error ends all and is thrown.
void on_ranks(int n, const std::function<void(int, Comm*)>& work) {
  const auto comms = make_thread_world(n);
  std::vector<std::thread> threads;
  std::exception_ptr failure;
  std::mutex mutex;
  for (int rank = 0; rank < n; ++rank)
    threads.emplace_back([&, rank] {
      try {
        work(rank, comms[rank].get());
      } catch (...) {
        {
          const std::lock_guard lock(mutex);
          if (!failure) failure = std::current_exception();
        }
        comms[rank]->shut_down();
      }
    });
  for (std::thread& thread : threads) thread.join();
  if (failure) std::rethrow_exception(failure);
}

// Event times of replays of what a rank enqueues. Every rank replays; each sees its own time.
class Timer {
 public:
  explicit Timer(cudaStream_t stream) : stream_(stream) {
    for (cudaEvent_t& event : events_) CUDA_CHECK(cudaEventCreate(&event));
  }
  ~Timer() {
    for (const cudaEvent_t event : events_) cudaEventDestroy(event);
  }
  double median_us(const std::function<void()>& replay) {
    for (int i = 0; i < 3; ++i) replay();
    for (int i = 0; i < kRepeats; ++i) {
      CUDA_CHECK(cudaEventRecord(events_[i], stream_));
      replay();
    }
    CUDA_CHECK(cudaEventRecord(events_[kRepeats], stream_));
    CUDA_CHECK(cudaEventSynchronize(events_[kRepeats]));
    std::vector<float> times(kRepeats);
    for (int i = 0; i < kRepeats; ++i) CUDA_CHECK(cudaEventElapsedTime(&times[i], events_[i], events_[i + 1]));
    std::sort(times.begin(), times.end());
    return times[kRepeats / 2] * 1000.0;
  }

 private:
  cudaStream_t stream_;
  cudaEvent_t events_[kRepeats + 1] = {};
};

// ---- reduce ------------------------------------------------------------------------------------------------------------

// One rank's buffers, and the same sums by the kernel for one GPU to compare with.
class Reduce {
 public:
  Reduce(const Options& options, int rank, Comm& comm)
      : options_(options), rank_(rank), comm_(comm), backend_(device_options(rank)), timer_(stream()) {
    const size_t most = *std::max_element(options.rows.begin(), options.rows.end()), floats = most * options.width;
    residual_ = backend_.alloc(floats * 4, "residual");
    addend_ = backend_.alloc(floats * kSlots * 4, "addend");
    out_ = backend_.alloc(floats * 4, "out");
    sums_ = backend_.alloc(floats * 4, "sums");
    weight_ = backend_.alloc(options.width * 4, "weight");
    launch_fill_f32(backend_.queue(), 77, 1.0f, options.width, weight_.as<float>());
    launch_fill_f32(backend_.queue(), 1000 + rank, 1.0f, floats * kSlots, addend_.as<float>());
    peers_ = std::make_unique<DeviceWorld>(comm, rank, stream(), DeviceWorld::Way::peer_memory);
    peers_->set_patience(kPatienceNs);
    if (options.nccl) nccl_ = std::make_unique<DeviceWorld>(comm, rank, stream(), DeviceWorld::Way::nccl);
  }

  void run() {
    for (const int slots : {1, kSlots})
      for (const int rows : options_.rows) {
        check(rows, slots);
        peers_->set_one_shot_rows(0);
        if (nccl_) check_nccl(rows, slots);
      }
    if (rank_ == 0) std::printf("bits: as the one-GPU kernel's, on all ranks, over 1000 calls: yes\n");
    if (rank_ == 0)
      std::printf("%6s %6s %10s %10s %10s %12s\n", "rows", "slots", "one shot", "two shots", "as chosen", "NCCL + norm");
    for (const int slots : {1, kSlots})
      for (const int rows : options_.rows) {
        const double one = rows <= kOneShotRows ? time(*peers_, rows, slots, kOneShotRows) : 0,
                     two = time(*peers_, rows, slots, -1), chosen = time(*peers_, rows, slots, 0),
                     nccl = nccl_ ? time(*nccl_, rows, slots, 0) : 0;
        if (rank_ == 0) std::printf("%6d %6d %10.2f %10.2f %10.2f %12.2f us\n", rows, slots, one, two, chosen, nccl);
      }
    gather();
  }

 private:
  static constexpr int kSlots = 9, kCalls = 32;
  static BackendOptions device_options(int rank) {
    BackendOptions out;
    out.device_index = rank;
    return out;
  }
  cudaStream_t stream() const { return backend_.queue().stream; }
  size_t floats(int rows) const { return static_cast<size_t>(rows) * options_.width; }

  ReduceArgs args(int rows, int slots) const {
    return {residual_.as<float>(), addend_.as<float>(), slots, rows,
            options_.width,        weight_.as<float>(), 1e-6f, out_.as<float>()};
  }
  void call(DeviceWorld& world, int rows, int slots) {
    world.reduce_add_rms_norm(backend_.queue(), args(rows, slots), sums_.as<float>());
  }
  void reset() {
    launch_fill_f32(backend_.queue(), 5, 1.0f, residual_.bytes() / 4, residual_.as<float>());
    CUDA_CHECK(cudaMemsetAsync(out_.data(), 0xff, out_.bytes(), stream()));
  }
  std::vector<float> download(const DeviceBuffer& buffer, int rows) {
    std::vector<float> host(floats(rows));
    CUDA_CHECK(cudaMemcpyAsync(host.data(), buffer.data(), host.size() * 4, cudaMemcpyDeviceToHost, stream()));
    CUDA_CHECK(cudaStreamSynchronize(stream()));
    peers_->check();
    return host;
  }
  static void expect(bool condition, const char* what, int rows, int slots) {
    if (!condition)
      throw EngineError(ErrorCode::internal,
                        std::string(what) + ", rows " + std::to_string(rows) + ", slots " + std::to_string(slots));
  }
  // Throws unless all ranks hold the same.
  void expect_same(const std::vector<float>& mine, const char* what, int rows, int slots) {
    const auto all = comm_.exchange(std::make_shared<std::vector<float>>(mine));
    for (const auto& other : all)
      expect(std::memcmp(static_cast<std::vector<float>*>(other.get())->data(), mine.data(), mine.size() * 4) == 0, what, rows,
             slots);
  }

  void check(int rows, int slots) {
    // What one GPU would do with the ranks' sums: slots in order, then ranks in order.
    launch_sum_slots(backend_.queue(), addend_.as<float>(), false, slots, rows, options_.width, sums_.as<float>());
    auto own = std::make_shared<std::vector<float>>(download(sums_, rows));
    std::vector<float> total(own->size());
    const auto all = comm_.exchange(own);
    for (size_t r = 0; r < all.size(); ++r)
      for (size_t i = 0; i < total.size(); ++i) {
        const float part = (*static_cast<std::vector<float>*>(all[r].get()))[i];
        total[i] = r == 0 ? part : total[i] + part;
      }
    reset();
    CUDA_CHECK(cudaMemcpyAsync(sums_.data(), total.data(), total.size() * 4, cudaMemcpyHostToDevice, stream()));
    CUDA_CHECK(cudaStreamSynchronize(stream()));
    launch_reduce_add_rms_norm(backend_.queue(), residual_.as<float>(), sums_.as<float>(), 1, weight_.as<float>(), 1e-6f, rows,
                               options_.width, out_.as<float>(), nullptr);
    const std::vector<float> residual = download(residual_, rows), out = download(out_, rows);
    for (const int shot : {kOneShotRows, -1}) {
      if (shot > 0 && rows > kOneShotRows) continue;
      peers_->set_one_shot_rows(shot);
      reset();
      call(*peers_, rows, slots);
      const auto got = download(residual_, rows), normed = download(out_, rows);
      expect(std::memcmp(got.data(), residual.data(), got.size() * 4) == 0, "the residual has other bits", rows, slots);
      expect(std::memcmp(normed.data(), out.data(), out.size() * 4) == 0, "the norm has other bits", rows, slots);
      std::vector<float> first;
      for (int again = 0; again < 2; ++again) {
        reset();
        for (int i = 0; i < 1000; ++i) call(*peers_, rows, slots);
        const auto end = download(out_, rows);
        expect_same(end, "ranks differ after 1000 calls", rows, slots);
        if (again) expect(std::memcmp(first.data(), end.data(), end.size() * 4) == 0, "a second run differs", rows, slots);
        first = end;
      }
    }
  }

  // NCCL adds in an order of its own: near, and the same on all ranks.
  void check_nccl(int rows, int slots) {
    reset();
    call(*peers_, rows, slots);
    const std::vector<float> expected = download(out_, rows);
    reset();
    call(*nccl_, rows, slots);
    const std::vector<float> got = download(out_, rows);
    double difference = 0, norm = 0;
    for (size_t i = 0; i < got.size(); ++i) {
      difference += std::pow(static_cast<double>(got[i]) - expected[i], 2);
      norm += static_cast<double>(expected[i]) * expected[i];
    }
    expect(difference <= 1e-12 * norm, "NCCL's sums are others", rows, slots);
    expect_same(got, "NCCL's sums differ between ranks", rows, slots);
  }

  double time(DeviceWorld& world, int rows, int slots, int one_shot_rows) {
    world.set_one_shot_rows(one_shot_rows);
    reset();
    call(world, rows, slots);
    CUDA_CHECK(cudaStreamSynchronize(stream()));
    const uint64_t key = ++key_;
    const auto replay = [&] {
      backend_.run_recorded(key, [&] {
        for (int i = 0; i < kCalls; ++i) call(world, rows, slots);
      });
    };
    const double us = timer_.median_us(replay) / kCalls;
    if (world.way() == DeviceWorld::Way::peer_memory) peers_->check();
    return us;
  }

  void gather() {
    gather(*peers_, "");
    if (nccl_) gather(*nccl_, " by NCCL");
  }

  void gather(DeviceWorld& world, const char* way) {
    const int total = 157184;
    std::vector<int64_t> widths;
    for (int r = 0; r < options_.ranks; ++r) widths.push_back(shard_range(total, 16, r, options_.ranks).size());
    for (const int rows : {1, 8, 32}) {
      const DeviceBuffer out = backend_.alloc(static_cast<size_t>(rows) * total * 4, "logits");
      bool grown = false;
      float* part = world.gather_part(widths, rows, grown);
      launch_fill_f32(backend_.queue(), 9 + rank_, 1.0f, static_cast<size_t>(rows) * widths[rank_], part);
      world.gather(backend_.queue(), widths, rows, out.as<float>());
      std::vector<float> host(static_cast<size_t>(rows) * total), own(static_cast<size_t>(rows) * widths[rank_]);
      CUDA_CHECK(cudaMemcpyAsync(host.data(), out.data(), host.size() * 4, cudaMemcpyDeviceToHost, stream()));
      CUDA_CHECK(cudaMemcpyAsync(own.data(), part, own.size() * 4, cudaMemcpyDeviceToHost, stream()));
      CUDA_CHECK(cudaStreamSynchronize(stream()));
      const auto all = comm_.exchange(std::make_shared<std::vector<float>>(own));
      int64_t column = 0;
      for (size_t r = 0; r < all.size(); column += widths[r++])
        for (int row = 0; row < rows; ++row)
          expect(std::memcmp(host.data() + row * static_cast<size_t>(total) + column,
                             static_cast<std::vector<float>*>(all[r].get())->data() + static_cast<size_t>(row) * widths[r],
                             widths[r] * 4) == 0,
                 "gathered rows differ", rows, static_cast<int>(r));
      const uint64_t key = ++key_;
      const double us = timer_.median_us([&] {
        backend_.run_recorded(key, [&] {
          for (int i = 0; i < kCalls; ++i) world.gather(backend_.queue(), widths, rows, out.as<float>());
        });
      }) / kCalls;
      if (rank_ == 0) std::printf("gather of %d rows of %d floats%s, bytes right: %.2f us\n", rows, total, way, us);
      backend_.forget_recorded();
    }
  }

  const Options& options_;
  int rank_;
  Comm& comm_;
  CudaBackend backend_;
  Timer timer_;
  DeviceBuffer residual_, addend_, out_, sums_, weight_;
  std::unique_ptr<DeviceWorld> peers_, nccl_;
  uint64_t key_ = 0;
};

// ---- decode ------------------------------------------------------------------------------------------------------------

WeightFormat format_of(const std::string& name) {
  if (name == "fp8") return WeightFormat::fp8;
  if (name == "bf16") return WeightFormat::bf16;
  throw EngineError(ErrorCode::invalid_argument, "no dtype " + name, "use fp8 or bf16");
}

// One rank of a model of random weights: replicated parts are the same on all, so that all route alike.
class Decode {
 public:
  Decode(const Options& options, int rank, Comm* comm)
      : options_(options),
        rank_(rank),
        comm_(comm),
        config_(shape_config(options.shape)),
        backend_(device_options(rank)),
        heads_(shard_heads(config_, rank, options.ranks)) {
    if (comm) backend_.join(*comm);
    measure_stream();
    make_weights();
  }

  void run() {
    for (const int batch : options_.batches) measure(batch);
  }

 private:
  static BackendOptions device_options(int rank) {
    BackendOptions out;
    out.device_index = rank;
    return out;
  }

  std::unique_ptr<LinearWeight> weight(WeightFormat format, int64_t n, int64_t k, bool gate_up = false) {
    LinearDesc desc;
    desc.format = format;
    desc.n = n;
    desc.k = k;
    desc.gate_up = gate_up;
    desc.name = "synthetic weight";
    auto made = backend_.random_linear(desc, ++seed_ * 0x1000003);
    weights_.bytes += made->bytes();
    return made;
  }
  DeviceBuffer constant(size_t n, float value) {
    DeviceBuffer buffer = backend_.alloc(n * sizeof(float), "norm weights");
    const std::vector<float> values(n, value);
    backend_.upload(buffer.data(), values.data(), n * sizeof(float));
    return buffer;
  }

  void make_weights() {
    const WeightFormat format = format_of(options_.dtype);
    const ModelConfig& c = config_;
    const int64_t d = c.hidden_size, world = options_.ranks;
    const bool whole_experts = options_.experts == "ep";
    weights_.embedding = backend_.alloc(static_cast<size_t>(c.vocab_size) * d * 2, "embedding");
    launch_fill_bf16(backend_.queue(), 1, 0.0346f, static_cast<size_t>(c.vocab_size) * d, weights_.embedding.data());
    weights_.final_norm = constant(d, 1.0f);
    for (int r = 0; r < world; ++r)
      weights_.vocab_widths.push_back(shard_range(c.vocab_size, 16, r, static_cast<int>(world)).size());
    weights_.lm_head = weight(format_of(options_.head), weights_.vocab_widths[rank_], d);
    const Shard own = shard_range(c.n_experts, 1, rank_, static_cast<int>(world));
    for (int64_t i = 0; i < c.n_layers; ++i) {
      LayerWeights layer;
      layer.qkv = weight(format, (heads_.q.size() + 2 * heads_.kv.size()) * c.head_dim, d);
      layer.attn_out = weight(format, d, heads_.q.size() * c.head_dim);
      layer.input_norm = constant(d, 1.0f);
      layer.post_attention_norm = constant(d, 1.0f);
      layer.q_norm = constant(c.head_dim, 1.0f);
      layer.k_norm = constant(c.head_dim, 1.0f);
      layer.dense = c.is_dense(i);
      const int64_t shared = (layer.dense ? c.dense_width : c.shared_width) / world;
      layer.shared_gate_up = weight(format, 2 * shared, d, true);
      layer.shared_down = weight(format, d, shared);
      layer.experts.shared_gate_up = layer.shared_gate_up.get();
      layer.experts.shared_down = layer.shared_down.get();
      if (!layer.dense) {
        const uint64_t before = std::exchange(seed_, 1'000'000 + i);
        layer.router = weight(WeightFormat::bf16, c.n_experts, d);
        seed_ = before;
        layer.router_bias = backend_.alloc(c.n_experts * sizeof(float), "router bias");
        layer.gate_up.resize(c.n_experts);
        layer.down.resize(c.n_experts);
        const int64_t width = whole_experts ? c.expert_width : c.expert_width / world;
        for (int64_t e = 0; e < c.n_experts; ++e) {
          if (!whole_experts || (own.begin <= e && e < own.end)) {
            layer.gate_up[e] = weight(format, 2 * width, d, true);
            layer.down[e] = weight(format, d, width);
          }
          layer.experts.gate_up.push_back(layer.gate_up[e].get());
          layer.experts.down.push_back(layer.down[e].get());
        }
      }
      weights_.layers.push_back(std::move(layer));
    }
    backend_.synchronize();
  }

  void measure_stream() {
    const size_t bytes = size_t{4} << 30;
    const DeviceBuffer data = backend_.alloc(bytes, "stream"), sink = backend_.alloc(16, "stream");
    launch_fill_f32(backend_.queue(), 3, 1.0f, bytes / 4, data.as<float>());
    Timer timer(backend_.queue().stream);
    int n_sms = 0;
    CUDA_CHECK(cudaDeviceGetAttribute(&n_sms, cudaDevAttrMultiProcessorCount, 0));
    stream_ = bytes * 1e-6 /
              timer.median_us([&] { launch_read_stream(backend_.queue(), n_sms, data.data(), bytes, sink.as<uint32_t>()); });
  }

  void measure(int batch) {
    const ModelConfig& c = config_;
    const int64_t pages_each = pages_for(options_.context);
    KvCache kv(backend_, c.n_layers, pages_each * batch, heads_.kv.size(), c.head_dim);
    const size_t layer_kv = static_cast<size_t>(pages_each) * batch * heads_.kv.size() * kPageTokens * c.head_dim;
    for (int64_t i = 0; i < c.n_layers; ++i) {
      launch_fill_bf16(backend_.queue(), 2 * i, 2.0f, layer_kv, kv.layer(i).k);
      launch_fill_bf16(backend_.queue(), 2 * i + 1, 2.0f, layer_kv, kv.layer(i).v);
    }
    Workspace ws(c, heads_, backend_, batch, options_.context, false);
    Graph graph(c, weights_, heads_, backend_, comm_, kv, ws);
    std::vector<int32_t> ids(batch), positions(batch, options_.context - 1), offsets(batch + 1), pages(pages_each * batch);
    for (int b = 0; b < batch; ++b) {
      ids[b] = static_cast<int32_t>((b * 2654435761ull + 12345) % c.vocab_size);
      offsets[b + 1] = b + 1;
    }
    for (size_t i = 0; i < pages.size(); ++i) pages[i] = static_cast<int32_t>(i);
    std::vector<DeviceBuffer> held;
    const auto put = [&](const std::vector<int32_t>& values) {
      held.push_back(backend_.alloc(values.size() * 4, "step inputs"));
      backend_.upload(held.back().data(), values.data(), values.size() * 4);
      return held.back().as<const int32_t>();
    };
    BatchView view;
    view.n_tokens = view.n_seqs = batch;
    view.max_pages = static_cast<int>(pages_each);
    view.token_ids = put(ids), view.positions = put(positions), view.seq_offsets = put(offsets), view.page_tables = put(pages);
    DeviceBuffer logits = backend_.alloc(static_cast<size_t>(batch) * c.vocab_size * 4, "logits");
    DeviceBuffer counts = backend_.alloc(static_cast<size_t>(batch) * c.vocab_size * 4, "counts");
    DeviceBuffer outputs = backend_.alloc(static_cast<size_t>(batch) * (8 + 8 * kMaxLogprobs), "sampled tokens");
    std::vector<SampleRow> sample_rows(batch);
    for (int b = 0; b < batch; ++b) sample_rows[b].slot = b, sample_rows[b].temperature = 0.0f;
    DeviceBuffer device_rows = backend_.alloc(batch * sizeof(SampleRow), "rows");
    backend_.upload(device_rows.data(), sample_rows.data(), batch * sizeof(SampleRow));
    SampleArgs sample;
    sample.logits = logits.as<float>(), sample.n_rows = batch, sample.vocab_size = static_cast<int>(c.vocab_size);
    sample.rows = device_rows.as<SampleRow>(), sample.counts = counts.as<uint32_t>();
    sample.tokens = outputs.as<int32_t>(), sample.logprobs = outputs.as<float>() + batch;
    sample.top_ids = outputs.as<int32_t>() + 2 * batch, sample.top_logprobs = outputs.as<float>() + (2 + kMaxLogprobs) * batch;

    // Which experts a step touches, and what it reads: every weight once, and the cached K and V.
    Trace trace;
    graph.forward(view, &trace);
    double touched = 0, bytes = static_cast<double>(weights_.lm_head->bytes());
    size_t moe = 0;
    for (const LayerWeights& layer : weights_.layers) {
      bytes += layer.qkv->bytes() + layer.attn_out->bytes() + layer.shared_gate_up->bytes() + layer.shared_down->bytes() +
               2.0 * batch * options_.context * heads_.kv.size() * c.head_dim * 2;
      if (layer.dense) continue;
      bytes += layer.router->bytes();
      const std::vector<int32_t>& ids_of_layer = trace.router_ids[moe++];
      const std::set<int32_t> experts(ids_of_layer.begin(), ids_of_layer.end());
      touched += experts.size();
      for (const int32_t e : experts)
        if (layer.gate_up[e]) bytes += layer.gate_up[e]->bytes() + layer.down[e]->bytes();
    }
    const uint64_t key = 2 * batch;
    Timer timer(backend_.queue().stream);
    const double us = timer.median_us([&] {
      backend_.run_recorded(key, [&] {
        graph.forward(view);
        backend_.head_logits(ws.normed.as<float>(), nullptr, batch, *weights_.lm_head, comm_, weights_.vocab_widths,
                             logits.as<float>());
        if (rank_ == 0) backend_.sample(sample);
      });
    });
    const int n_sums = static_cast<int>(2 * c.n_layers);
    const double sums_us = timer.median_us([&] {
      backend_.run_recorded(key + 1, [&] {
        for (int i = 0; i < n_sums; ++i)
          backend_.reduce_add_rms_norm(ws.residual.as<float>(), ws.partial.as<float>(),
                                       i % 2 ? 1 : static_cast<int>(c.n_active) + 1, comm_, weights_.final_norm.as<float>(),
                                       c.rms_eps, batch, static_cast<int>(c.hidden_size), ws.normed.as<float>());
      });
    });
    backend_.synchronize();
    if (comm_) {
      double all = 0;
      for (const auto& other : comm_->exchange(std::make_shared<double>(bytes))) all += *static_cast<double*>(other.get());
      bytes = all;
    }
    if (rank_ == 0)
      std::printf(
          "%d ranks %s %s batch %3d: %9.1f us, %8.1f tokens/s, %5.1f%% of %d x %.2f TB/s; sums and norms %6.1f us; %.1f "
          "experts\n",
          options_.ranks, options_.dtype.c_str(), options_.experts.c_str(), batch, us, batch * 1e6 / us,
          100 * bytes / (us * options_.ranks * stream_) * 1e-6, options_.ranks, stream_, sums_us,
          touched / std::max<size_t>(1, trace.router_ids.size()));
    std::fflush(stdout);
    backend_.forget_recorded();
  }

  const Options& options_;
  int rank_;
  Comm* comm_;
  ModelConfig config_;
  CudaBackend backend_;
  HeadShard heads_;
  ModelWeights weights_;
  uint64_t seed_ = 0;
  double stream_ = 0;  // TB/s of this rank's GPU
};

}  // namespace

int main(int argc, char** argv) {
  try {
    const Options options = parse(argc, argv);
    on_ranks(options.ranks, [&](int rank, Comm* comm) {
      if (options.mode == "decode")
        Decode(options, rank, options.ranks > 1 ? comm : nullptr).run();
      else
        Reduce(options, rank, *comm).run();
    });
    return 0;
  } catch (const EngineError& error) {
    std::fprintf(stderr, "%s: %s\n%s\n", error_code_name(error.code()), error.what(), error.hint().c_str());
    return 1;
  }
}
