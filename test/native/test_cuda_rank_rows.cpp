// Whole layers of a few rows on several ranks against the ops of the same world, to the bit, at the model's shapes: in parts of
// experts and in whole ones. Ranks spread over the GPUs that SIGMOE_TEST_GPUS counts; where they share one, sums pass through
// the host and the kernels that push them are not run, which is printed; ranks of two nodes, here of one process, sum over
// NCCL. Without a Hopper GPU the cases print why and pass.
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <exception>
#include <functional>
#include <numeric>
#include <thread>

#include "backend/bench_device.h"
#include "backend/decode_layer.h"
#include "backend/node_comm.h"
#include "cuda_testing.h"
#include "golden.h"

using namespace sigmoe;
using namespace sigmoe::testing;

namespace {

constexpr int kWidth = 4096, kInner = 1024, kExperts = 256, kActive = 8, kLayers = 4;
constexpr float kEps = 1e-6f;

int n_replays() { return small_run() ? 3 : 20; }

struct Case {
  int world;
  bool whole_experts;  // each on one rank, else a part of each on all
  WeightFormat format;
  std::vector<int> lengths;  // of each row's sequence, its own token included
  bool nodes = false;        // every rank is a node's
};

template <typename T>
DeviceBuffer on_device(Backend& backend, const std::vector<T>& values) {
  DeviceBuffer buffer = backend.alloc(values.size() * sizeof(T), "test data");
  backend.upload(buffer.data(), values.data(), values.size() * sizeof(T));
  return buffer;
}

template <typename T>
std::vector<T> read(Backend& backend, const DeviceBuffer& buffer) {
  std::vector<T> values(buffer.bytes() / sizeof(T));
  backend.download(values.data(), buffer.data(), buffer.bytes());
  return values;
}

// What the layers leave: the residual stream after all sums, its norm, and the cache.
struct Result {
  std::vector<float> residual, normed;
  std::vector<uint16_t> k;
  bool at_once = true;
};

bool same(const Result& a, const Result& b) { return a.residual == b.residual && a.normed == b.normed && a.k == b.k; }

// One rank's parts of the layers, which share their weights; its routed experts share four sets of them.
class Rank {
 public:
  Rank(const Case& c, Backend& backend, Comm& comm)
      : backend_(backend), comm_(comm), n_tokens_(static_cast<int>(c.lengths.size())) {
    const int rank = comm.rank(), world = comm.world(), inner = c.whole_experts ? kInner : kInner / world;
    const auto made = backend.bench_device();
    const auto random = [&](int64_t n, int64_t k, bool gate_up, uint64_t seed) {
      const LinearDesc desc{
          c.format,       n, k, c.format == WeightFormat::fp8 ? blocks_of(k, 128) : std::vector<int64_t>{}, gate_up, "random",
          LinearUse::body};
      return made->random_linear(desc, seed + 100 * rank);
    };
    qkv_ = random(5120 / world, kWidth, false, 1), out_ = random(kWidth, 4096 / world, false, 2);
    shared_up_ = random(2 * kInner / world, kWidth, true, 3), shared_down_ = random(kWidth, kInner / world, false, 4);
    for (int i = 0; i < 4; ++i) up_[i] = random(2 * inner, kWidth, true, 5 + i), down_[i] = random(kWidth, inner, false, 9 + i);
    for (int e = 0; e < kExperts; ++e) {
      const bool here = !c.whole_experts || e * world / kExperts == rank;
      experts_.gate_up.push_back(here ? up_[e % 4].get() : nullptr),
          experts_.down.push_back(here ? down_[e % 4].get() : nullptr);
    }
    experts_.shared_gate_up = shared_up_.get(), experts_.shared_down = shared_down_.get();
    HostWeight gate = random_weight(WeightFormat::bf16, kExperts, kWidth, {}, 0, 13);
    gate.desc.use = LinearUse::router;
    gate_ = gate.put(backend);

    int longest = 0;
    std::vector<int32_t> positions, offsets = {0};
    for (const int length : c.lengths) {
      positions.push_back(length - 1), offsets.push_back(static_cast<int>(positions.size()));
      longest = std::max(longest, length);
    }
    const int max_pages = (longest + kPageTokens - 1) / kPageTokens;
    std::vector<int32_t> pages(n_tokens_ * max_pages);
    std::iota(pages.begin(), pages.end(), 0);
    n_cache_ = pages.size() * (4 / world) * kPageTokens * 128;
    positions_ = on_device(backend, positions), offsets_ = on_device(backend, offsets), pages_ = on_device(backend, pages);
    cos_ = on_device(backend, gaussian(longest * 32, 21)), sin_ = on_device(backend, gaussian(longest * 32, 22));
    input_norm_ = on_device(backend, gaussian(kWidth, 23)), post_norm_ = on_device(backend, gaussian(kWidth, 24));
    q_norm_ = on_device(backend, gaussian(128, 25)), k_norm_ = on_device(backend, gaussian(128, 26));
    bias_ = on_device(backend, gaussian(kExperts, 27, 0.05f));
    residual_start_ = gaussian(n_tokens_ * kWidth, 28), partial_start_ = gaussian(n_tokens_ * kWidth, 29 + rank);
    const auto floats = [&](size_t n) { return backend.alloc(n * sizeof(float), "test activations"); };
    residual_ = floats(n_tokens_ * kWidth), normed_ = floats(n_tokens_ * kWidth), qkv_out_ = floats(n_tokens_ * 5120);
    query_ = floats(n_tokens_ * 4096), attended_ = floats(n_tokens_ * 4096);
    partial_ = floats(n_tokens_ * (kActive + 1) * kWidth), logits_ = floats(n_tokens_ * kExperts);
    ids_ = floats(n_tokens_ * kActive), slot_weights_ = floats(n_tokens_ * kActive), expert_offsets_ = floats(kExperts + 1),
    order_ = floats(n_tokens_ * kActive);
    k_ = backend.alloc(n_cache_ * 2, "k"), v_ = backend.alloc(n_cache_ * 2, "v");
    attention_.n_heads = 32 / world, attention_.n_kv_heads = 4 / world, attention_.head_dim = 128, attention_.rotary_dim = 64;
    router_.n_experts = kExperts, router_.n_active = kActive, router_.n_groups = 8, router_.n_groups_kept = 4;
    router_.scaling = 2.5f;
    batch_.n_tokens = batch_.n_seqs = n_tokens_, batch_.max_pages = max_pages;
    batch_.positions = positions_.as<int32_t>(), batch_.seq_offsets = offsets_.as<int32_t>();
    batch_.page_tables = pages_.as<int32_t>();
  }

  // Layer i at once where bit i of `at_once` is set. `key` 0: called plainly, else recorded under it and replayed often; the
  // result is the last run's, and `alike` false when some replay had others.
  Result run(unsigned at_once, uint64_t key, bool* alike = nullptr) {
    Result result;
    const auto layers = [&] {
      int n_pending = 1;  // as a dense layer leaves it
      for (int i = 0; i < kLayers; ++i)
        if (at_once >> i & 1)
          result.at_once = dynamic_cast<DecodeLayers&>(backend_).decode_layer(layer(), n_pending) && result.at_once;
        else
          by_ops(n_pending);
      norm(input_norm_, n_pending);
    };
    for (int i = 0; i < (key ? n_replays() : 1); ++i) {
      backend_.upload(residual_.data(), residual_start_.data(), residual_start_.size() * sizeof(float));
      backend_.upload(partial_.data(), partial_start_.data(), partial_start_.size() * sizeof(float));
      const auto device = backend_.bench_device();
      device->fill(k_.data(), DType::bf16, n_cache_, 1.0f, 31);
      device->fill(v_.data(), DType::bf16, n_cache_, 1.0f, 32);
      backend_.synchronize();
      if (key)
        backend_.run_recorded(key, layers);
      else
        layers();
      const std::vector<float> before = std::move(result.residual);
      result.residual = read<float>(backend_, residual_);
      if (alike && i > 0) *alike = *alike && before == result.residual;
    }
    result.normed = read<float>(backend_, normed_), result.k = read<uint16_t>(backend_, k_);
    return result;
  }

 private:
  KvView kv() const {
    KvView kv;
    kv.k = k_.data(), kv.v = v_.data(), kv.dtype = DType::bf16;
    return kv;
  }
  Routing routing() const {
    return {ids_.as<int32_t>(), slot_weights_.as<float>(), expert_offsets_.as<int32_t>(), order_.as<int32_t>()};
  }
  DecodeLayer layer() const {
    return {.comm = &comm_,
            .batch = batch_,
            .attention = attention_,
            .router = router_,
            .width = kWidth,
            .eps = kEps,
            .input_norm = input_norm_.as<float>(),
            .post_attention_norm = post_norm_.as<float>(),
            .q_norm = q_norm_.as<float>(),
            .k_norm = k_norm_.as<float>(),
            .rope_cos = cos_.as<float>(),
            .rope_sin = sin_.as<float>(),
            .qkv = qkv_.get(),
            .attn_out = out_.get(),
            .gate = gate_.get(),
            .gate_bias = bias_.as<float>(),
            .experts = experts_,
            .kv = kv(),
            .residual = residual_.as<float>(),
            .normed = normed_.as<float>(),
            .qkv_out = qkv_out_.as<float>(),
            .query = query_.as<float>(),
            .attended = attended_.as<float>(),
            .partial = partial_.as<float>(),
            .router_logits = logits_.as<float>(),
            .routing = routing()};
  }

  void norm(const DeviceBuffer& weight, int n_pending) {
    backend_.reduce_add_rms_norm(residual_.as<float>(), partial_.as<float>(), n_pending, &comm_, weight.as<float>(), kEps,
                                 n_tokens_, kWidth, normed_.as<float>());
  }
  void by_ops(int& n_pending) {
    norm(input_norm_, n_pending);
    backend_.linear(normed_.as<float>(), *qkv_, n_tokens_, qkv_out_.as<float>());
    backend_.qk_norm_rope_store(batch_, attention_, qkv_out_.as<float>(), q_norm_.as<float>(), k_norm_.as<float>(), kEps,
                                cos_.as<float>(), sin_.as<float>(), kv(), query_.as<float>());
    backend_.attention(batch_, attention_, query_.as<float>(), kv(), attended_.as<float>());
    backend_.linear(attended_.as<float>(), *out_, n_tokens_, partial_.as<float>());
    norm(post_norm_, 1);
    backend_.route(normed_.as<float>(), *gate_, bias_.as<float>(), router_, n_tokens_, nullptr, logits_.as<float>(), routing());
    backend_.experts(normed_.as<float>(), experts_, routing(), kActive, n_tokens_, kWidth, partial_.as<float>());
    n_pending = kActive + 1;
  }

  Backend& backend_;
  Comm& comm_;
  int n_tokens_ = 0;
  size_t n_cache_ = 0;
  std::unique_ptr<LinearWeight> qkv_, out_, gate_, shared_up_, shared_down_, up_[4], down_[4];
  ExpertWeights experts_;
  std::vector<float> residual_start_, partial_start_;
  AttentionShape attention_;
  RouterShape router_;
  BatchView batch_;
  DeviceBuffer positions_, offsets_, pages_, cos_, sin_, input_norm_, post_norm_, q_norm_, k_norm_, bias_, residual_, normed_,
      qkv_out_, query_, attended_, partial_, logits_, ids_, slot_weights_, expert_offsets_, order_, k_, v_;
};

bool have_hopper() {
  for (const DeviceReport& report : list_devices())
    if (report.device == "cuda") {
      if (!report.available) {
        std::printf("cuda rank rows: skipped, %s\n", report.detail.c_str());
        return false;
      }
      const auto backend = create_backend("cuda", {});
      if (backend->info().kernels == "sm_90") return true;
      std::printf("cuda rank rows: skipped, %s has %s\n", backend->info().name.c_str(), backend->info().kernels.c_str());
    }
  return false;
}

int free_port() {
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  REQUIRE(bind(fd, reinterpret_cast<sockaddr*>(&address), size) == 0);
  REQUIRE(getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size) == 0);
  close(fd);
  return ntohs(address.sin_port);
}

// A node with one rank, whose Comm keeps it alive.
std::unique_ptr<Comm> node_comm(int index, int count, int port) {
  NodeOptions options;
  options.index = index;
  options.count = count;
  options.port = port;
  options.secret = "of a test";
  options.join_ms = options.patience_ms = 20'000;
  return std::move(make_node_world(std::make_shared<Node>(options, 1, "model: random\n", nullptr), 1)[0]);
}

// work(rank, backend, comm) on every rank's thread. False where nodes find no NCCL to meet by.
bool on_ranks(int world, bool nodes, const std::function<void(int, Backend&, Comm&)>& work) {
  auto comms = make_thread_world(world);
  const int port = nodes ? free_port() : 0;
  std::vector<std::exception_ptr> errors(world);
  std::vector<std::thread> threads;
  for (int rank = 0; rank < world; ++rank)
    threads.emplace_back([&, rank] {
      try {
        if (nodes) comms[rank] = node_comm(rank, world, port);
        BackendOptions options;
        options.device_index = rank % sigmoe::test::n_test_gpus();
        const auto backend = create_backend("cuda", options);
        backend->join(*comms[rank]);
        work(rank, *backend, *comms[rank]);
      } catch (...) {
        errors[rank] = std::current_exception();
        comms[rank]->shut_down();
      }
    });
  for (std::thread& thread : threads) thread.join();
  bool missing = false;
  for (const std::exception_ptr& error : errors) try {
      if (error) std::rethrow_exception(error);
    } catch (const EngineError& found) {
      missing = missing || (nodes && found.code() == ErrorCode::not_found);
      if (missing)
        std::printf("cuda rank rows: skipped, %s\n", found.what());
      else
        FAIL_CHECK(std::string(found.what()));
    }
  return !missing;
}

void check_case(const Case& c) {
  CAPTURE(c.world);
  CAPTURE(c.whole_experts);
  CAPTURE(weight_format_name(c.format));
  CAPTURE(c.lengths.size());
  CAPTURE(c.lengths[0]);
  if (c.world > sigmoe::test::n_test_gpus())
    std::printf("cuda rank rows: %d ranks on %d GPUs, sums through the host\n", c.world, sigmoe::test::n_test_gpus());
  constexpr unsigned kAll = (1u << kLayers) - 1;
  struct Found {
    Result by_ops, plain, some, recorded;
    bool alike = true;
  };
  std::vector<Found> found(c.world);
  const bool met = on_ranks(c.world, c.nodes, [&](int r, Backend& backend, Comm& comm) {
    Rank rank(c, backend, comm);
    found[r].by_ops = rank.run(0, 0);
    found[r].plain = rank.run(kAll, 0);
    found[r].some = rank.run(kAll & ~2u, 0);  // one layer between by ops, as where a draft model taps
    found[r].recorded = rank.run(kAll, 1, &found[r].alike);
  });
  if (!met) return;
  for (const Found& rank : found) {
    REQUIRE(!rank.by_ops.residual.empty());
    CHECK(std::isfinite(rank.by_ops.residual[0]));
    CHECK(rank.plain.at_once);
    CHECK(same(rank.plain, rank.by_ops));
    CHECK(same(rank.some, rank.by_ops));
    CHECK(same(rank.recorded, rank.by_ops));
    CHECK(rank.alike);
    CHECK(rank.plain.residual == found[0].plain.residual);
    CHECK(rank.plain.normed == found[0].plain.normed);
  }
}

}  // namespace

TEST_CASE("cuda rank rows: two ranks with parts of every expert") {
  if (!have_hopper()) return;
  for (const std::vector<int>& lengths : {std::vector<int>{129}, {1000, 17}, {1}, {1025}, {5000}, {1, 300, 40, 2049}}) {
    check_case({2, false, WeightFormat::fp8, lengths});
    if (small_run() && lengths.size() > 1) return;
  }
}

TEST_CASE("cuda rank rows: two ranks with experts of their own") {
  if (!have_hopper()) return;
  for (const std::vector<int>& lengths : {std::vector<int>{700}, {1000, 17}}) check_case({2, true, WeightFormat::fp8, lengths});
}

TEST_CASE("cuda rank rows: two ranks in BF16") {
  if (!have_hopper()) return;
  for (const std::vector<int>& lengths : {std::vector<int>{700}, {1000, 17}})
    check_case({2, false, WeightFormat::bf16, lengths});
}

TEST_CASE("cuda rank rows: two ranks of two nodes") {
  if (!have_hopper()) return;
  if (sigmoe::test::n_test_gpus() < 2) {
    std::printf("cuda rank rows: skipped, SIGMOE_TEST_GPUS names fewer than two GPUs\n");
    return;
  }
  for (const WeightFormat format : {WeightFormat::fp8, WeightFormat::bf16})
    for (const std::vector<int>& lengths : {std::vector<int>{700}, {1000, 17}}) check_case({2, false, format, lengths, true});
}

TEST_CASE("cuda rank rows: four ranks") {
  if (!have_hopper()) return;
  check_case({4, false, WeightFormat::fp8, {700}});
  check_case({4, true, WeightFormat::fp8, {700}});
  check_case({4, false, WeightFormat::bf16, {700}});
}
