// Kernels with a mistake planted in each, which the twin must catch, beside the same kernels without it.
#include "twin_testing.h"

using namespace AscendC;
using namespace twin_testing;

namespace {

constexpr int kN = 256;

// y = 2 x + 1 with every step there is to leave out.
struct Steps {
  bool v_barrier = true, enque = true, deque_last = true, free_in = true, free_out = true;
  int copied = kN, computed = kN, written = kN;
  int buffer = kN;
};

std::string run(const Steps& s, std::vector<float>* result = nullptr) {
  Array<float> x(kN, 3.0f), y(kN);
  const std::string fault = fault_of([&] {
    TPipe pipe;
    TQue<TPosition::VECIN, 1> in;
    TQue<TPosition::VECOUT, 1> out;
    pipe.InitBuffer(in, 1, s.buffer * sizeof(float));
    pipe.InitBuffer(out, 1, kN * sizeof(float));
    LocalTensor<float> a = in.AllocTensor<float>();
    DataCopy(a, x.tensor(), s.copied);
    if (s.enque) {
      in.EnQue(a);
      a = in.DeQue<float>();
    }
    LocalTensor<float> b = out.AllocTensor<float>();
    Muls(b, a, 2.0f, s.computed);
    if (s.v_barrier) PipeBarrier<PIPE_V>();
    Adds(b, b, 1.0f, s.computed);
    if (s.free_in) in.FreeTensor(a);
    out.EnQue(b);
    if (s.deque_last) b = out.DeQue<float>();
    DataCopy(y.tensor(), b, s.written);
    if (s.free_out) out.FreeTensor(b);
  });
  if (result) *result = y.values;
  return fault;
}

Steps with(void (*change)(Steps&)) {
  Steps steps;
  change(steps);
  return steps;
}

// One tensor of UB for vector instructions.
std::string in_ub(const std::function<void(LocalTensor<float>)>& body) {
  return fault_of([&] {
    TPipe pipe;
    TBuf<> buf;
    pipe.InitBuffer(buf, 4 * kN * sizeof(float));
    body(buf.Get<float>());
  });
}

}  // namespace

TEST_CASE("twin: a kernel without a mistake runs, and computes") {
  std::vector<float> y;
  CHECK(run({}, &y) == "");
  CHECK(y == std::vector<float>(kN, 7.0f));
}

TEST_CASE("twin: a dropped barrier between two vector instructions") {
  const std::string fault = run(with([](Steps& s) { s.v_barrier = false; }));
  CHECK(says(fault, "test_twin_faults.cpp:"));
  CHECK(says(fault, "AIV 0: Adds: reads local memory that Muls at"));
  CHECK(says(fault, "nothing between them that makes pipe V wait"));
}

TEST_CASE("twin: what queues carry: EnQue and DeQue left out, out of order, FreeTensor forgotten") {
  CHECK(says(run(with([](Steps& s) { s.enque = false; })), "Muls: reads local memory that DataCopy"));
  CHECK(says(run(with([](Steps& s) { s.deque_last = false; })), "DataCopy: a local tensor used while it is in its queue"));
  CHECK(says(run(with([](Steps& s) { s.free_in = false; })), "the kernel ended with this tensor never given to FreeTensor"));
  CHECK(says(run(with([](Steps& s) { s.free_out = false; })), "never given to FreeTensor"));
  const auto queue = [](const std::function<void(TQue<TPosition::VECIN, 1>&)>& body, int buffers = 2) {
    return fault_of([&] {
      TPipe pipe;
      TQue<TPosition::VECIN, 1> in;
      pipe.InitBuffer(in, static_cast<uint8_t>(buffers), 64);
      body(in);
    });
  };
  CHECK(says(queue([](auto& in) { in.template DeQue<float>(); }), "DeQue: nothing was enqueued"));
  CHECK(says(queue([](auto& in) {
               auto a = in.template AllocTensor<float>(), b = in.template AllocTensor<float>();
               in.EnQue(a);
               in.EnQue(b);
             }),
             "EnQue: the queue holds 1 tensors already"));
  CHECK(says(queue([](auto& in) { (void)in.template AllocTensor<float>(), (void)in.template AllocTensor<float>(); }, 1),
             "every buffer of the queue is in use"));
  CHECK(says(queue([](auto& in) {
               auto a = in.template AllocTensor<float>();
               in.FreeTensor(a);
               in.FreeTensor(a);
             }),
             "freed already"));
  CHECK(says(queue([](auto& in) {
               auto a = in.template AllocTensor<float>();
               in.FreeTensor(a);
               Duplicate(a, 0.0f, 8);
             }),
             "a local tensor used after FreeTensor"));
  CHECK(says(queue([](auto& in) {
               TQue<TPosition::VECIN, 1> other;
               GetTPipePtr()->InitBuffer(other, 1, 64);
               auto a = in.template AllocTensor<float>();
               other.EnQue(a);
             }),
             "a tensor of another queue"));
}

TEST_CASE("twin: memory overrun: of a tensor, of UB, of an allocation in GM, of what SetGlobalBuffer was given") {
  CHECK(says(run(with([](Steps& s) { s.buffer = kN - 8; })), "DataCopy: bytes [0, 1024) of a local tensor that has 992"));
  CHECK(says(run(with([](Steps& s) { s.computed = kN + 8, s.copied = kN; })), "Muls: bytes [0, 1056)"));
  CHECK(says(fault_of([] {
               TPipe pipe;
               TBuf<> a, b;
               pipe.InitBuffer(a, 128 << 10);
               pipe.InitBuffer(b, 64 << 10);
             }),
             "InitBuffer: 65536 bytes of UB"));
  Array<float> x(100);
  for (const bool sized : {true, false})
    CHECK(says(fault_of([&] {
                 TPipe pipe;
                 TBuf<TPosition::VECIN> buf;
                 pipe.InitBuffer(buf, 1024);
                 GlobalTensor<float> from;
                 from.SetGlobalBuffer(x.values.data(), sized ? 100 : 0);
                 DataCopy(buf.Get<float>(), from, 104);
               }),
               sized ? "global memory past the 100 elements" : "16 bytes past the end of an allocation of 400"));
  CHECK(says(fault_of([&] {
               TPipe pipe;
               GlobalTensor<float> from;
               from.SetGlobalBuffer(x.values.data() - 1000000);
               from.GetValue(0);
             }),
             "outside every allocation"));
}

TEST_CASE("twin: too many buffers, and event ids that run out") {
  CHECK(says(fault_of([] {
               TPipe pipe;
               TQue<TPosition::VECIN, 1> a, b;
               pipe.InitBuffer(a, 5, 64);
               pipe.InitBuffer(b, 4, 64);
             }),
             "9 buffers in the queues of one position"));
  CHECK(says(fault_of([] {
               TPipe pipe;
               for (int i = 0; i < 9; ++i) pipe.AllocEventID<HardEvent::V_S>();
             }),
             "all 8 event ids"));
}

TEST_CASE("twin: uninitialised local memory, whole or in part") {
  CHECK(says(run(with([](Steps& s) { s.copied = kN - 8; })),
             "Muls: reads byte 992 of a local tensor, which nothing has written"));
  CHECK(says(run(with([](Steps& s) { s.computed = kN - 1; })), "DataCopy: reads byte 1020 of a local tensor"));
  CHECK(says(in_ub([](auto t) { Add(t, t[kN], t[kN], 64); }), "reads byte 0 of a local tensor"));
  // Memory of a queue is as good as new every time it is handed out.
  Array<float> x(kN);
  CHECK(says(fault_of([&] {
               TPipe pipe;
               TQue<TPosition::VECIN, 1> in;
               pipe.InitBuffer(in, 1, kN * 4);
               LocalTensor<float> a = in.AllocTensor<float>();
               DataCopy(a, x.tensor(), kN);
               in.EnQue(a);
               a = in.DeQue<float>();
               in.FreeTensor(a);
               a = in.AllocTensor<float>();
               in.EnQue(a);
               a = in.DeQue<float>();
               Abs(a, a, 8);
             }),
             "which nothing has written"));
}

TEST_CASE("twin: misaligned copies and operands, lengths that are not whole blocks") {
  Array<float> x(64);
  const auto copy = [&](int offset, int n) {
    return fault_of([&] {
      TPipe pipe;
      TBuf<TPosition::VECIN> buf;
      pipe.InitBuffer(buf, 256);
      DataCopy(buf.Get<float>()[offset], x.tensor(), n);
    });
  };
  CHECK(copy(8, 8) == "");
  CHECK(says(copy(4, 8), "DataCopy: an operand at byte 16 of UB, which is not a multiple of 32"));
  CHECK(says(copy(0, 7), "28 bytes, which is not a multiple of 32"));
  CHECK(says(in_ub([](auto t) { Duplicate(t[3], 0.0f, 8); }), "which is not a multiple of 32"));
  CHECK(says(in_ub([](auto t) {
               Duplicate(t, 0.0f, kN);
               PipeBarrier<PIPE_V>();
               Adds(t[8], t, 1.0f, 16);
             }),
             "source and destination overlap in part"));
}

TEST_CASE("twin: conversions that an A2 does not have") {
  const auto cast = [](auto to, auto from, RoundMode mode) {
    return in_ub([mode](auto t) {
      Duplicate(t, 0.0f, kN);
      PipeBarrier<PIPE_V>();
      Cast(t[kN].template ReinterpretCast<decltype(to)>(), t.template ReinterpretCast<decltype(from)>(), mode, 32);
    });
  };
  CHECK(cast(int32_t{}, float{}, RoundMode::CAST_RINT) == "");
  CHECK(says(cast(int8_t{}, float{}, RoundMode::CAST_RINT), "Cast: no such conversion on an A2"));
  CHECK(says(cast(half{}, bfloat16_t{}, RoundMode::CAST_NONE), "no such conversion"));
  CHECK(says(cast(bfloat16_t{}, half{}, RoundMode::CAST_NONE), "no such conversion"));
  CHECK(says(cast(int32_t{}, float{}, RoundMode::CAST_NONE), "this conversion has no such round mode"));
  CHECK(says(cast(bfloat16_t{}, float{}, RoundMode::CAST_ODD), "no such round mode"));
  CHECK(cast(int8_t{}, half{}, RoundMode::CAST_TRUNC) == "");
}

namespace {
template <typename T, typename = void>
struct CanMultiply : std::false_type {};
template <typename T>
struct CanMultiply<T, std::void_t<decltype(Mul(LocalTensor<T>(), LocalTensor<T>(), LocalTensor<T>(), 8))>> : std::true_type {};
}  // namespace

TEST_CASE("twin: arithmetic on types that the vector unit has none for does not compile") {
  CHECK(CanMultiply<float>::value);
  CHECK(CanMultiply<half>::value);
  CHECK(CanMultiply<int32_t>::value);
  CHECK(!CanMultiply<bfloat16_t>::value);
  CHECK(!CanMultiply<int8_t>::value);
  CHECK(!CanMultiply<int64_t>::value);
}

TEST_CASE("twin: scalar access without a flag, and flags themselves") {
  CHECK(says(in_ub([](auto t) {
               Duplicate(t, 1.0f, 8);
               t.GetValue(0);
             }),
             "LocalTensor::GetValue: reads local memory that Duplicate"));
  CHECK(in_ub([](auto t) {
          Duplicate(t, 1.0f, 8);
          wait_for<HardEvent::V_S>();
          t.SetValue(1, t.GetValue(0));
          wait_for<HardEvent::S_V>();
          Abs(t, t, 8);
        }) == "");
  CHECK(says(in_ub([](auto t) {
               Duplicate(t, 1.0f, 8);
               wait_for<HardEvent::V_S>();
               t.SetValue(1, 2.0f);
               Abs(t, t, 8);
             }),
             "Abs: reads local memory that LocalTensor::SetValue"));
  CHECK(says(in_ub([](auto) { WaitFlag<HardEvent::V_S>(0); }), "nothing set this flag"));
  CHECK(says(in_ub([](auto) { SetFlag<HardEvent::V_S>(0); }), "V_S set and never waited for"));
  CHECK(says(in_ub([](auto) {
               SetFlag<HardEvent::V_S>(3);
               SetFlag<HardEvent::V_S>(3);
             }),
             "set already"));
  CHECK(says(in_ub([](auto) { SetFlag<HardEvent::V_S>(8); }), "event id 8 of 0 to 7"));
  // A flag of the wrong pipes orders nothing.
  CHECK(says(in_ub([](auto t) {
               Duplicate(t, 1.0f, 8);
               wait_for<HardEvent::MTE2_S>();
               t.GetValue(0);
             }),
             "reads local memory"));
}

TEST_CASE("twin: masks, repeats and strides out of range") {
  const auto filled = [](const std::function<void(LocalTensor<float>)>& body) {
    return in_ub([&](auto t) {
      Duplicate(t, 1.0f, 4 * kN);
      PipeBarrier<PIPE_V>();
      body(t);
    });
  };
  CHECK(filled([](auto t) { Add(t, t, t, uint64_t{64}, 16, BinaryRepeatParams()); }) == "");
  CHECK(says(filled([](auto t) { Add(t, t, t, uint64_t{64}, 17, BinaryRepeatParams()); }), "of a local tensor that has 4096"));
  CHECK(says(filled([](auto t) { Add(t, t, t, uint64_t{65}, 1, BinaryRepeatParams()); }), "beyond the 64 lanes"));
  CHECK(says(filled([](auto t) { Add(t, t, t, uint64_t{0}, 1, BinaryRepeatParams()); }), "an empty mask"));
  CHECK(says(filled([](auto t) { Add(t, t, t, uint64_t{64}, 1, BinaryRepeatParams(0, 1, 1, 8, 8, 8)); }),
             "a destination block stride of 0"));
  CHECK(says(filled([](auto t) { CompareScalar(t[kN].template ReinterpretCast<uint8_t>(), t, 0.0f, CMPMODE::GT, 65); }),
             "whole repeats of 256 bytes"));
}

TEST_CASE("twin: the caches of scalar access to GM") {
  Array<int32_t> x(64, 5);
  // What a core writes by its scalar unit must be cleaned before it ends, or before others touch the line.
  CHECK(says(fault_of([&] {
               TPipe pipe;
               x.tensor().SetValue(0, 1);
             }),
             "still in the cache"));
  CHECK(fault_of([&] {
          TPipe pipe;
          x.tensor().SetValue(0, 1);
          DataCacheCleanAndInvalid<int32_t, CacheLine::SINGLE_CACHE_LINE>(x.tensor());
        }) == "");
  CHECK(says(fault_of(twin::Kind::aiv, 2,
                      [&] {
                        TPipe pipe;
                        x.tensor().SetValue(static_cast<uint64_t>(GetBlockIdx()), 1);  // one line, two cores
                        SyncAll();
                      }),
             "another core's scalar unit is writing too"));
  // A line that was read before another core wrote it is stale.
  const auto reread = [&](bool invalidate) {
    return fault_of(twin::Kind::aiv, 2, [&, invalidate] {
      TPipe pipe;
      TBuf<TPosition::VECOUT> buf;
      pipe.InitBuffer(buf, 32);
      if (GetBlockIdx() == 0) (void)x.tensor().GetValue(0);
      SyncAll();
      if (GetBlockIdx() == 1) {
        Duplicate(buf.Get<int32_t>(), 9, 8);
        wait_for<HardEvent::V_MTE3>();
        DataCopy(x.tensor(), buf.Get<int32_t>(), 8);
      }
      SyncAll();
      if (GetBlockIdx() == 0) {
        if (invalidate) DataCacheCleanAndInvalid<int32_t, CacheLine::ENTIRE_DATA_CACHE>(x.tensor());
        const int32_t now = x.tensor().GetValue(0);
        CHECK(now == 9);
      }
    });
  };
  CHECK(reread(true) == "");
  CHECK(says(reread(false), "reads a stale cache line"));
}

TEST_CASE("twin: with checks off the same kernels compute the same, and nothing is looked for") {
  twin::checks(false);
  std::vector<float> y;
  CHECK(run({}, &y) == "");
  CHECK(y == std::vector<float>(kN, 7.0f));
  CHECK(run(with([](Steps& s) { s.v_barrier = false; })) == "");
  twin::checks(true);
}
