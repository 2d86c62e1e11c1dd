#include <cmath>
#include <fstream>
#include <sstream>

#include "doctest/doctest.h"
#include "engine/checkpoint/config.h"
#include "nlohmann/json.hpp"

using namespace sigmoe;
using nlohmann::json;

namespace {

json flash_config() {
  return {{"architectures", {"BailingMoeV2ForCausalLM"}},
          {"model_type", "bailing_moe"},
          {"num_hidden_layers", 32},
          {"hidden_size", 4096},
          {"intermediate_size", 9216},
          {"moe_intermediate_size", 1024},
          {"moe_shared_expert_intermediate_size", 1024},
          {"num_attention_heads", 32},
          {"num_key_value_heads", 4},
          {"head_dim", 128},
          {"num_experts", 256},
          {"num_experts_per_tok", 8},
          {"num_shared_experts", 1},
          {"first_k_dense_replace", 1},
          {"n_group", 8},
          {"topk_group", 4},
          {"norm_topk_prob", true},
          {"routed_scaling_factor", 2.5},
          {"score_function", "sigmoid"},
          {"moe_router_enable_expert_bias", true},
          {"use_qk_norm", true},
          {"partial_rotary_factor", 0.5},
          {"rope_theta", 600000},
          {"rope_scaling", nullptr},
          {"max_position_embeddings", 32768},
          {"rms_norm_eps", 1e-6},
          {"vocab_size", 157184},
          {"tie_word_embeddings", false},
          {"hidden_act", "silu"},
          {"use_bias", false},
          {"use_qkv_bias", false},
          {"eos_token_id", 156892}};
}

ModelConfig parse(const json& config, const std::string& modelopt = {}) { return parse_model_config(config.dump(), modelopt); }

// The error that a text must cause, as "CODE: message".
std::string failure_of_text(const std::string& text, const std::string& modelopt = {}) {
  try {
    parse_model_config(text, modelopt);
  } catch (const EngineError& error) {
    return std::string(error_code_name(error.code())) + ": " + error.what();
  }
  return "no error";
}
std::string failure(const json& config) { return failure_of_text(config.dump()); }

bool has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

json with_quant(json quant) {
  json config = flash_config();
  config["quantization_config"] = std::move(quant);
  return config;
}

json compressed(json weights, const char* format) {
  return {{"quant_method", "compressed-tensors"},
          {"format", format},
          {"config_groups", {{"group_0", {{"targets", {"Linear"}}, {"weights", std::move(weights)}}}}},
          {"ignore", {"lm_head", "re:.*mlp\\.gate$"}}};
}
const json kChannel = {{"num_bits", 8}, {"type", "float"}, {"strategy", "channel"}, {"symmetric", true}, {"dynamic", false}};
const json kGroups = {{"num_bits", 4}, {"type", "int"}, {"strategy", "group"}, {"group_size", 32}, {"symmetric", true}};

}  // namespace

TEST_CASE("config: Ling-flash-2.0 reads as published") {
  const ModelConfig c = parse(flash_config());
  CHECK(c.n_layers == 32);
  CHECK(c.hidden_size == 4096);
  CHECK(c.dense_width == 9216);
  CHECK(c.expert_width == 1024);
  CHECK(c.shared_width == 1024);
  CHECK(c.n_kv_heads == 4);
  CHECK(c.rotary_dim == 64);
  CHECK(c.rope_theta == 600000.0);
  CHECK(c.context == 32768);
  CHECK(c.routed_scaling == 2.5f);
  CHECK(c.eos_ids == std::vector<int32_t>{156892});
  CHECK(c.quant.method == QuantMethod::none);
  CHECK(!c.quant.applies_to("model.layers.0.attention.dense"));
}

TEST_CASE("config: every bundled and golden config reads") {
  for (const char* name : {"base", "fp8-block", "fp8-ragged", "full-rotary", "mtp", "no-qk-norm", "real-heads", "real-routing",
                           "single-group", "two-dense", "two-shared", "yarn"}) {
    CAPTURE(name);
    std::ifstream file(std::string(SIGMOE_GOLDEN_DIR) + "/random/" + name + "/config.json");
    std::stringstream text;
    text << file.rdbuf();
    CHECK(failure_of_text(text.str()) == "no error");
  }
  std::ifstream file(std::string(SIGMOE_SOURCE_DIR) + "/models/nano/config.json");
  std::stringstream text;
  text << file.rdbuf();
  const ModelConfig nano = parse_model_config(text.str());
  CHECK(nano.n_mtp_layers == 1);
  CHECK(nano.quant.method == QuantMethod::fp8_block);
}

TEST_CASE("config: the shared width is per shared expert") {
  json config = flash_config();
  config["num_shared_experts"] = 2;
  CHECK(parse(config).shared_width == 2048);
  config.erase("moe_shared_expert_intermediate_size");
  config["moe_intermediate_size"] = 512;
  CHECK(parse(config).shared_width == 1024);
  config["num_shared_experts"] = 0;
  CHECK(parse(config).shared_width == 0);
}

TEST_CASE("config: one error names every wrong field") {
  json config = flash_config();
  config["hidden_size"] = -4;
  config["num_experts"] = 1e30;
  config["vocab_size"] = 18446744073709551615u;
  config["rms_norm_eps"] = "small";
  config.erase("n_group");
  config["num_attention_heads"] = 30;
  config["use_qk_norm"] = 1;
  config["eos_token_id"] = {1, "x"};
  const std::string found = failure(config);
  CHECK(has(found, "ERR_BAD_CHECKPOINT"));
  for (const char* field : {"hidden_size is -4", "num_experts", "vocab_size is 18446744073709551615", "rms_norm_eps",
                            "n_group is missing", "num_attention_heads 30", "use_qk_norm", "eos_token_id"})
    CHECK_MESSAGE(has(found, field), found);
}

TEST_CASE("config: contradictions") {
  const auto changed = [](const char* field, const json& value) {
    json config = flash_config();
    config[field] = value;
    return failure(config);
  };
  CHECK(has(changed("num_experts", 250), "not a multiple of n_group"));
  CHECK(has(changed("topk_group", 9), "above n_group"));
  CHECK(has(changed("num_experts_per_tok", 129), "above the 128 experts"));
  CHECK(has(changed("first_k_dense_replace", 33), "above num_hidden_layers"));
  CHECK(has(changed("eos_token_id", 157184), "eos_token_id"));
  CHECK(has(changed("partial_rotary_factor", 0.01), "rotated part"));
  CHECK(has(changed("rotary_dim", 32), "differ"));
  CHECK(has(changed("rope_parameters", {{"rope_theta", 10000.0}}), "rope_theta"));
  CHECK(has(changed("head_dim", 127), "odd"));
  CHECK(has(changed("max_position_embeddings", 1ll << 40), "max_position_embeddings"));
}

TEST_CASE("config: what is not BailingMoeV2 is unsupported by name") {
  const auto changed = [](const char* field, const json& value) {
    json config = flash_config();
    config[field] = value;
    return failure(config);
  };
  CHECK(
      has(changed("architectures", {"LlamaForCausalLM"}), "ERR_UNSUPPORTED: config.json: architectures is 'LlamaForCausalLM'"));
  CHECK(has(changed("model_type", "llama"), "model_type is 'llama'"));
  CHECK(has(changed("score_function", "softmax"), "score_function"));
  CHECK(has(changed("hidden_act", "gelu"), "hidden_act"));
  CHECK(has(changed("use_qkv_bias", true), "use_qkv_bias"));
  CHECK(has(changed("rope_scaling", {{"type", "linear"}, {"factor", 2.0}}), "linear"));
  json v2 = flash_config();
  v2["model_type"] = "bailing_moe_v2";
  CHECK(failure(v2) == "no error");
}

TEST_CASE("config: text that is not a config") {
  CHECK(has(failure_of_text(""), "ERR_BAD_CHECKPOINT"));
  CHECK(has(failure_of_text("{"), "ERR_BAD_CHECKPOINT"));
  CHECK(has(failure_of_text("[]"), "must be an object"));
  CHECK(has(failure_of_text("{}"), "hidden_size is missing"));
  CHECK(has(failure_of_text("{\"a\":1,\"a\":2}"), "twice"));
  CHECK(has(failure_of_text("{\"a\":1e999}"), "ERR_BAD_CHECKPOINT"));
  CHECK(has(failure_of_text("\xff\xfe"), "ERR_BAD_CHECKPOINT"));
  CHECK(has(failure_of_text(std::string(1000000, '[')), "nested deeper"));
  std::string objects;
  for (int i = 0; i < 200000; ++i) objects += "{\"a\":";
  CHECK(has(failure_of_text(objects), "nested deeper"));
  CHECK(has(failure_of_text(std::string(5 << 20, ' ')), "bytes"));
}

TEST_CASE("config: YaRN in both spellings") {
  json older = flash_config(), newer = flash_config();
  older["rope_scaling"] = {{"type", "yarn"}, {"factor", 4.0}, {"original_max_position_embeddings", 32768}};
  newer.erase("rope_theta");
  newer.erase("rope_scaling");
  newer.erase("partial_rotary_factor");
  newer["rope_parameters"] = {{"rope_type", "yarn"},
                              {"factor", 4.0},
                              {"original_max_position_embeddings", 32768},
                              {"rope_theta", 600000},
                              {"partial_rotary_factor", 0.5}};
  for (const json& config : {older, newer}) {
    const ModelConfig c = parse(config);
    CHECK(c.context == 131072);
    CHECK(c.rotary_dim == 64);
    std::vector<float> cos, sin;
    rope_tables(c, 2, cos, sin);
    // The values of the model's specification: attention factor, and the frequencies of five pairs.
    const double m = 1.138629436111989;
    CHECK(cos[0] == doctest::Approx(m).epsilon(1e-7));
    for (const auto& [pair, frequency] : std::vector<std::pair<int, double>>{
             {0, 1.0}, {11, 1.032192e-02}, {16, 8.606630e-04}, {21, 4.036717e-05}, {31, 6.314747e-07}})
      CHECK(std::atan2(sin[32 + pair], cos[32 + pair]) == doctest::Approx(frequency).epsilon(1e-6));
  }
}

TEST_CASE("config: YaRN options") {
  const auto scale = [](const json& extra) {  // cos at position 0 is the attention factor
    json config = flash_config();
    config["rope_scaling"] = {{"rope_type", "yarn"}, {"factor", 4.0}};
    config["rope_scaling"].update(extra);
    std::vector<float> cos, sin;
    rope_tables(parse(config), 1, cos, sin);
    return static_cast<double>(cos[0]);
  };
  CHECK(scale({{"attention_factor", 1.5}}) == doctest::Approx(1.5));
  CHECK(scale({{"mscale", 1.0}, {"mscale_all_dim", 1.0}}) == doctest::Approx(1.0));
  CHECK(scale({{"mscale", 2.0}, {"mscale_all_dim", 1.0}}) ==
        doctest::Approx((0.2 * std::log(4.0) + 1) / (0.1 * std::log(4.0) + 1)));
  CHECK(scale({{"mscale", 2.0}}) == doctest::Approx(0.1 * std::log(4.0) + 1));
  json bad = flash_config();
  bad["rope_scaling"] = {{"type", "yarn"}, {"factor", 0.5}, {"beta_fast", 1}, {"beta_slow", 32}, {"truncate", "no"}};
  const std::string found = failure(bad);
  for (const char* field : {"rope_scaling.factor", "beta_fast", "rope_scaling.truncate"}) CHECK(has(found, field));
}

TEST_CASE("config: plain RoPE tables") {
  const ModelConfig c = parse(flash_config());
  std::vector<float> cos, sin;
  rope_tables(c, 300, cos, sin);
  CHECK(cos.size() == 300 * 32);
  const double angle = 299.0 * std::pow(600000.0, -2.0 * 7 / 64);
  CHECK(cos[299 * 32 + 7] == doctest::Approx(std::cos(angle)).epsilon(1e-6));
  CHECK(sin[299 * 32 + 7] == doctest::Approx(std::sin(angle)).epsilon(1e-6));
}

TEST_CASE("config: FP8 dialects") {
  json block = {{"quant_method", "fp8"},
                {"fmt", "e4m3"},
                {"activation_scheme", "dynamic"},
                {"weight_block_size", {128, 64}},
                {"modules_to_not_convert", {"lm_head", "mlp.gate."}}};
  ModelConfig c = parse(with_quant(block));
  CHECK(c.quant.method == QuantMethod::fp8_block);
  CHECK(c.quant.block_n == 128);
  CHECK(c.quant.block_k == 64);
  CHECK(c.quant.applies_to("model.layers.3.mlp.gate_proj"));
  CHECK(!c.quant.applies_to("model.layers.3.mlp.gate.x"));
  CHECK(!c.quant.applies_to("lm_head"));
  block.erase("weight_block_size");
  CHECK(parse(with_quant(block)).quant.method == QuantMethod::fp8_tensor);
  block["fmt"] = "e5m2";
  CHECK(has(failure(with_quant(block)), "quantization_config.fmt"));

  c = parse(with_quant(compressed(kChannel, "float-quantized")));
  CHECK(c.quant.method == QuantMethod::fp8_channel);
  CHECK(!c.quant.applies_to("model.layers.1.mlp.gate"));
  CHECK(c.quant.applies_to("model.layers.1.mlp.gate_proj"));
  CHECK(!c.quant.applies_to("lm_head"));
  CHECK(c.quant.applies_to("x.lm_head"));

  const std::string modelopt =
      R"({"producer":{"name":"modelopt"},"quantization":{"quant_algo":"FP8","kv_cache_quant_algo":"FP8","exclude_modules":["lm_head","*.mlp.gate"]}})";
  c = parse(flash_config(), modelopt);
  CHECK(c.quant.method == QuantMethod::fp8_tensor);
  CHECK(!c.quant.applies_to("model.layers.1.mlp.gate"));
  CHECK(c.quant.applies_to("model.layers.1.mlp.gate_proj"));
  CHECK(has(failure_of_text(flash_config().dump(), R"({"quantization":{"quant_algo":"NVFP4"}})"), "quant_algo is 'NVFP4'"));
  CHECK(has(failure_of_text(with_quant({{"quant_method", "fp8"}, {"weight_block_size", {128, 128}}}).dump(), modelopt),
            "hf_quant_config.json says"));
  CHECK(has(failure(with_quant({{"quant_method", "gptq"}})), "quant_method is 'gptq'"));
}

TEST_CASE("config: INT4 groups") {
  const ModelConfig c = parse(with_quant(compressed(kGroups, "pack-quantized")));
  CHECK(c.quant.method == QuantMethod::int4_group);
  CHECK(c.quant.group == 32);
  const auto changed = [](const char* field, const json& value) {
    json weights = kGroups;
    weights[field] = value;
    return failure(with_quant(compressed(weights, "pack-quantized")));
  };
  CHECK(has(changed("symmetric", false), "weights.symmetric"));
  CHECK(has(changed("num_bits", 8), "weights.num_bits"));
  CHECK(has(changed("actorder", "group"), "weights.actorder"));
  CHECK(has(changed("group_size", 12), "group_size"));
  CHECK(changed("actorder", "weight") == "no error");
  CHECK(changed("actorder", nullptr) == "no error");
  CHECK(has(failure(with_quant(compressed(kGroups, "marlin-24"))), "format"));
  json sparse = compressed(kGroups, "pack-quantized");
  sparse["sparsity_config"] = {{"format", "sparse-24-bitmask"}};
  CHECK(has(failure(with_quant(sparse)), "sparsity_config.format"));
  json narrow = with_quant(compressed(kGroups, "pack-quantized"));
  narrow["moe_intermediate_size"] = 1020;
  CHECK(has(failure(narrow), "moe_intermediate_size 1020"));
}

TEST_CASE("name patterns: expressions mean what they mean elsewhere") {
  const auto matches = [](const char* pattern, const char* name) { return NamePattern::regex(pattern).matches(name); };
  CHECK(matches(".*mlp.gate$", "model.layers.1.mlp.gate"));
  CHECK(!matches(".*mlp.gate$", "model.layers.1.mlp.gate_proj"));
  CHECK(matches("model", "model.x"));  // from the start, not to the end
  CHECK(!matches("odel", "model.x"));
  CHECK(matches("^model\\.layers\\.(0|1[0-9])\\.", "model.layers.17.mlp"));
  CHECK(!matches("^model\\.layers\\.(0|1[0-9])\\.", "model.layers.2.mlp"));
  CHECK(matches("a{2,3}b", "aaab"));
  CHECK(!matches("a{2,3}b$", "ab"));
  CHECK(matches("(?:ab)+c?$", "ababab"));
  CHECK(matches("[^.]+\\.\\d{2}$", "layer.31"));
  CHECK(!matches("[^.]+\\.\\d{2}$", "layer.x.31"));
  CHECK(matches("", "anything"));
  CHECK(matches("(a|)*b", "aab"));
  CHECK(NamePattern::glob("*.mlp.gate").matches("model.mlp.gate"));
  CHECK(!NamePattern::glob("*.mlp.gate").matches("model.mlp.gate_proj"));
  CHECK(NamePattern::glob("a?c").matches("abc"));
}

TEST_CASE("name patterns: hostile expressions end in an error or in linear time") {
  const std::string name(500, 'a');
  CHECK(!NamePattern::regex("(a*)*(a*)*(a|aa)*$b").matches(name));
  CHECK(!NamePattern::regex("(x+x+)+y").matches(std::string(500, 'x')));
  for (const char* bad : {"(?!x)", "(", ")", "[", "a{5000}", "*", "\\1", "a\\", "((a{100}){100}){100}",
                          "(((((){250}){250}){250}){250}){250}", "[z-a]", "a**", "(?<n>a)"})
    CHECK_THROWS_AS_MESSAGE(NamePattern::regex(bad), EngineError, bad);
  CHECK_THROWS_AS(NamePattern::regex(std::string(400, '(')), EngineError);
  CHECK_THROWS_AS(NamePattern::regex(std::string(4000, 'a')), EngineError);
}
