// The parts under the CPU ops: thread pool, memory, path choice; and the norm op with its ranks.
#include <atomic>
#include <chrono>
#include <cstring>
#include <set>
#include <stdexcept>
#include <thread>

#include "cpu/host_memory.h"
#include "cpu/simd.h"
#include "cpu/thread_pool.h"
#include "cpu_testing.h"

using namespace sigmoe;
using namespace sigmoe::testing;

TEST_CASE("thread pool: every item runs once, whatever the number of threads and items") {
  for (const int n_threads : {1, 2, 3, 8}) {
    ThreadPool pool(n_threads);
    CHECK(pool.size() == n_threads);
    for (const int n_items : {0, 1, 2, 7, 1000}) {
      std::vector<std::atomic<int>> runs(n_items);
      std::atomic<bool> worker_in_range{true};
      pool.parallel_for(n_items, [&](int64_t item, int worker) {
        ++runs[item];
        if (worker < 0 || worker >= n_threads) worker_in_range = false;
      });
      for (const std::atomic<int>& count : runs) REQUIRE(count == 1);
      CHECK(worker_in_range);
    }
  }
}

TEST_CASE("thread pool: loops in quick succession and after sleep see each other's writes") {
  ThreadPool pool(3);
  int64_t sum = 0;  // written by the caller between loops, read inside them
  std::vector<int64_t> seen(64);
  for (int round = 0; round < 2000; ++round) {
    sum += round;
    pool.parallel_for(64, [&](int64_t item, int) { seen[item] = sum + item; });
    for (int64_t item = 0; item < 64; ++item) REQUIRE(seen[item] == sum + item);
    if (round % 500 == 499) std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
}

TEST_CASE("thread pool: an exception reaches the caller and the pool goes on") {
  ThreadPool pool(4);
  for (int round = 0; round < 50; ++round) {
    CHECK_THROWS_AS(pool.parallel_for(100,
                                      [&](int64_t item, int) {
                                        if (item == 37) throw std::runtime_error("item 37");
                                      }),
                    std::runtime_error);
    std::atomic<int> runs{0};
    pool.parallel_for(10, [&](int64_t, int) { ++runs; });
    CHECK(runs == 10);
  }
}

TEST_CASE("memory: zeroed, aligned, and more than there is is refused with the figures") {
  const DeviceBuffer buffer = allocate_host(5 << 20, "test");
  CHECK(reinterpret_cast<uintptr_t>(buffer.data()) % 64 == 0);
  for (size_t i = 0; i < buffer.bytes(); i += 4096) REQUIRE(buffer.as<uint8_t>()[i] == 0);
  const uint64_t available = available_memory_bytes();
  CHECK(available > 0);
  for (const size_t asked : {static_cast<size_t>(available + available / 2), ~size_t{0}, ~size_t{0} / 2 - 10}) {
    try {
      allocate_host(asked, "the KV cache");
      FAIL("no error");
    } catch (const EngineError& error) {
      CHECK(error.code() == ErrorCode::out_of_memory);
      CHECK(std::string(error.what()).find("the KV cache: " + std::to_string(asked)) == 0);
    }
  }
}

TEST_CASE("memory: what was handed out and not touched counts as gone") {
  const uint64_t before = available_memory_bytes();
  const size_t part = before / 3 * 2;
  const DeviceBuffer first = allocate_host(part, "first");
  CHECK_THROWS_AS(allocate_host(part, "second"), EngineError);
}

TEST_CASE("memory: pieces of a slab do not overlap and live as long as they are held") {
  SlabArena arena;
  std::vector<SlabArena::Piece> pieces;
  std::set<const std::byte*> starts;
  for (int i = 0; i < 200; ++i) {
    pieces.push_back(arena.allocate(900001, "piece"));
    CHECK(reinterpret_cast<uintptr_t>(pieces.back().data) % 64 == 0);
    std::memset(pieces.back().data, i, 900001);
  }
  for (int i = 0; i < 200; ++i) REQUIRE(pieces[i].data[900000] == static_cast<std::byte>(i));
}

TEST_CASE("paths: unknown and absent ones are told apart") {
  const auto code_of = [](const char* kernels) {
    try {
      make_backend({kernels, DType::bf16});
    } catch (const EngineError& error) {
      return error.code();
    }
    return ErrorCode::internal;
  };
  CHECK(code_of("sse9") == ErrorCode::invalid_argument);
  std::set<std::string> present;
  for (const CpuPath path : cpu_paths()) present.insert(cpu_path_name(path));
  for (const char* name : {"generic", "avx2", "avx512", "avx512bf16", "amx"})
    if (!present.count(name)) CHECK(code_of(name) == ErrorCode::not_found);
}

TEST_CASE("paths: what runs is what info says") {
  for (const Path& path : all_paths()) {
    CAPTURE(path.label());
    const auto backend = make_backend(path);
    const bool bf16_path = path.kernels == "avx512bf16" || path.kernels == "amx";
    CHECK(backend->info().compute == (bf16_path && path.compute == DType::bf16 ? DType::bf16 : DType::f32));
    CHECK(backend->info().kv_dtype == path.compute);
    if (path.compute == DType::bf16) CHECK(backend->info().kernels == path.kernels);
  }
}

TEST_CASE("reduce_add_rms_norm: slots, lengths, optional parts") {
  const auto reference = make_backend({"reference", DType::f32});
  for (const Path& path : all_paths())
    for (const int width : {1, 5, 16, 64, 100, 2048})
      for (const int n_slots : {1, 2, 9})
        for (const int n_tokens : {0, 1, 3}) {
          CAPTURE(path.label());
          CAPTURE(width);
          const auto run = [&](Backend& backend, bool with_addend, bool with_norm) {
            std::vector<float> residual = gaussian(n_tokens * width, 1), addend = gaussian(n_tokens * n_slots * width, 2);
            const std::vector<float> weight = gaussian(width, 3);
            std::vector<float> out(n_tokens * width, -7.0f);
            backend.reduce_add_rms_norm(residual.data(), with_addend ? addend.data() : nullptr, n_slots, nullptr, weight.data(),
                                        1e-6f, n_tokens, width, with_norm ? out.data() : nullptr);
            residual.insert(residual.end(), out.begin(), out.end());
            return residual;
          };
          const auto backend = make_backend(path);
          for (const bool with_addend : {false, true})
            for (const bool with_norm : {false, true})
              CHECK(relative_error(run(*backend, with_addend, with_norm), run(*reference, with_addend, with_norm)) <
                    Tolerance::kFloat32);
        }
}

TEST_CASE("reduce_add_rms_norm: ranks end with the same sum") {
  constexpr int kTokens = 5, kSlots = 3, kWidth = 96;
  const std::vector<float> weight = gaussian(kWidth, 3), start = gaussian(kTokens * kWidth, 4);
  for (const Path& path : all_paths())
    for (const int world : {2, 4}) {
      CAPTURE(path.label());
      // Reference: all ranks' slots side by side in one rank.
      std::vector<float> all(kTokens * kSlots * world * kWidth), expected = start, expected_out(kTokens * kWidth);
      for (int r = 0; r < world; ++r) {
        const std::vector<float> mine = gaussian(kTokens * kSlots * kWidth, 50 + r);
        for (int t = 0; t < kTokens; ++t)
          std::memcpy(&all[(t * world + r) * kSlots * kWidth], &mine[t * kSlots * kWidth], kSlots * kWidth * sizeof(float));
      }
      make_backend({"reference", DType::f32})
          ->reduce_add_rms_norm(expected.data(), all.data(), kSlots * world, nullptr, weight.data(), 1e-6f, kTokens, kWidth,
                                expected_out.data());
      const auto comms = make_thread_world(world);
      std::vector<std::vector<float>> residuals(world, start), outs(world, std::vector<float>(kTokens * kWidth));
      std::vector<std::thread> ranks;
      for (int r = 0; r < world; ++r)
        ranks.emplace_back([&, r] {
          const auto backend = make_backend(path);
          std::vector<float> addend = gaussian(kTokens * kSlots * kWidth, 50 + r);
          backend->reduce_add_rms_norm(residuals[r].data(), addend.data(), kSlots, comms[r].get(), weight.data(), 1e-6f,
                                       kTokens, kWidth, outs[r].data());
        });
      for (std::thread& rank : ranks) rank.join();
      for (int r = 0; r < world; ++r) {
        CHECK(relative_error(outs[r], expected_out) < Tolerance::kFloat32);
        CHECK(outs[r] == outs[0]);
        CHECK(residuals[r] == residuals[0]);
      }
    }
}
