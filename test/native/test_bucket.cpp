// The sizes recorded steps come in, what padding adds to a step, and published acceptance replayed.
#include <algorithm>

#include "doctest/doctest.h"
#include "engine/bench/acceptance.h"
#include "engine/forward/bucket.h"

using namespace sigmoe;

namespace {

// Sequences of these many rows at their own positions and pages; a row's token is its number, its draft (behind the first row
// of a chain) lies on the device.
StepInputs step_of(const std::vector<int>& lengths) {
  StepInputs in;
  in.max_pages = 2;
  in.seq_offsets = {0};
  for (size_t b = 0; b < lengths.size(); ++b) {
    for (int i = 0; i < lengths[b]; ++i) {
      const int32_t row = in.n_tokens();
      if (i > 0) in.drafted.push_back({100 + row, DraftedValue::Use::token, row});
      if (i > 0) in.drafted.push_back({100 + row, DraftedValue::Use::if_previous, row});
      in.token_ids.push_back(row);
      in.positions.push_back(static_cast<int32_t>(50 * b) + i);
      in.feature_rows.push_back(1000 + row);
      in.sample_row_ids.push_back(row);
      SampleRow sample;
      sample.slot = static_cast<int32_t>(b);
      in.sample_rows.push_back(sample);
    }
    in.seq_offsets.push_back(in.n_tokens());
    in.page_tables.insert(in.page_tables.end(), {static_cast<int32_t>(2 * b), static_cast<int32_t>(2 * b + 1)});
  }
  return in;
}

}  // namespace

TEST_CASE("bucket: sizes are few, hold what they are for, and are their own") {
  for (int n = 1; n <= 4096; ++n) {
    const int fine = bucket_of(n), coarse = coarse_bucket_of(n);
    REQUIRE(fine >= n);
    REQUIRE(fine <= std::max(8, n + n / 4));
    REQUIRE(coarse >= n);
    REQUIRE(coarse <= std::max(2, n + n / 2));
    REQUIRE(bucket_of(fine) == fine);
    REQUIRE(coarse_bucket_of(coarse) == coarse);
  }
}

TEST_CASE("bucket: padding repeats the end of a sequence and leaves the rest as it was") {
  for (const std::vector<int>& lengths :
       {std::vector<int>{1}, std::vector<int>(9, 1), std::vector<int>{4, 4, 4}, std::vector<int>{1, 3, 1, 1, 4, 2, 1, 1, 1},
        std::vector<int>(33, 5), std::vector<int>{2, 1, 1, 1, 1, 1, 1, 1}}) {
    const StepInputs before = step_of(lengths);
    StepInputs after = before;
    REQUIRE(samples_every_row(after));
    pad_to_bucket(after, 4096);
    const int n = before.n_tokens(), n_padded = bucket_of(n);
    REQUIRE(after.n_tokens() == n_padded);
    if (n == before.n_seqs())
      CHECK(after.n_seqs() == n_padded);
    else
      CHECK(after.n_seqs() < n_padded);
    CHECK(samples_every_row(after));
    CHECK(after.page_tables.size() == static_cast<size_t>(after.n_seqs()) * after.max_pages);
    CHECK(after.feature_rows.size() == static_cast<size_t>(n_padded));
    CHECK(std::equal(before.token_ids.begin(), before.token_ids.end(), after.token_ids.begin()));
    CHECK(std::equal(before.seq_offsets.begin(), before.seq_offsets.end(), after.seq_offsets.begin()));
    for (int b = 0; b < after.n_seqs(); ++b) {
      const int begin = after.seq_offsets[b], end = after.seq_offsets[b + 1];
      if (begin == end || begin < n) continue;
      for (int row = begin; row < end; ++row) {
        const int32_t original = after.token_ids[row];  // the row's own number
        CHECK(after.sample_rows[row].slot == -1);
        CHECK(after.sample_rows[row].if_previous == -1);
        CHECK(after.positions[row] == before.positions[original]);
        CHECK(after.feature_rows[row] == before.feature_rows[original]);
        const auto draft_of = [&](int at) {
          for (const DraftedValue& value : after.drafted)
            if (value.use == DraftedValue::Use::token && value.at == at) return value.chain_index;
          return -1;
        };
        CHECK(draft_of(row) == draft_of(original));
        const auto owner = std::upper_bound(before.seq_offsets.begin(), before.seq_offsets.end(), original) - 1;
        if (row == end - 1) CHECK(original == *(owner + 1) - 1);  // the store of K and V runs to the sequence's end
        CHECK(after.page_tables[2 * b] == 2 * (owner - before.seq_offsets.begin()));
      }
    }
  }
  StepInputs full = step_of(std::vector<int>(9, 1));
  pad_to_bucket(full, 9);
  CHECK(full.n_tokens() == 9);
  StepInputs prompt = step_of({17});
  CHECK_FALSE(samples_every_row(prompt));
  StepInputs partly = step_of({4});
  partly.sample_row_ids = {3};
  CHECK_FALSE(samples_every_row(partly));
}

TEST_CASE("bench speculation: draws follow the histogram or the mean, and are the same when asked again") {
  using bench::Acceptance;
  for (const char* text : {"3.1", "3.4", "1", "4", "0.25,0.5,0,0.25"}) {
    CAPTURE(text);
    const Acceptance acceptance(text, 3);
    std::vector<double> counts(4);
    constexpr int kDraws = 100'000;
    double mean = 0;
    for (int i = 0; i < kDraws; ++i) {
      const int64_t accepted = acceptance.draw(i % 64, i / 64, 3);
      REQUIRE(accepted >= 0);
      REQUIRE(accepted <= 3);
      CHECK(acceptance.draw(i % 64, i / 64, 3) == accepted);
      CHECK(acceptance.draw(i % 64, i / 64, 1) == std::min<int64_t>(accepted, 1));
      ++counts[accepted];
      mean += 1.0 + accepted;
    }
    CHECK(mean / kDraws == doctest::Approx(acceptance.mean_tokens()).epsilon(0.01));
    for (int i = 0; i < 4; ++i) CHECK(std::abs(counts[i] / kDraws - acceptance.shares()[i]) < 0.01);
  }
  CHECK(Acceptance("3.1", 3).mean_tokens() == doctest::Approx(3.1));
  for (const char* wrong :
       {"", "0.5", "4.2", "nan", "1e999", "-1", "3.1x", "1,2", "0,0,0,0", "1,,1,1", "0.1,0.2,0.3,0.4,0.5"}) {
    CAPTURE(wrong);
    CHECK_THROWS_AS(Acceptance(wrong, 3), EngineError);
  }
}
