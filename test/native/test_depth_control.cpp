// Depth control as a simulation: sequences whose drafts come true with a known chance, a machine whose steps cost a known time.
#include <algorithm>
#include <random>
#include <utility>

#include "doctest/doctest.h"
#include "engine/speculation/depth_control.h"

using namespace sigmoe;

namespace {

// What a run of tokens costs on a machine where a step of n rows takes fixed + n * row milliseconds, and a pass `pass`.
struct Machine {
  double fixed, row, pass;
  double step(int n_rows) const { return fixed + row * n_rows; }
};

// Speed against plain decoding over `n_steps` steps of `batch` sequences whose drafts come true with chance(step). As the
// engine does, it chooses nothing while the last choice holds.
template <typename Chance>
double speed_up(DepthControl& control, const Machine& machine, int batch, int n_steps, Chance chance, uint32_t seed = 1) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<double> uniform;
  std::vector<DraftRecord> records(batch, control.begin());
  std::vector<int> depths(batch, 0);
  double ms = 0, tokens = 0;
  int rest = 0, n_since_choice = 0;
  for (int step = 0; step < n_steps; ++step) {
    int n_rows = batch;
    for (int b = 0; b < batch; ++b) {
      n_rows += depths[b];
      int n_accepted = 0;
      while (n_accepted < depths[b] && uniform(random) < chance(step)) ++n_accepted;
      tokens += 1 + n_accepted;
      control.observe_drafts(records[b], depths[b], n_accepted);
    }
    const double noise = 0.9 + 0.2 * uniform(random);
    control.observe_step(n_rows, machine.step(n_rows) * noise);
    ms += machine.step(n_rows);
    ++n_since_choice;
    if (rest-- > 0) continue;
    std::vector<DraftCandidate> candidates;
    for (DraftRecord& record : records) candidates.push_back({&record, control.max_depth()});
    rest = control.choose(candidates, batch, std::exchange(n_since_choice, 0));
    int deepest = 0, n_drafting = 0;
    for (int b = 0; b < batch; ++b) {
      depths[b] = candidates[b].depth;
      CHECK(depths[b] >= 0);
      CHECK(depths[b] <= control.max_depth());
      deepest = std::max(deepest, depths[b]);
      n_drafting += depths[b] > 0;
    }
    if (deepest == 0) continue;
    ms += machine.pass * deepest;
    control.observe_drafting(n_drafting, deepest, machine.pass * deepest * noise);
  }
  return tokens / ms / (batch / machine.step(batch));
}

}  // namespace

TEST_CASE("depth control: never much slower than plain, whatever the drafts are worth and a row costs") {
  for (const double rate : {0.0, 0.1, 0.3, 0.5, 0.7, 0.9})
    for (const Machine& machine : {Machine{1.0, 0.02, 0.1}, Machine{0.5, 0.5, 0.1}, Machine{0.05, 1.0, 0.3}})
      for (const int batch : {1, 4, 32}) {
        CAPTURE(rate);
        CAPTURE(machine.row);
        CAPTURE(batch);
        DepthControl control(5, true);
        speed_up(control, machine, batch, 300, [&](int) { return rate; });  // what is learned at first is paid once
        CHECK(speed_up(
                  control, machine, batch, 3000, [&](int) { return rate; }, 7) > 0.98);
      }
}

TEST_CASE("depth control: takes the gain where there is one, deeper for better drafts") {
  const Machine cheap_rows{1.0, 0.02, 0.05};
  double before = 1.2;
  for (const double rate : {0.5, 0.7, 0.9}) {
    DepthControl control(8, true);
    const double gain = speed_up(control, cheap_rows, 4, 3000, [&](int) { return rate; });
    CAPTURE(rate);
    CHECK(gain > before);
    before = gain;
  }
  CHECK(before > 2.7);  // 3.1 at best
}

TEST_CASE("depth control: notices when a text becomes predictable, and when it stops being so") {
  const Machine machine{1.0, 0.15, 0.15};
  DepthControl control(5, true);
  const double gain = speed_up(control, machine, 1, 20000, [](int step) { return step / 5000 % 2 == 0 ? 0.02 : 0.9; });
  CHECK(gain > 1.3);  // half the steps at about 2.3, found after a few hundred of them
}

TEST_CASE("depth control: fixed depth drafts what it may; new sequences are followed rarely while drafting does not pay") {
  DepthControl fixed(4, false);
  DraftRecord record = fixed.begin();
  std::vector<DraftCandidate> candidates{{&record, 9}, {&record, 2}};
  fixed.choose(candidates, 2);
  CHECK(candidates[0].depth == 4);
  CHECK(candidates[1].depth == 2);

  DepthControl control(4, true);
  CHECK(control.worth_following());
  speed_up(control, {0.05, 1.0, 0.3}, 4, 3000, [](int) { return 0.0; });
  int n = 0;
  for (int i = 0; i < 80; ++i) n += control.worth_following();  // the 8th, the 16th behind it, the 32nd behind that
  CHECK(n == 3);
  for (int i = 0; i < 400; ++i) n += control.worth_following();  // then each 64th
  CHECK(n == 9);
}

TEST_CASE("depth control: a choice to draft nothing holds until a trial is due, longer where nothing could be drafted") {
  DepthControl control(4, true);
  speed_up(control, {0.05, 1.0, 0.3}, 1, 3000, [](int) { return 0.0; });
  DraftRecord record = control.begin();
  std::vector<DraftCandidate> one{{&record, 4}};
  const int rest = control.choose(one, 1);
  CHECK(rest > 16);
  CHECK(one[0].depth == 0);
  CHECK(control.choose(one, 1, rest) == 0);  // and drafts nothing yet
  CHECK(one[0].depth == 0);
  CHECK(control.choose(one, 1) == 0);
  CHECK(one[0].depth == 1);

  std::vector<DraftCandidate> nobody;
  CHECK(control.choose(nobody, 1) > 16);
  std::vector<DraftCandidate> barren{{&record, 0}};
  CHECK(control.choose(barren, 1) == 0);
  int longest = 0;
  for (int i = 0; i < 100; ++i) longest = std::max(longest, control.choose(barren, 1));
  CHECK(longest >= 4);
  CHECK(longest <= 8);
  one[0].depth = 0;
  DepthControl fixed(4, false);
  CHECK(fixed.choose(one, 1) == 0);
  CHECK(one[0].depth == 4);
}

TEST_CASE("depth control: stalls of the machine, the first step among them, do not make it draft what never comes true") {
  for (uint32_t seed = 0; seed < 20; ++seed) {
    CAPTURE(seed);
    DepthControl control(5, true);
    std::mt19937 random(seed);
    DraftRecord record = control.begin();
    int n_drafted = 0, depth = 0;
    for (int step = 0; step < 2000; ++step) {
      const double stall = step == 0 || random() % 10 == 0 ? 1 + random() % 30 : 1;
      control.observe_drafts(record, depth, 0);
      control.observe_step(1 + depth, (0.2 + 0.1 * depth) * stall);
      std::vector<DraftCandidate> candidates{{&record, 5}};
      control.choose(candidates, 1);
      depth = candidates[0].depth;
      n_drafted += depth > 0;
      if (depth > 0) control.observe_drafting(1, depth, 0.05 * depth);
    }
    CHECK(n_drafted < 100);
  }
}

TEST_CASE("depth control: costs by size are followed, interpolated, and survive a stall of the machine") {
  CostBySize cost;
  CHECK(cost.at(5) == 0.0);
  std::mt19937 random(3);
  for (int i = 0; i < 4000; ++i) {
    const int size = 1 + static_cast<int>(random() % 128);
    cost.observe(size, i % 100 == 0 ? 500.0 : 2.0 + 0.1 * size);
  }
  for (const int size : {1, 3, 10, 50, 128}) CHECK(cost.at(size) == doctest::Approx(2.0 + 0.1 * size).epsilon(0.15));
  CHECK(cost.at(256) > cost.at(128));
}
