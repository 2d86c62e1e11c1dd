// Whole layers of one to four rows on CUDA against the ops, to the bit, at the model's shapes: every kernel that does several
// ops at once has the bits of the ops, which test_cuda_ops.cpp checks against the reference. Without a Hopper GPU the cases
// print why and pass.
#include "cuda_layer.h"

using namespace sigmoe;
using namespace sigmoe::testing;

namespace {

struct Case {
  std::vector<int> lengths;   // of each row's sequence, its own token included
  bool one_sequence = false;  // the rows follow each other in one sequence: the first length counts
  Gate gate = Gate::random;
  WeightFormat format = WeightFormat::fp8;
  bool same_rows = false;  // every row chooses the same experts
};

MoeRows rows_of(const Case& c) {
  MoeRows rows(c.lengths, c.one_sequence, 1, kActive + 1, 29);
  rows.flat_bias = c.gate != Gate::random;
  std::mt19937_64 random(5);
  std::shuffle(rows.pages.begin(), rows.pages.end(), random);
  if (c.same_rows)
    for (int t = 1; t < rows.n_tokens; ++t) {
      std::copy_n(rows.residual.begin(), kWidth, rows.residual.begin() + t * kWidth);
      std::copy_n(rows.partial.begin(), kWidth, rows.partial.begin() + t * kWidth);
    }
  return rows;
}

const std::vector<bool> kByOps(3, false), kAtOnce(3, true);  // of each layer

}  // namespace

TEST_CASE("cuda few rows: a layer at once has the bits of the ops, called, recorded and replayed") {
  const auto backend = hopper("cuda few rows");
  if (!backend) return;
  const std::vector<Case> cases = {{{1}},
                                   {{2}},
                                   {{16}},
                                   {{17}},
                                   {{128}},
                                   {{129}},
                                   {{1000}},
                                   {{1025}},
                                   {{2100}},
                                   {{5000}},
                                   {{8060}},
                                   {{8300}},
                                   {{700}, false, Gate::pairs_alike},
                                   {{700}, false, Gate::all_alike},
                                   {{1000, 17}},
                                   {{1, 1025, 300}},
                                   {{1000, 1, 64, 2049}},
                                   {{3200, 2049, 7}},
                                   {{40, 40, 40}, false, Gate::random, WeightFormat::fp8, true},
                                   {{500, 0, 0}, true},
                                   {{1000}, false, Gate::random, WeightFormat::bf16},
                                   {{90, 1000}, false, Gate::random, WeightFormat::bf16}};
  uint64_t key = 1;
  for (const WeightFormat format : {WeightFormat::fp8, WeightFormat::bf16})
    for (const Gate gate : {Gate::random, Gate::pairs_alike, Gate::all_alike}) {
      std::unique_ptr<MoeWeights> weights;
      for (const Case& c : cases) {
        if (c.format != format || c.gate != gate) continue;
        if (!weights) weights = std::make_unique<MoeWeights>(*backend, format, gate);
        CAPTURE(c.lengths.size());
        CAPTURE(c.lengths[0]);
        CAPTURE(static_cast<int>(gate));
        CAPTURE(weight_format_name(format));
        MoeLayers layers(*backend, *weights, rows_of(c));
        const MoeResult expected = layers.run(kByOps, 0);
        for (const uint64_t recorded : {uint64_t{0}, key++}) {
          CAPTURE(recorded);
          const MoeResult found = layers.run(kAtOnce, recorded, recorded ? 3 : 1);
          CHECK(found.at_once);
          CHECK(std::isfinite(found.residual[0]));
          CHECK(found.residual == expected.residual);
          CHECK(found.k == expected.k);
          CHECK(found.v == expected.v);
        }
      }
    }
}

// A difference in the last bit of a float32 shows in one key of 100,000 that is stored in BF16: many rows find it.
TEST_CASE("cuda few rows: of many rows every key and every attended value has the bits of the ops") {
  const auto backend = hopper("cuda few rows");
  if (!backend) return;
  for (const Case& c : std::vector<Case>{{{1024}}, {{60}}, {{17, 300}}, {{2100}}, {{3200, 2049}}}) {
    const MoeWeights weights(*backend, c.format, Gate::all_alike);
    MoeLayers layers(*backend, weights, rows_of(c));
    CAPTURE(c.lengths[0]);
    layers.fill_cache(*backend->bench_device());
    int n_keys_differ = 0, n_values_differ = 0;
    for (uint64_t seed = 1000; seed < (small_run() ? 1003 : 1300); ++seed) {
      const auto expected = layers.attend(false, seed), found = layers.attend(true, seed);
      n_keys_differ += found.first != expected.first;
      n_values_differ += found.second != expected.second;
    }
    CHECK(n_keys_differ == 0);
    CHECK(n_values_differ == 0);
  }
}
