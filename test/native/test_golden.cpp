// The publisher's goldens on every CPU path: design section 4. Float32 paths must agree to 1e-4 at every position; BF16 paths
// to twice the publisher's own BF16 error, router flips apart.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <set>

#include "doctest/doctest.h"
#include "engine/model_folder.h"
#include "golden.h"
#include "nlohmann/json.hpp"

using namespace sigmoe;
using namespace sigmoe::test;

namespace {

constexpr double kFloat32Bound = 1e-4;  // per position, relative
constexpr double kBf16Factor = 2.0;     // times the median of the publisher's BF16 run ...
constexpr double kBf16Offset = 0.005;   // ... plus this
constexpr int kFlipAllowance = 3;       // positions with a router flip, beyond the publisher's own
// FP8 weights times FP8 activations: the median of a free run, and every position with the golden's experts. The publisher ran
// in BF16, so its worst error says nothing of flips that it did not have.
constexpr double kW8A8Bound = 0.04;
// A flip must be a near-tie. BF16 rounds to 2^-9 relative; the hidden states that reach a router have gathered the errors of
// all layers before, about 1% of the logits' spread of 2, and a sigmoid's slope is at most 1/4; group scores add two of them.
constexpr double kNearTie = 0.03;

std::string folder_of(const std::string& name) { return golden_dir() + "/random/" + name; }

std::vector<int32_t> shifted(const std::vector<int32_t>& tokens, int32_t last) {
  std::vector<int32_t> next(tokens.begin() + 1, tokens.end());
  next.push_back(last);
  return next;
}

void check_rows_within(const std::vector<double>& errors, double bound, const char* what) {
  const double worst = *std::max_element(errors.begin(), errors.end());
  CHECK_MESSAGE(worst <= bound, what << ": worst position has error " << worst << ", bound " << bound);
}

// Positions where some layer chose other experts than the golden; each must be a near-tie of the golden's own scores.
std::set<int64_t> find_flips(const TestModel& model, const Checkpoint& checkpoint, const GoldenFile& golden,
                             const Trace& trace) {
  const int64_t n_experts = model.config.n_experts, n_active = model.config.n_active, n_groups = model.config.n_groups;
  std::set<int64_t> flipped;
  for (size_t k = 0; k < trace.router_ids.size(); ++k) {
    const std::string prefix = "router." + std::to_string(k);
    const std::vector<float> logits = golden.floats(prefix + ".logits");
    const std::vector<int32_t> chosen = golden.ints(prefix + ".topk");
    const std::string layer = std::to_string(model.config.n_dense_layers + static_cast<int64_t>(k));
    const TensorEntry* bias_entry = checkpoint.find("model.layers." + layer + ".mlp.gate.expert_bias");
    std::vector<float> bias(n_experts);
    if (bias_entry) bias_entry->file->read(bias_entry->offset, bias.data(), bias_entry->bytes);
    for (int64_t t = 0; t < static_cast<int64_t>(chosen.size()) / n_active; ++t) {
      const std::set<int32_t> expected(chosen.begin() + t * n_active, chosen.begin() + (t + 1) * n_active);
      const std::set<int32_t> got(trace.router_ids[k].begin() + t * n_active, trace.router_ids[k].begin() + (t + 1) * n_active);
      if (expected == got) continue;
      const bool after_flip = !flipped.empty() && *flipped.begin() < t;
      flipped.insert(t);
      if (after_flip) continue;  // its inputs differ already, through the KV cache
      std::vector<double> score(n_experts);
      for (int64_t e = 0; e < n_experts; ++e) score[e] = 1 / (1 + std::exp(-logits[t * n_experts + e])) + bias[e];
      const auto group_score = [&](int32_t expert) {
        const int64_t size = n_experts / n_groups, first = expert / size * size;
        std::vector<double> members(score.begin() + first, score.begin() + first + size);
        std::partial_sort(members.begin(), members.begin() + 2, members.end(), std::greater<>());
        return members[0] + members[1];
      };
      double margin = INFINITY;
      for (const int32_t lost : expected)
        for (const int32_t gained : got)
          if (!got.count(lost) && !expected.count(gained))
            margin =
                std::min({margin, std::abs(score[lost] - score[gained]), std::abs(group_score(lost) - group_score(gained))});
      MESSAGE("router flip: layer " << layer << " position " << t << " margin " << margin);
      CHECK_MESSAGE(margin <= kNearTie, "layer " << layer << " position " << t << " chose other experts without a near-tie");
    }
  }
  return flipped;
}

// Alone and in worlds, whose sums are rounded in other places; the emulated NPU is too slow for more than one.
std::vector<std::pair<std::string, Ranks>> with_worlds(const std::vector<std::string>& names, const std::string& path) {
  std::vector<std::pair<std::string, Ranks>> out;
  for (const std::string& name : names)
    for (const Ranks ranks : {Ranks{1}, Ranks{2}, Ranks{4, true}})
      if (ranks.world == 1 || path != "ascend-twin") out.emplace_back(name, ranks);
  return out;
}

}  // namespace

TEST_CASE("golden: float32 logits, choices and greedy ids on every path and world") {
  for (const std::string& name : random_checkpoints()) {
    const GoldenFile golden(folder_of(name) + "/golden.safetensors");
    const std::vector<int32_t> tokens = golden.ints("input_ids"), greedy = golden.ints("greedy");
    const std::vector<float> expected = golden.floats("logits");
    for (const std::string& path : available_paths(DType::f32))
      for (const auto [world, expert_parallel] : all_worlds()) {
        CAPTURE(name);
        CAPTURE(path);
        CAPTURE(world);
        CAPTURE(expert_parallel);
        WorldSpec spec;
        spec.kernels = path;
        spec.world = world;
        spec.expert_parallel = expert_parallel;
        spec.n_threads = world == 1 ? 2 : 1;
        TestModel model(folder_of(name), spec, 64);
        Trace trace;
        const std::vector<float> logits = run_logits(model, tokens, {48}, &trace);
        check_rows_within(row_errors(logits, expected, model.config.vocab_size), kFloat32Bound, "logits");
        for (size_t k = 0; k < trace.router_ids.size(); ++k) {
          std::vector<int32_t> got = trace.router_ids[k], wanted = golden.ints("router." + std::to_string(k) + ".topk");
          for (auto* ids : {&got, &wanted})
            for (auto row = ids->begin(); row != ids->end(); row += model.config.n_active)
              std::sort(row, row + model.config.n_active);
          CHECK(got == wanted);
          check_rows_within(row_errors(trace.router_logits[k], golden.floats("router." + std::to_string(k) + ".logits"),
                                       model.config.n_experts),
                            kFloat32Bound, "router logits");
        }
        CHECK(run_greedy(model, tokens, static_cast<int>(greedy.size())) == greedy);
      }
  }
}

TEST_CASE("golden: float32 MTP logits on every path and world") {
  const GoldenFile golden(folder_of("mtp") + "/golden.safetensors");
  const std::vector<int32_t> tokens = golden.ints("input_ids");
  for (const std::string& path : available_paths(DType::f32))
    for (const auto [world, expert_parallel] : all_worlds()) {
      CAPTURE(path);
      CAPTURE(world);
      CAPTURE(expert_parallel);
      WorldSpec spec;
      spec.kernels = path;
      spec.world = world;
      spec.expert_parallel = expert_parallel;
      spec.n_threads = world == 1 ? 2 : 1;
      spec.mtp = true;
      TestModel model(folder_of("mtp"), spec, 64);
      // The publisher's code rolls the ids left and puts 0 behind the last one.
      const std::vector<float> logits = run_mtp_logits(model, tokens, shifted(tokens, 0));
      check_rows_within(row_errors(logits, golden.floats("mtp.0.logits"), model.config.vocab_size), kFloat32Bound,
                        "MTP logits");
    }
}

// The cases below run on the paths that are found: one that is overlooked would pass by not running.
TEST_CASE("golden: every path the processor lists is found") {
  if (const char* narrowed = std::getenv("SIGMOE_TEST_PATHS")) {
    std::printf("golden: paths not counted, SIGMOE_TEST_PATHS asks for %s alone\n", narrowed);
    return;
  }
  std::ifstream info("/proc/cpuinfo");
  std::string flags;
  for (std::string line; std::getline(info, line) && flags.empty();)
    if (line.rfind("flags", 0) == 0) flags = line + " ";
  const auto listed = [&](const char* flag) { return flags.find(" " + std::string(flag) + " ") != std::string::npos; };
  const auto found = [](DType compute, const char* path) {
    const std::vector<std::string> paths = available_paths(compute);
    return std::find(paths.begin(), paths.end(), path) != paths.end();
  };
  CHECK(found(DType::f32, "reference"));
  CHECK(found(DType::f32, "generic"));
  if (listed("avx2") && listed("fma")) CHECK(found(DType::f32, "avx2"));
  if (listed("avx512bw") && listed("avx512vl")) CHECK(found(DType::f32, "avx512"));
  if (listed("avx512_bf16") && listed("avx512_vbmi")) CHECK(found(DType::bf16, "avx512bf16"));
}

TEST_CASE("golden: BF16 logits on every path") {
  for (const std::string& path : available_paths(DType::bf16))
    for (const auto& [name, ranks] : with_worlds(random_checkpoints(), path)) {
      CAPTURE(name);
      CAPTURE(path);
      CAPTURE(ranks.world);
      CAPTURE(ranks.expert_parallel);
      const GoldenFile golden(folder_of(name) + "/golden.safetensors");
      const ModelFolder files = open_model_folder(folder_of(name));
      const std::vector<int32_t> tokens = golden.ints("input_ids");
      const std::vector<float> expected = golden.floats("logits");
      WorldSpec spec;
      spec.kernels = path;
      spec.compute = DType::bf16;
      spec.world = ranks.world;
      spec.expert_parallel = ranks.expert_parallel;
      spec.n_threads = ranks.world == 1 ? 2 : 1;
      for (const bool deterministic : path == "cuda" ? std::vector<bool>{false, true} : std::vector<bool>{false}) {
        CAPTURE(deterministic);
        spec.deterministic = deterministic;
        const bool w8a8 = name.starts_with("fp8") && has_w8a8(spec);
        TestModel model(folder_of(name), spec, 64);
        const int64_t vocab = model.config.vocab_size;
        const std::vector<double> publisher = row_errors(golden.floats("bf16.logits"), expected, vocab);
        const double median = median_of(publisher), bound = kBf16Factor * median + kBf16Offset;
        const auto publisher_flips =
            std::count_if(publisher.begin(), publisher.end(), [&](double error) { return error > 3 * median; });

        Trace trace;
        const std::vector<float> logits = run_logits(model, tokens, {48}, &trace);
        const std::vector<double> errors = row_errors(logits, expected, vocab);
        const std::set<int64_t> flips = find_flips(model, files.checkpoint, golden, trace);
        CHECK(static_cast<long>(flips.size()) <= publisher_flips + kFlipAllowance);
        const int64_t first_flip = flips.empty() ? static_cast<int64_t>(errors.size()) : *flips.begin();
        if (w8a8) CHECK(median_of(errors) <= kW8A8Bound);
        // A flip of a near-tie may exchange whole groups of experts, and is no error: from there on the measure is float32 with
        // the experts that were taken here.
        std::vector<double> against_same = errors;
        if (!flips.empty() && !w8a8) {
          Trace same;
          same.forced_ids = trace.router_ids;
          TestModel float32(folder_of(name), {}, 64);
          const std::vector<double> all = row_errors(logits, run_logits(float32, tokens, {48}, &same), vocab);
          std::copy(all.begin() + first_flip, all.end(), against_same.begin() + first_flip);
        }
        for (int64_t t = 0; !w8a8 && t < static_cast<int64_t>(errors.size()); ++t) {
          CAPTURE(t);
          CHECK(against_same[t] <= bound);
        }
        Trace forced;
        for (size_t k = 0; golden.has("router." + std::to_string(k) + ".topk"); ++k)
          forced.forced_ids.push_back(golden.ints("router." + std::to_string(k) + ".topk"));
        TestModel again(folder_of(name), spec, 64);
        check_rows_within(row_errors(run_logits(again, tokens, {48}, &forced), expected, vocab), w8a8 ? kW8A8Bound : bound,
                          "logits with golden experts");
        MESSAGE(path << " " << name << ", " << ranks.world << " ranks: median error " << median_of(errors) << ", publisher's "
                     << median << ", flipped positions " << flips.size());
      }
    }
}

TEST_CASE("golden: the bundled model's logits, MTP logits and greedy answers on every path") {
  std::ifstream file(source_dir() + "/test/golden/nano/greedy.json");
  const auto cases = nlohmann::json::parse(file)["prompts"];
  const GoldenFile golden(source_dir() + "/test/golden/nano/logits.safetensors");
  REQUIRE(cases.size() == 8);
  for (const std::string& path : available_paths(DType::f32)) {
    CAPTURE(path);
    WorldSpec spec;
    spec.kernels = path;
    spec.mtp = true;
    TestModel model(source_dir() + "/models/nano", spec, 512);
    const int64_t vocab = model.config.vocab_size;
    for (size_t i = 0; i < cases.size(); ++i) {
      CAPTURE(i);
      const auto prompt = cases[i]["prompt_ids"].get<std::vector<int32_t>>();
      const auto greedy = cases[i]["greedy_ids"].get<std::vector<int32_t>>();
      const std::vector<float> logits = run_logits(model, prompt, {512});
      check_rows_within(
          row_errors({logits.end() - vocab, logits.end()}, golden.floats(std::to_string(i) + ".prompt_logits_last"), vocab),
          kFloat32Bound, "last logits");
      const std::vector<float> mtp = run_mtp_logits(model, prompt, shifted(prompt, 0));
      check_rows_within(
          row_errors({mtp.end() - vocab, mtp.end()}, golden.floats(std::to_string(i) + ".mtp_logits_last"), vocab),
          kFloat32Bound, "last MTP logits");
      CHECK(run_greedy(model, prompt, static_cast<int>(greedy.size())) == greedy);
    }
  }
}

TEST_CASE("determinism: chunked, one by one and batched runs give the same bits on every path") {
  const std::string nano = source_dir() + "/models/nano";
  for (const DType compute : {DType::f32, DType::bf16})
    for (const std::string& path : available_paths(compute)) {
      CAPTURE(path);
      WorldSpec spec;
      spec.kernels = path;
      spec.compute = compute;
      spec.deterministic = true;  // by default a GPU has several classes of kernels
      TestModel model(nano, spec, 320);
      // Long enough to cross two page borders; the naive path crosses none, to stay quick.
      std::vector<int32_t> tokens;
      for (int i = 0; i < (path == "reference" ? 40 : 300); ++i) tokens.push_back((i * 2654435761u >> 7) % 6000);
      const std::vector<float> whole = run_logits(model, tokens, {512});
      for (const std::vector<int64_t>& chunks : {std::vector<int64_t>{1}, {7}, {64}, {127, 2, 129}, {1, 130, 5}}) {
        CAPTURE(chunks[0]);
        CHECK(run_logits(model, tokens, chunks) == whole);
      }
      // A batch: this sequence's chunk among a decode row and a prefill of others, on other pages.
      const int64_t n = static_cast<int64_t>(tokens.size()), half = n / 2;
      run_logits(model, {tokens.begin(), tokens.begin() + half}, {512}, nullptr, 3);
      run_logits(model, {tokens.begin(), tokens.begin() + 9}, {9}, nullptr, 6);
      StepInputs in;
      const auto add = [&](int64_t begin, int64_t end, int32_t first_page) {
        for (int64_t i = begin; i < end; ++i) {
          in.token_ids.push_back(tokens[i]);
          in.positions.push_back(static_cast<int32_t>(i));
        }
        in.seq_offsets.push_back(in.n_tokens());
        for (int page = 0; page < 3; ++page) in.page_tables.push_back(first_page + page);
      };
      in.seq_offsets = {0};
      in.max_pages = 3;
      add(9, 10, 6);
      add(half, n, 3);
      add(0, 17, 9);
      for (int64_t row = 0; row < in.n_tokens(); ++row) in.logits_row_ids.push_back(static_cast<int32_t>(row));
      StepOutputs out;
      model.world->run(in, out);
      const int64_t vocab = model.config.vocab_size;
      const auto rows = [&](const std::vector<float>& logits, int64_t begin, int64_t end) {
        return std::vector<float>(logits.begin() + begin * vocab, logits.begin() + end * vocab);
      };
      CHECK(rows(out.logits, 0, 1) == rows(whole, 9, 10));
      CHECK(rows(out.logits, 1, 1 + n - half) == rows(whole, half, n));
      CHECK(rows(out.logits, 1 + n - half, 1 + n - half + 17) == rows(whole, 0, 17));
      // Another number of threads.
      spec.n_threads = 1;
      TestModel single(nano, spec, 320);
      CHECK(run_logits(single, tokens, {512}) == whole);
    }
}
