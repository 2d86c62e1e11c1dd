// Whole layers of a few rows on several ranks against the ops of the same world, to the bit, at the model's shapes: in parts of
// experts and in whole ones. Ranks spread over the GPUs that SIGMOE_TEST_GPUS counts; where they share one, sums pass through
// the host and the kernels that push them are not run, which is printed; ranks of two nodes, here of one process, sum over
// NCCL. Without a Hopper GPU the cases print why and pass.
#include <cstdio>
#include <exception>
#include <functional>
#include <thread>

#include "backend/node_comm.h"
#include "cuda_layer.h"
#include "free_port.h"
#include "golden.h"

using namespace sigmoe;
using namespace sigmoe::testing;

namespace {

int n_replays() { return small_run() ? 3 : 20; }

struct Case {
  int world;
  bool whole_experts;  // each on one rank, else a part of each on all
  WeightFormat format;
  std::vector<int> lengths;  // of each row's sequence, its own token included
  bool nodes = false;        // every rank is a node's
};

// Of each layer. Some: one layer between by ops, as where a draft model taps.
const std::vector<bool> kByOps(4, false), kAtOnce(4, true), kSome = {true, false, true, true};

bool same(const MoeResult& a, const MoeResult& b) { return a.residual == b.residual && a.normed == b.normed && a.k == b.k; }

bool have_hopper() { return hopper("cuda rank rows") != nullptr; }

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
  struct Found {
    MoeResult by_ops, plain, some, recorded;
    bool alike = true;
  };
  std::vector<Found> found(c.world);
  const bool met = on_ranks(c.world, c.nodes, [&](int r, Backend& backend, Comm& comm) {
    const MoeWeights weights(backend, c.format, Gate::random, {comm.rank(), comm.world(), c.whole_experts});
    MoeLayers layers(backend, weights, MoeRows(c.lengths, false, 0, 1, 29 + comm.rank()), &comm);
    found[r].by_ops = layers.run(kByOps, 0);
    found[r].plain = layers.run(kAtOnce, 0);
    found[r].some = layers.run(kSome, 0);
    found[r].recorded = layers.run(kAtOnce, 1, n_replays(), &found[r].alike);
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
