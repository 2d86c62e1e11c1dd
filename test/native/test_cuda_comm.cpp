// Worlds of GPUs: what ranks on GPUs of their own sum and gather. SIGMOE_TEST_GPUS says how many there are; with fewer than two
// the cases print so and pass.
#include <chrono>
#include <cmath>
#include <cstdio>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>

#include "cpu_testing.h"
#include "golden.h"

using namespace sigmoe;
using namespace sigmoe::testing;

namespace {

std::vector<int> worlds() {
  std::vector<int> out;
  for (const int world : {2, 3, 4, 8})
    if (world <= sigmoe::test::n_test_gpus()) out.push_back(world);
  if (out.empty()) std::printf("cuda worlds: skipped, SIGMOE_TEST_GPUS names fewer than two GPUs\n");
  return out;
}

// work(rank, backend, comm) on every rank's thread; the errors, by rank.
std::vector<std::exception_ptr> on_ranks(int world, const std::function<void(int, Backend&, Comm&)>& work) {
  const auto comms = make_thread_world(world);
  std::vector<std::unique_ptr<Backend>> backends(world);
  std::vector<std::exception_ptr> errors(world);
  std::vector<std::thread> threads;
  for (int rank = 0; rank < world; ++rank)
    threads.emplace_back([&, rank] {
      try {
        BackendOptions options;
        options.device_index = rank;
        backends[rank] = create_backend("cuda", options);
        backends[rank]->join(*comms[rank]);
        work(rank, *backends[rank], *comms[rank]);
      } catch (...) {
        errors[rank] = std::current_exception();
        comms[rank]->shut_down();
      }
    });
  for (std::thread& thread : threads) thread.join();
  return errors;
}

void check_no_error(const std::vector<std::exception_ptr>& errors) {
  for (const std::exception_ptr& error : errors) try {
      if (error) std::rethrow_exception(error);
    } catch (const EngineError& found) {
      FAIL_CHECK(found.what());
    }
}

DeviceBuffer put(Backend& backend, const std::vector<float>& values) {
  DeviceBuffer buffer = backend.alloc(values.size() * sizeof(float), "test data");
  backend.upload(buffer.data(), values.data(), values.size() * sizeof(float));
  return buffer;
}

std::vector<float> read(Backend& backend, const DeviceBuffer& buffer) {
  std::vector<float> values(buffer.bytes() / sizeof(float));
  backend.download(values.data(), buffer.data(), buffer.bytes());
  return values;
}

}  // namespace

namespace {

bool have_hoppers() { return create_backend("cuda", {})->info().kernels == "sm_90"; }

// One call of reduce_add_rms_norm, what it must give, and what each rank got.
struct Sum {
  int width, n_tokens, n_slots;
  std::vector<float> start, weight;
  std::vector<std::vector<float>> addends;  // of each rank, like the following
  std::vector<std::vector<float>> residuals, outs, replayed;

  Sum(int world, int width, int n_tokens, int n_slots)
      : width(width), n_tokens(n_tokens), n_slots(n_slots), residuals(world), outs(world), replayed(world) {
    start = gaussian(n(), 1);
    weight = gaussian(width, 2);
    for (int rank = 0; rank < world; ++rank) addends.push_back(gaussian(n() * n_slots, 10 + rank));
  }
  size_t n() const { return static_cast<size_t>(n_tokens) * width; }

  void run(int rank, Backend& backend, Comm& comm) {
    const DeviceBuffer residual = put(backend, start), addend = put(backend, addends[rank]), scale = put(backend, weight),
                       out = put(backend, std::vector<float>(n(), -12345.0f));
    const auto call = [&] {
      backend.reduce_add_rms_norm(residual.as<float>(), addend.as<float>(), n_slots, &comm, scale.as<float>(), 1e-6f, n_tokens,
                                  width, out.as<float>());
    };
    call();
    residuals[rank] = read(backend, residual);
    outs[rank] = read(backend, out);
    const uint64_t key = reinterpret_cast<uintptr_t>(this);
    for (int i = 0; i < 4; ++i) {  // run, recorded, replayed
      backend.upload(residual.data(), start.data(), n() * sizeof(float));
      backend.upload(addend.data(), addends[rank].data(), n() * n_slots * sizeof(float));
      backend.run_recorded(key, call);
    }
    replayed[rank] = read(backend, out);
  }

  void check() const {
    // kernels/cuda/comm_many.cu, where all GPUs are Hoppers
    const bool travels_in_bf16 = addends.size() == 2 && n_tokens >= 48 && width % 128 == 0 && width <= 4096 && have_hoppers();
    double difference = 0, norm = 0, out_difference = 0, out_norm = 0;
    std::vector<double> expected(width);
    for (int t = 0; t < n_tokens; ++t) {
      double square = 0;
      for (int i = 0; i < width; ++i) {
        expected[i] = start[static_cast<size_t>(t) * width + i];
        for (const std::vector<float>& addend : addends) {
          float part = 0.0f;
          for (int s = 0; s < n_slots; ++s) part += addend[(static_cast<size_t>(t) * n_slots + s) * width + i];
          expected[i] += travels_in_bf16 ? bf16_to_f32(f32_to_bf16(part)) : part;
        }
        square += expected[i] * expected[i];
      }
      const double inverse = 1.0 / std::sqrt(square / width + 1e-6);
      for (int i = 0; i < width; ++i) {
        const size_t at = static_cast<size_t>(t) * width + i;
        const double wanted = expected[i] * inverse * weight[i];
        difference += std::pow(residuals[0][at] - expected[i], 2), norm += expected[i] * expected[i];
        out_difference += std::pow(outs[0][at] - wanted, 2), out_norm += wanted * wanted;
      }
    }
    CHECK(std::sqrt(difference / norm) < 1e-6);
    CHECK(std::sqrt(out_difference / out_norm) < 1e-6);
    for (size_t rank = 0; rank < outs.size(); ++rank) {
      CHECK(residuals[rank] == residuals[0]);
      CHECK(outs[rank] == outs[0]);
      CHECK(replayed[rank] == outs[0]);
    }
  }
};

}  // namespace

TEST_CASE("cuda worlds: sums over ranks and norms are the reference's, with the same bits on every rank, replayed or not") {
  for (const int world : worlds()) {
    CAPTURE(world);
    std::vector<Sum> sums;
    for (const int width : {20, 256, 4096, 8192})
      for (const int n_tokens : {1, 3, 8, 32, 33, 200, 600})
        for (const int n_slots : {1, 9})
          if (int64_t{width} * n_tokens * n_slots <= 2'500'000) sums.emplace_back(world, width, n_tokens, n_slots);
    check_no_error(on_ranks(world, [&](int rank, Backend& backend, Comm& comm) {
      for (Sum& sum : sums) sum.run(rank, backend, comm);
    }));
    for (const Sum& sum : sums) {
      CAPTURE(sum.width);
      CAPTURE(sum.n_tokens);
      CAPTURE(sum.n_slots);
      sum.check();
    }
  }
}

TEST_CASE("cuda worlds: the norm after a sum over ranks leaves products what they would make of it themselves") {
  if (worlds().empty()) return;
  constexpr int kWidth = 4096;
  for (const WeightFormat format : {WeightFormat::fp8, WeightFormat::bf16})
    for (const int n_tokens : {3, 8, 24, 47, 48, 128, 600}) {
      CAPTURE(n_tokens);
      CAPTURE(weight_format_name(format));
      struct Found {
        std::vector<float> out, first, second;
      };
      std::vector<Found> found(2);
      check_no_error(on_ranks(2, [&](int rank, Backend& backend, Comm& comm) {
        const auto weight = random_weight(format, 256, kWidth,
                                          format == WeightFormat::fp8 ? blocks_of(kWidth, 128) : std::vector<int64_t>{}, 0, 3)
                                .put(backend);
        const size_t n = static_cast<size_t>(n_tokens) * kWidth;
        const DeviceBuffer scale = put(backend, gaussian(kWidth, 4)), residual = put(backend, gaussian(n, 5)),
                           addend = put(backend, gaussian(n, 6 + rank)), out = backend.alloc(n * 4, "out"),
                           copy = backend.alloc(n * 4, "copy"), y = backend.alloc(n_tokens * 256 * 4, "y");
        backend.copy_rows(residual.as<float>(), nullptr, kWidth, copy.as<float>(), nullptr, kWidth, n_tokens, kWidth);
        backend.linear(copy.as<float>(), *weight, n_tokens, y.as<float>());  // tells the norm what to pack for
        backend.reduce_add_rms_norm(residual.as<float>(), addend.as<float>(), 1, &comm, scale.as<float>(), 1e-6f, n_tokens,
                                    kWidth, out.as<float>());
        backend.linear(out.as<float>(), *weight, n_tokens, y.as<float>());
        found[rank].first = read(backend, y);
        backend.copy_rows(out.as<float>(), nullptr, kWidth, copy.as<float>(), nullptr, kWidth, n_tokens, kWidth);
        backend.linear(copy.as<float>(), *weight, n_tokens, y.as<float>());
        found[rank].second = read(backend, y);
        found[rank].out = read(backend, out);
      }));
      for (const Found& rank : found) {
        REQUIRE(!rank.first.empty());
        CHECK(std::isfinite(rank.first[0]));
        CHECK(rank.first == rank.second);
        CHECK(rank.out == found[0].out);
        CHECK(rank.first == found[0].first);
      }
    }
}

TEST_CASE("cuda worlds: logits are gathered from parts of any width, and from more rows than before") {
  for (const int world : worlds())
    for (const int vocab : {333, 4096}) {
      CAPTURE(world);
      CAPTURE(vocab);
      constexpr int kWidth = 256;
      const int each = vocab / world / 4 * 4;
      std::vector<int64_t> widths(world, each);
      widths.back() = vocab - (world - 1) * each;
      const std::vector<float> x = gaussian(9 * kWidth, 5);
      std::vector<std::vector<std::vector<float>>> got(world);
      std::vector<std::vector<float>> expected(world);  // of each rank's own columns
      check_no_error(on_ranks(world, [&](int rank, Backend& backend, Comm& comm) {
        const auto head = random_weight(WeightFormat::bf16, widths[rank], kWidth, {}, 0, 4 + rank).put(backend);
        const DeviceBuffer in = put(backend, x), own = backend.alloc(9 * widths[rank] * 4, "own"),
                           all = backend.alloc(9 * vocab * 4, "all");
        backend.head_logits(in.as<float>(), nullptr, 9, *head, nullptr, {widths[rank]}, own.as<float>());
        expected[rank] = read(backend, own);
        for (const int rows : {1, 9, 4}) {
          backend.head_logits(in.as<float>(), nullptr, rows, *head, &comm, widths, all.as<float>());
          std::vector<float> logits = read(backend, all);
          logits.resize(static_cast<size_t>(rows) * vocab);
          got[rank].push_back(logits);
        }
      }));
      for (int rank = 0; rank < world; ++rank)
        for (const std::vector<float>& logits : got[rank]) {
          const int rows = static_cast<int>(logits.size()) / vocab;
          for (int row = 0; row < rows; ++row)
            for (int r = 0, column = 0; r < world; column += static_cast<int>(widths[r++]))
              CHECK(std::equal(expected[r].begin() + row * widths[r], expected[r].begin() + (row + 1) * widths[r],
                               logits.begin() + row * vocab + column));
        }
    }
}

TEST_CASE("cuda worlds: a rank that fails ends the others' waits with an error, and the GPUs serve the next world") {
  for (const int world : worlds())
    for (const int n_tokens : {1, 100}) {
      CAPTURE(world);
      constexpr int kWidth = 1024;
      const auto begin = std::chrono::steady_clock::now();
      const auto run = [&](Backend& backend, Comm& comm) {
        const std::vector<float> values = gaussian(n_tokens * kWidth, 3);
        const DeviceBuffer residual = put(backend, values), addend = put(backend, values), out = put(backend, values);
        backend.reduce_add_rms_norm(residual.as<float>(), addend.as<float>(), 1, &comm, residual.as<float>(), 1e-6f, n_tokens,
                                    kWidth, out.as<float>());
        read(backend, out);
      };
      const auto errors = on_ranks(world, [&](int rank, Backend& backend, Comm& comm) {
        run(backend, comm);
        if (rank == 1) throw EngineError(ErrorCode::device, "this rank fails");
        run(backend, comm);
      });
      for (const std::exception_ptr& error : errors) try {
          REQUIRE(error);
          std::rethrow_exception(error);
        } catch (const EngineError& found) {
          CHECK(found.code() == ErrorCode::device);
        }
      CHECK(std::chrono::steady_clock::now() - begin < std::chrono::seconds(8));
      check_no_error(on_ranks(world, [&](int, Backend& backend, Comm& comm) { run(backend, comm); }));
    }
}
