// `sigmoe bench` below the command line: options are checked, rows are there and their fractions follow from their parts.
#include "doctest/doctest.h"
#include "engine/bench/cost.h"
#include "engine/bench/meter.h"
#include "engine/engine.h"
#include "nlohmann/json.hpp"

using namespace sigmoe;
using Json = nlohmann::json;

namespace {

Json run(Json options) {
  options["device"] = "cpu";
  options["shape"] = "nano:2";
  options["repeats"] = 1;
  return Json::parse(run_benchmark(options.dump(), [](const std::string&) {}));
}

void check_rows(const Json& result) {
  CHECK(result["machine"]["readGbps"].get<double>() > 0);
  for (const Json& row : result["rows"]) {
    CAPTURE(row.dump());
    const double ms = row["milliseconds"].get<double>();
    CHECK(ms > 0);
    if (!row.contains("bytes")) continue;
    const double read_ms = row["bytes"].get<double>() / row["readGbps"].get<double>() / 1e6;
    CHECK(row["boundMilliseconds"].get<double>() >= read_ms * 0.999);
    CHECK(row["fraction"].get<double>() == doctest::Approx(row["boundMilliseconds"].get<double>() / ms));
  }
}

std::vector<Json> rows_of(const Json& result, const std::string& part) {
  std::vector<Json> rows;
  for (const Json& row : result["rows"])
    if (row["part"] == part) rows.push_back(row);
  return rows;
}

}  // namespace

TEST_CASE("bench decode: a whole step and its ops for each batch size; experts are counted") {
  const Json result = run({{"mode", "decode"}, {"batch", {1, 6}}, {"context", 150}});
  check_rows(result);
  const std::vector<Json> whole = rows_of(result, "whole");
  REQUIRE(whole.size() == 2);
  CHECK(whole[0]["distinctExperts"] == 4);  // one token of a model with four active experts
  CHECK(whole[1]["distinctExperts"].get<double>() > 4);
  CHECK(whole[1]["distinctExperts"].get<double>() <= 16);
  CHECK(whole[1]["bytes"].get<double>() > whole[0]["bytes"].get<double>());
  for (const char* part : {"qkv", "attention", "attention out", "route", "experts", "head"})
    CHECK(rows_of(result, part).size() == 2);
  // Keys and values of 150 positions in both layers: the step's bytes hold them.
  const double kv = rows_of(result, "attention")[0]["bytes"].get<double>();
  CHECK(kv >= 2 * 128 * 150 * 2);
  CHECK(rows_of(result, "attention")[1]["bytes"].get<double>() == 6 * kv);
}

TEST_CASE("bench decode on several ranks: whole steps, and their sums over ranks") {
  Json options = {{"mode", "decode"}, {"batch", {1, 6}}, {"context", 150}, {"device", "cpu"}, {"repeats", 2}, {"threads", 1}};
  options["model"] = std::string(SIGMOE_SOURCE_DIR) + "/models/nano";
  const auto width = static_cast<double>(inspect_model(options["model"]).hidden_size);
  const auto measured = [&] { return Json::parse(run_benchmark(options.dump(), [](const std::string&) {})); };
  options["tensorParallelSize"] = 1;
  const Json alone = measured();
  options["tensorParallelSize"] = 2;
  for (const bool whole_experts : {false, true}) {
    options["enableExpertParallel"] = whole_experts;
    const Json result = measured();
    check_rows(result);
    const std::vector<Json> whole = rows_of(result, "whole"), one = rows_of(alone, "whole"),
                            sums = rows_of(result, "sums over ranks, with residual and norm");
    REQUIRE(whole.size() == 2);
    REQUIRE(sums.size() == 2);
    // One token takes four experts of each layer, however many ranks there are. Each weight but the router lies on one of them:
    // together they read what one reads.
    CHECK(whole[0]["distinctExperts"] == 4);
    CHECK(whole[0]["bytes"].get<double>() >= one[0]["bytes"].get<double>());
    CHECK(whole[0]["bytes"].get<double>() < one[0]["bytes"].get<double>() * 1.2);
    for (int i = 0; i < 2; ++i) {
      CHECK(whole[i]["ranks"] == 2);
      CHECK(whole[i]["experts"] == (whole_experts ? "whole" : "in parts"));
      CHECK(sums[i]["linkBytes"] == sums[i]["perStep"].get<double>() * (i == 0 ? 1 : 6) * width * 4);
    }
  }
  options["mode"] = "prefill";
  CHECK_THROWS_AS(measured(), EngineError);
  options["mode"] = "decode";
  options.erase("model");
  options["shape"] = "nano:2";
  CHECK_THROWS_WITH_AS(measured(), doctest::Contains("random weights in parts"), EngineError);
}

TEST_CASE("bench prefill: prompts in chunks, causal FLOP of attention") {
  const Json result = run({{"mode", "prefill"}, {"tokens", {40, 200}}, {"chunk", 64}});
  check_rows(result);
  REQUIRE(rows_of(result, "whole").size() == 2);
  REQUIRE(rows_of(result, "linear layers").size() == 2);
  // 4 heads of 128: 4 FLOP for every (query, key) pair and element; of the last chunk, 8 queries behind 192 others.
  const std::vector<Json> attention = rows_of(result, "attention");
  CHECK(attention[0]["flop"].get<double>() == 4.0 * 512 * (40 * 41 / 2));
  CHECK(attention[1]["flop"].get<double>() == 4.0 * 512 * (8 * 192 + 8 * 9 / 2));
}

TEST_CASE("bench: attention of prompts counts against the peak of what it multiplies in") {
  constexpr int kHeads = 4, kTokens = 200, kContext = 300;
  const ModelWeights none;
  const auto cost = [&](bool fp8_prefill, DType kv_dtype, int head_dim, int n_tokens) {
    ModelConfig config;
    config.n_heads = kHeads, config.n_kv_heads = 1, config.head_dim = head_dim;
    BackendInfo info;
    info.compute = DType::bf16, info.kv_dtype = kv_dtype, info.fp8_prefill = fp8_prefill;
    return bench::Costs(config, none, info, false, false).attention(1, n_tokens, kContext);
  };
  for (const DType kv_dtype : {DType::bf16, DType::f8_e4m3}) {
    CAPTURE(dtype_name(kv_dtype));
    const double flop = 4.0 * kHeads * 128 * (kTokens * 100 + kTokens * 201 / 2);
    const bench::Cost bf16 = cost(false, kv_dtype, 128, kTokens), fp8 = cost(true, kv_dtype, 128, kTokens),
                      narrow = cost(true, kv_dtype, 64, kTokens);
    CHECK(bf16.flop == flop);
    CHECK(bf16.flop_fp8 == 0);
    // Scores of a BF16 cache are BF16, and half of the products.
    CHECK(fp8.flop_fp8 == (kv_dtype == DType::bf16 ? flop / 2 : flop));
    CHECK(fp8.all_flop() == flop);
    CHECK(fp8.bytes == bf16.bytes);
    CHECK(narrow.flop == flop / 2);
    CHECK(narrow.flop_fp8 == 0);
    CHECK(cost(true, kv_dtype, 128, 16).flop_fp8 == 0);  // a token and the longest draft
    CHECK(cost(true, kv_dtype, 128, 17).flop_fp8 > 0);
  }
}

TEST_CASE("bench kernels: every op, experts by rows") {
  const Json result = run({{"mode", "kernels"}, {"batch", 2}, {"tokens", 32}, {"context", 130}, {"rows", {1, 3}}});
  check_rows(result);
  const std::vector<Json> experts = rows_of(result, "experts, none shared");
  REQUIRE(experts.size() == 2);
  CHECK(experts[1]["rows"] == 12);  // 16 experts of 3 rows, 4 of which are one token's
  CHECK(experts[1]["flop"].get<double>() == 3 * experts[0]["flop"].get<double>());
  CHECK(experts[1]["bytes"] == experts[0]["bytes"]);  // the same experts, read once
  for (const char* part : {"embed", "copy rows", "join norms", "sample, greedy", "sample, top-k and top-p"})
    CHECK(rows_of(result, part).size() == 1);
}

// A backend that chose a kernel in each of two layers, the second time for another number of rows.
class ChoosingDevice : public BenchDevice {
 public:
  void fill(void*, DType, size_t, float, uint64_t) override {}
  Timing time(const std::function<void()>&) override { return {}; }
  std::vector<Choice> choices_of(const std::function<void()>& work) override {
    work();
    const Choice meant{"linear", 1, "early_linear", ""}, fallback{"experts", 16, "gemm_few", "no stream_gemm: k 192 is odd"};
    return {meant, fallback, meant, fallback};
  }
};

TEST_CASE("bench: a row has what was chosen for its ops, and a fallback is said once") {
  bench::BenchModel model;
  model.device = std::make_unique<ChoosingDevice>();
  std::vector<std::string> lines;
  const bench::OnLine on_line = [&](const std::string& line) { lines.push_back(line); };
  const bench::Options options;
  bench::Meter meter(model, options, on_line, nullptr);
  int runs = 0;
  bench::Json row, other;
  meter.say_kernels(row, [&] { ++runs; });
  meter.say_kernels(other, [&] { ++runs; });
  CHECK(runs == 2);
  REQUIRE(row["choices"].size() == 2);
  CHECK(row["choices"][0] == bench::Json{{"op", "linear"}, {"rows", 1}, {"kernel", "early_linear"}});
  CHECK(row["choices"][1]["fallback"] == "no stream_gemm: k 192 is odd");
  CHECK(other == row);
  CHECK(lines == std::vector<std::string>{"  fallback: experts, 16 rows, by gemm_few, no stream_gemm: k 192 is odd"});
}

TEST_CASE("bench: what it cannot measure is refused by name") {
  const auto refused = [](const Json& options, const char* word) {
    try {
      run_benchmark(options.dump(), [](const std::string&) {});
      FAIL("not refused: " << options.dump());
    } catch (const EngineError& error) {
      CHECK_MESSAGE(std::string(error.what()).find(word) != std::string::npos, error.what());
    }
  };
  refused(Json::array(), "not a JSON object");
  refused({{"mode", "encode"}, {"shape", "nano"}}, "encode");
  refused({{"mode", "decode"}}, "a model folder or a shape");
  refused({{"shape", "nano"}, {"dtype", "fp4"}}, "fp4");
  refused({{"shape", "nano"}, {"head", "int4"}}, "int4");
  refused({{"shape", "nano"}, {"batch", {1, 0}}}, "batch");
  refused({{"shape", "nano"}, {"context", 1.5}}, "context");
  refused({{"shape", "nano"}, {"batch", Json::array()}}, "empty");
  refused({{"shape", "nano"}, {"device", "cpu"}, {"prefillAttention", "fp8"}}, "prefill attention in fp8");
  refused({{"shape", "nano"}, {"deterministic", 1}}, "deterministic");
  refused({{"shape", "nano"}, {"load", true}}, "folder");
  refused({{"shape", "nano"}, {"device", "tpu"}}, "tpu");
  refused({{"shape", "nano"}, {"device", "cpu"}, {"head", "fp8"}}, "head");
}
