// What the twin knows of cores that work together: barriers, flags between cores, who wrote which byte of GM, deadlocks.
#include "twin_testing.h"

using namespace AscendC;
using namespace twin_testing;

namespace {

// Each core writes its number to its block of `out` (8 ints) from UB.
void write_own(const GlobalTensor<int32_t>& out, int at, int32_t value) {
  TBuf<TPosition::VECOUT> buf;
  GetTPipePtr()->InitBuffer(buf, 32);
  Duplicate(buf.Get<int32_t>(), value, 8);
  wait_for<HardEvent::V_MTE3>();
  DataCopy(out[8 * at], buf.Get<int32_t>(), 8);
}

int32_t read_block(const GlobalTensor<int32_t>& in, int at) {
  TBuf<TPosition::VECIN> buf;
  GetTPipePtr()->InitBuffer(buf, 32);
  DataCopy(buf.Get<int32_t>(), in[8 * at], 8);
  wait_for<HardEvent::MTE2_S>();
  return buf.Get<int32_t>().GetValue(0);
}

}  // namespace

TEST_CASE("twin: cores know who they are") {
  for (const auto& [kind, blocks, cores] :
       {std::tuple(twin::Kind::aiv, 48u, 48), std::tuple(twin::Kind::aic, 24u, 24), std::tuple(twin::Kind::mix, 24u, 72)}) {
    std::vector<int> vector_seen(48), cube_seen(24);
    twin::launch(kind, blocks, [&, blocks = blocks] {
      CHECK(GetBlockNum() == static_cast<int64_t>(blocks));
      if (ASCEND_IS_AIC)
        ++cube_seen[static_cast<size_t>(GetBlockIdx())];
      else
        ++vector_seen[static_cast<size_t>(GetBlockIdx())];
    });
    int total = 0;
    for (const std::vector<int>* seen : {&vector_seen, &cube_seen})
      for (const int n : *seen) {
        CHECK(n <= 1);
        total += n;
      }
    CHECK(total == cores);
  }
  CHECK(says(fault_of(twin::Kind::aiv, 49, [] {}), "at most 24 cube cores"));
  CHECK(says(fault_of(twin::Kind::aic, 25, [] {}), "a launch of 25 blocks"));
  CHECK(says(fault_of(twin::Kind::aic, 1, [] { KERNEL_TASK_TYPE_DEFAULT(KERNEL_TYPE_AIV_ONLY); }), "another kind of kernel"));
}

TEST_CASE("twin: two cores that write the same bytes, or read what another writes, need a barrier between them") {
  Array<int32_t> out(8 * 48, -1);
  CHECK(says(fault_of(twin::Kind::aiv, 2,
                      [&] {
                        TPipe pipe;
                        write_own(out.tensor(), 0, 1);
                      }),
             "DataCopy: writes global memory that DataCopy at test_twin_sync.cpp:"));
  // Neighbours in one block of 32 bytes are no conflict.
  CHECK(fault_of(twin::Kind::aiv, 8, [&] {
          TPipe pipe;
          TBuf<TPosition::VECOUT> buf;
          pipe.InitBuffer(buf, 32);
          Duplicate(buf.Get<int32_t>(), 7, 8);
          wait_for<HardEvent::V_MTE3>();
          DataCopyPad(out.tensor()[static_cast<uint64_t>(GetBlockIdx())], buf.Get<int32_t>(), {1, 4, 0, 0, 0});
        }) == "");
  for (const int n : {2, 3, 20, 48})
    for (const uint64_t seed : {0, 1, 2}) {
      twin::schedule(seed);
      const auto neighbour = [&](bool barrier) {
        return fault_of(twin::Kind::aiv, static_cast<uint32_t>(n), [&, barrier] {
          TPipe pipe;
          const int own = static_cast<int>(GetBlockIdx());
          write_own(out.tensor(), own, own);
          if (barrier) SyncAll();
          const int other = (own + 1) % n;
          const int32_t read = read_block(out.tensor(), other);
          if (barrier) CHECK(read == other);
        });
      };
      CHECK(neighbour(true) == "");
      // Whichever of the two comes first: the read sees the write, or the write the read.
      CHECK(says(neighbour(false), "s global memory that DataCopy at"));
    }
  twin::schedule(0);
}

TEST_CASE("twin: atomic additions of several cores need no barrier among themselves, but one before they are read") {
  const auto sum = [](bool barrier) {
    Array<float> total(8);
    const std::string fault = fault_of(twin::Kind::aiv, 10, [&, barrier] {
      TPipe pipe;
      TBuf<TPosition::VECOUT> buf;
      TBuf<TPosition::VECIN> back;
      pipe.InitBuffer(buf, 32);
      pipe.InitBuffer(back, 32);
      Duplicate(buf.Get<float>(), 1.0f, 8);
      wait_for<HardEvent::V_MTE3>();
      SetAtomicAdd<float>();
      DataCopy(total.tensor(), buf.Get<float>(), 8);
      SetAtomicNone();
      if (barrier) SyncAll();
      if (GetBlockIdx() == 0) DataCopy(back.Get<float>(), total.tensor(), 8);
    });
    if (barrier) CHECK(total.values == std::vector<float>(8, 10.0f));
    return fault;
  };
  CHECK(sum(true) == "");
  CHECK(says(sum(false), "global memory"));
}

TEST_CASE("twin: GM written by one pipe of a core and read by another needs a flag") {
  Array<int32_t> out(64);
  const auto echo = [&](bool flag) {
    return fault_of([&, flag] {
      TPipe pipe;
      write_own(out.tensor(), 0, 3);
      if (flag) wait_for<HardEvent::MTE3_MTE2>();
      read_block(out.tensor(), 0);
    });
  };
  CHECK(echo(true) == "");
  CHECK(says(echo(false), "with nothing between them that makes pipe MTE2 wait"));
}

TEST_CASE("twin: a barrier or a flag that not all reach ends the launch at once, with who waits for what") {
  const std::string barrier = fault_of(twin::Kind::aiv, 4, [] {
    if (GetBlockIdx() != 2) SyncAll();
  });
  CHECK(says(barrier, "no core can go on (1 of 4 have ended)"));
  CHECK(says(barrier, "AIV 0 waits for SyncAll at test_twin_sync.cpp:"));
  CHECK(says(barrier, "which needs all 4 of its cores"));
  const std::string flag = fault_of(twin::Kind::mix, 2, [] {
    if (ASCEND_IS_AIC) CrossCoreWaitFlag(3);
  });
  CHECK(says(flag, "AIC 1 waits for flag 3 at"));
  CHECK(says(fault_of(twin::Kind::mix, 1, [] { SyncAll(); }), "a cube core in SyncAll<true>"));
}

TEST_CASE("twin: flags between the cores of a group carry order in both directions") {
  // AIV -> AIC needs both vector cores; AIC -> AIV reaches both. The cube core reads and writes through L1 and the scalar unit.
  Array<int32_t> halves(16 * 24), whole(16 * 24);
  const auto exchange = [&](int groups, bool first_flag, bool second_flag) {
    return fault_of(twin::Kind::mix, static_cast<uint32_t>(groups), [&, first_flag, second_flag] {
      TPipe pipe;
      const int group = ASCEND_IS_AIC ? static_cast<int>(GetBlockIdx()) : static_cast<int>(GetBlockIdx()) / 2;
      if (ASCEND_IS_AIV) {
        write_own(halves.tensor(), static_cast<int>(GetBlockIdx()), static_cast<int32_t>(10 + GetBlockIdx()));
        CrossCoreSetFlag<2, PIPE_MTE3>(0);
        if (second_flag) CrossCoreWaitFlag(1);
        const int32_t sum = read_block(whole.tensor(), 2 * group);
        if (second_flag) CHECK(sum == 21 + 4 * group);
        if (!second_flag) CrossCoreWaitFlag(1);
      } else {
        if (first_flag) CrossCoreWaitFlag(0);
        const GlobalTensor<int32_t> in = halves.tensor(), out = whole.tensor();
        const auto at = static_cast<uint64_t>(16 * group);
        const int32_t sum = in.GetValue(at) + in.GetValue(at + 8);
        if (!first_flag) CrossCoreWaitFlag(0);
        out.SetValue(at, sum);
        DataCacheCleanAndInvalid<int32_t, CacheLine::SINGLE_CACHE_LINE>(out[at]);
        CrossCoreSetFlag<2, PIPE_S>(1);
      }
    });
  };
  for (const int groups : {1, 5, 24}) CHECK(exchange(groups, true, true) == "");
  CHECK(says(exchange(2, false, true), "global memory that"));
  twin::schedule(5);
  CHECK(exchange(20, true, true) == "");
  twin::schedule(0);
  std::fill(whole.values.begin(), whole.values.end(), 0);
  CHECK(says(exchange(2, true, false), "global memory that"));
}

TEST_CASE("twin: a flag tells of its own pipe only, and of as many waits as sets") {
  Array<int32_t> out(32);
  CHECK(says(fault_of(twin::Kind::mix, 1,
                      [&] {
                        TPipe pipe;
                        if (ASCEND_IS_AIV) {
                          if (GetSubBlockIdx() == 0) write_own(out.tensor(), 0, 1);
                          CrossCoreSetFlag<2, PIPE_V>(0);  // the copy is MTE3's
                        } else {
                          CrossCoreWaitFlag(0);
                          out.tensor().GetValue(0);
                        }
                      }),
             "GlobalTensor::GetValue: reads global memory that DataCopy"));
  CHECK(says(fault_of(twin::Kind::mix, 1,
                      [] {
                        if (ASCEND_IS_AIC) CrossCoreSetFlag<2, PIPE_FIX>(4);
                      }),
             "cross-core flag 4 was set more often than it was waited for"));
  CHECK(says(fault_of(twin::Kind::mix, 1,
                      [] {
                        if (ASCEND_IS_AIC)
                          for (int i = 0; i < 16; ++i) CrossCoreSetFlag<2, PIPE_FIX>(4);
                      }),
             "more than 15 times"));
  CHECK(says(fault_of(twin::Kind::mix, 1, [] { CrossCoreSetFlag<2, PIPE_FIX>(11); }), "flag 11 of 0 to 10"));
}

TEST_CASE("twin: mode 0 is a barrier of all cores of a kind, mode 1 of a group's two") {
  Array<int32_t> out(8 * 48);
  CHECK(fault_of(twin::Kind::mix, 4, [&] {
          TPipe pipe;
          if (ASCEND_IS_AIC) return;
          const int own = static_cast<int>(GetBlockIdx());
          write_own(out.tensor(), own, own);
          CrossCoreSetFlag<0, PIPE_MTE3>(2);
          CrossCoreWaitFlag(2);
          const int32_t read = read_block(out.tensor(), (own + 3) % 8);
          CHECK(read == (own + 3) % 8);
        }) == "");
  const auto pair = [&](int distance) {
    return fault_of(twin::Kind::mix, 4, [&, distance] {
      TPipe pipe;
      if (ASCEND_IS_AIC) return;
      const int own = static_cast<int>(GetBlockIdx());
      write_own(out.tensor(), own, own);
      CrossCoreSetFlag<1, PIPE_MTE3>(2);
      CrossCoreWaitFlag(2);
      read_block(out.tensor(), own ^ distance);
    });
  };
  CHECK(pair(1) == "");
  CHECK(says(pair(2), "global memory that"));
}

TEST_CASE("twin: a fault on one core ends them all, and the next launch starts afresh") {
  for (int i = 0; i < 3; ++i) {
    CHECK(says(fault_of(twin::Kind::mix, 24,
                        [] {
                          if (GetBlockIdx() == 7 && ASCEND_IS_AIV) WaitFlag<HardEvent::V_S>(0);
                          SyncAll<false>();
                        }),
               "AIV 7: WaitFlag"));
    CHECK(fault_of(twin::Kind::mix, 24, [] { SyncAll<false>(); }) == "");
  }
  CHECK_THROWS_AS(twin::launch(twin::Kind::aiv, 3, [] { throw std::bad_alloc(); }), std::bad_alloc);
}
