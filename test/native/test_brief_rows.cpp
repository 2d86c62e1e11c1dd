// The CUDA backend's list of rows in BF16, without a GPU: who is on it, and which recorded steps fit it.
#include "cuda/brief_rows.h"
#include "doctest/doctest.h"

using sigmoe::cuda::BriefList;
using sigmoe::cuda::BriefRows;

namespace {

constexpr size_t kRows = 8;

struct Lists {
  float x[kRows]{}, y[kRows]{}, z[kRows]{};
  BriefList list;

  void linear(float* out, float factor = 1.0f) {  // as the backend's op of many rows
    write(out);
    list.leave({out, kRows, factor});
  }
  void write(float* out) {
    list.forget(out);
    list.take(out);
  }
  template <typename Ops>
  BriefList::Recording record(Ops ops) {
    list.begin_recording();
    ops();
    return list.end_recording();
  }
};

}  // namespace

TEST_CASE("brief rows: found by where they begin, taken by any address of theirs, gone with their memory") {
  Lists on;
  on.linear(on.x, 0.5f);
  on.linear(on.y);
  CHECK(on.list.begins(on.x));
  CHECK_FALSE(on.list.begins(on.x + 1));
  CHECK(on.list.take(on.z).data == nullptr);
  CHECK(on.list.take(on.x + kRows - 1) == BriefRows{on.x, kRows, 0.5f});
  CHECK_FALSE(on.list.begins(on.x));
  CHECK(on.list.begins(on.y));
  on.list.forget_all(on.y, sizeof on.y);
  CHECK_FALSE(on.list.begins(on.y));
}

TEST_CASE("brief rows: recording leaves the list as it was, a replay as the ops do") {
  Lists on;
  on.linear(on.x);
  on.linear(on.z);
  const auto step = on.record([&] {
    on.linear(on.y);
    on.write(on.x);
  });
  CHECK(on.list.begins(on.x));
  CHECK_FALSE(on.list.begins(on.y));
  CHECK(on.list.replay(step));
  CHECK_FALSE(on.list.begins(on.x));
  CHECK(on.list.begins(on.y));

  // Rows that the step has nothing to do with stay what they are since: z was BF16 when it was recorded.
  on.write(on.z);
  CHECK(on.list.replay(step));
  CHECK_FALSE(on.list.begins(on.z));
  on.linear(on.z, 2.0f);
  on.linear(on.x);
  CHECK(on.list.replay(step));
  CHECK(on.list.take(on.z) == BriefRows{on.z, kRows, 2.0f});
  CHECK_FALSE(on.list.begins(on.x));
}

TEST_CASE("brief rows: a step recorded beside rows whose memory is freed since does not bring them back") {
  Lists on;
  on.linear(on.x);
  const auto step = on.record([&] { on.linear(on.y); });
  on.list.forget_all(on.x, sizeof on.x);
  CHECK(on.list.replay(step));
  CHECK_FALSE(on.list.begins(on.x));
  CHECK(on.list.begins(on.y));
}

TEST_CASE("brief rows: a step whose kernels read BF16 does not fit floats, nor the other way round") {
  Lists on;
  const auto of_floats = on.record([&] { on.list.take(on.x + 3); });
  const auto reads_floats = on.record([&] { on.list.begins(on.x); });
  on.linear(on.x);
  const auto of_brief = on.record([&] { on.list.take(on.x + 3); });
  const auto reads_brief = on.record([&] { on.list.begins(on.x); });
  CHECK_FALSE(on.list.replay(of_floats));
  CHECK_FALSE(on.list.replay(reads_floats));
  CHECK(on.list.replay(reads_brief));
  CHECK(on.list.begins(on.x));
  CHECK(on.list.replay(of_brief));  // whose kernels make floats of them
  CHECK_FALSE(on.list.begins(on.x));
  CHECK_FALSE(on.list.replay(reads_brief));
  CHECK_FALSE(on.list.replay(of_brief));
  CHECK(on.list.replay(of_floats));
  CHECK(on.list.replay(reads_floats));
  on.linear(on.x, 0.5f);
  CHECK_FALSE(on.list.replay(of_brief));  // they would be divided by another factor
  CHECK(on.list.begins(on.x));            // and are left alone

  // What a step writes before it reads it may have been anything.
  on.list.take(on.x);
  const auto writes_first = on.record([&] {
    on.linear(on.x);
    on.list.begins(on.x);
  });
  on.linear(on.x, 2.0f);
  CHECK(on.list.replay(writes_first));
  CHECK(on.list.take(on.x) == BriefRows{on.x, kRows, 1.0f});
}
