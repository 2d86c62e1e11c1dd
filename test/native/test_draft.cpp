// Draft models by themselves: their logits and chains against the goldens, and draft folders that cannot be used.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>

#include "backend/registry.h"
#include "doctest/doctest.h"
#include "engine/model_folder.h"
#include "engine/speculation/draft_checkpoint.h"
#include "engine/speculation/drafter.h"
#include "golden.h"
#include "make_checkpoint.h"
#include "nlohmann/json.hpp"

using namespace sigmoe;
using namespace sigmoe::test;

namespace {

const std::string kNano = source_dir() + "/models/nano", kDraft = source_dir() + "/models/nano-eagle3";
constexpr double kFloat32Bound = 1e-4;
constexpr int64_t kPositions = 256;

nlohmann::json golden_prompts() {
  std::ifstream file(source_dir() + "/test/golden/nano/greedy.json");
  return nlohmann::json::parse(file)["prompts"];
}

// Runs a prompt, keeping its features in rows 0, 1, ...; returns the token sampled greedily behind it.
int32_t run_prompt(TestModel& model, const std::vector<int32_t>& prompt) {
  StepInputs in;
  for (size_t i = 0; i < prompt.size(); ++i) {
    in.token_ids.push_back(prompt[i]);
    in.positions.push_back(static_cast<int32_t>(i));
    in.feature_rows.push_back(static_cast<int32_t>(i));
  }
  const int32_t n = in.n_tokens();
  in.seq_offsets = {0, n};
  in.page_tables = {0};
  in.max_pages = 1;
  SampleRow greedy;
  greedy.temperature = 0;
  in.sample_rows = {greedy};
  in.sample_row_ids = {n - 1};
  in.resets = {{0, prompt, {}}};
  StepOutputs out;
  model.world->run(in, out);
  return out.tokens[0];
}

DraftTask task_behind(Sequence& sequence, int depth) {
  DraftTask task;
  task.sequence = &sequence;
  task.end = sequence.length() - 1;
  task.depth = depth;
  return task;
}

const DrafterLimits kLimits{512, 4, kPositions, 4 * kPositions / kPageTokens};

void check_error(double error, double bound, const char* what) {
  CHECK_MESSAGE(error <= bound, what << ": relative error " << error << ", bound " << bound);
}

// Folders that the tests write, removed when they have run.
struct Written {
  ~Written() {
    std::error_code ignored;
    for (const std::filesystem::path& folder : folders) std::filesystem::remove_all(folder, ignored);
  }
  std::vector<std::filesystem::path> folders;
} written;

// A copy of the bundled draft with a changed config.
std::string draft_with(const char* name, const nlohmann::json& changes) {
  const std::filesystem::path folder = std::filesystem::temp_directory_path() / ("sigmoe-draft-" + std::string(name));
  std::filesystem::create_directories(folder);
  written.folders.push_back(folder);
  std::ifstream file(kDraft + "/config.json");
  nlohmann::json config = nlohmann::json::parse(file);
  config.merge_patch(changes);
  std::ofstream(folder / "config.json") << config.dump();
  std::filesystem::copy_file(kDraft + "/model.safetensors", folder / "model.safetensors",
                             std::filesystem::copy_options::overwrite_existing);
  return folder;
}

void check_refused(const std::string& folder, ErrorCode code, const std::string& named) {
  CAPTURE(named);
  const ModelConfig target = open_model_folder(kNano).config;
  try {
    open_draft_folder(folder, target);
    FAIL("was accepted");
  } catch (const EngineError& error) {
    CHECK(error.code() == code);
    CHECK_MESSAGE(std::string(error.what()).find(named) != std::string::npos, error.what());
  }
}

// The bundled draft's tensors, changed, as a folder.
template <typename Change>
std::string draft_of_tensors(const char* name, Change change) {
  const Checkpoint from = Checkpoint::open(kDraft);
  std::vector<testing::StoredTensor> tensors;
  for (const auto& [tensor_name, entry] : from.tensors()) {
    testing::StoredTensor tensor{tensor_name, dtype_name(entry.dtype), entry.shape, std::vector<std::byte>(entry.bytes)};
    entry.file->read(entry.offset, tensor.bytes.data(), entry.bytes);
    tensors.push_back(std::move(tensor));
  }
  change(tensors);
  const std::string folder = draft_with(name, nlohmann::json::object());
  const std::vector<std::byte> bytes = testing::safetensors_bytes(tensors);
  std::ofstream(folder + "/model.safetensors", std::ios::binary)
      .write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
  return folder;
}

}  // namespace

TEST_CASE("draft: EAGLE3 logits, chain and fused features equal the golden on every float32 path") {
  const GoldenFile golden(source_dir() + "/test/golden/nano/eagle3.safetensors");
  const nlohmann::json prompts = golden_prompts();
  for (const std::string& path : available_paths(DType::f32)) {
    CAPTURE(path);
    const DraftFolder folder = open_draft_folder(kDraft, open_model_folder(kNano).config);
    WorldSpec spec;
    spec.kernels = path;
    spec.features = {folder.config.feature_layers, 64};
    TestModel model(kNano, spec, kPositions);
    RankRunner& target = model.world->rank(0);
    const auto drafter =
        make_eagle3_drafter(folder, load_draft_weights(folder, model.config, target.backend(), 2, nullptr), target, kLimits);
    for (size_t i = 0; i < prompts.size(); ++i) {
      CAPTURE(i);
      const std::string at = std::to_string(i);
      Sequence sequence;
      sequence.tokens = prompts[i]["prompt_ids"].get<std::vector<int32_t>>();
      sequence.tokens.push_back(run_prompt(model, sequence.tokens));
      sequence.pages = {0};
      std::vector<DraftTask> tasks{task_behind(sequence, 5)};
      DraftTrace trace;
      drafter->draft(tasks, &trace);
      CHECK(tasks[0].drafts == golden.ints(at + ".draft_tokens"));
      const int64_t width = folder.config.hidden_size, vocab = folder.config.vocab_size;
      check_error(row_errors({trace.fused.end() - width, trace.fused.end()}, golden.floats(at + ".fused_last"), width)[0],
                  kFloat32Bound, "fused features");
      const std::vector<float> expected = golden.floats(at + ".draft_logits");
      REQUIRE(trace.logits.size() == 5);
      for (int pass = 0; pass < 5; ++pass)
        check_error(
            row_errors(trace.logits[pass], {expected.begin() + pass * vocab, expected.begin() + (pass + 1) * vocab}, vocab)[0],
            kFloat32Bound, "draft logits");
    }
  }
}

TEST_CASE("draft: MTP logits equal the golden; a deeper draft is the layer run on its own output") {
  const GoldenFile golden(source_dir() + "/test/golden/nano/logits.safetensors");
  const nlohmann::json prompts = golden_prompts();
  for (const std::string& path : available_paths(DType::f32)) {
    CAPTURE(path);
    WorldSpec spec;
    spec.kernels = path;
    spec.mtp = true;
    spec.features = {{}, 64};
    TestModel model(kNano, spec, kPositions);
    RankRunner& target = model.world->rank(0);
    const auto drafter = make_mtp_drafter(target, kLimits);
    for (size_t i = 0; i < prompts.size(); ++i) {
      CAPTURE(i);
      Sequence sequence;
      sequence.tokens = prompts[i]["prompt_ids"].get<std::vector<int32_t>>();
      run_prompt(model, sequence.tokens);
      sequence.tokens.push_back(0);  // what the golden's last row was paired with
      sequence.pages = {0};
      std::vector<DraftTask> tasks{task_behind(sequence, 3)};
      DraftTrace trace;
      drafter->draft(tasks, &trace);
      const std::vector<float> expected = golden.floats(std::to_string(i) + ".mtp_logits_last");
      check_error(row_errors(trace.logits.at(0), expected, model.config.vocab_size)[0], kFloat32Bound, "MTP logits");
      REQUIRE(trace.logits.size() == 3);
      for (int pass = 0; pass < 3; ++pass) {
        const std::vector<float>& logits = trace.logits[pass];
        CHECK(tasks[0].drafts[pass] == std::max_element(logits.begin(), logits.end()) - logits.begin());
      }
    }
  }
}

TEST_CASE("draft: sequences drafted together, at their own depths and from parts of their features, draft as alone") {
  const nlohmann::json prompts = golden_prompts();
  const DraftFolder folder = open_draft_folder(kDraft, open_model_folder(kNano).config);
  for (const DType compute : {DType::f32, DType::bf16}) {
    WorldSpec spec;
    spec.kernels = "auto";
    spec.compute = compute;
    spec.features = {folder.config.feature_layers, 64};
    TestModel model(kNano, spec, kPositions);
    RankRunner& target = model.world->rank(0);
    const auto drafter =
        make_eagle3_drafter(folder, load_draft_weights(folder, model.config, target.backend(), 2, nullptr), target, kLimits);
    std::vector<int32_t> prompt = prompts[0]["prompt_ids"];
    const int32_t next = run_prompt(model, prompt);
    prompt.push_back(next);
    std::vector<Sequence> sequences(3);  // the same text on three pages
    std::vector<DraftTask> alone;
    for (int s = 0; s < 3; ++s) {
      sequences[s].tokens = prompt;
      sequences[s].pages = {s};
      alone = {task_behind(sequences[s], 5)};
      drafter->draft(alone);
    }
    for (int s = 0; s < 3; ++s) sequences[s].pages = {3 + s};
    std::vector<DraftTask> first;  // a prompt in parts: nothing is drafted behind the first
    for (Sequence& sequence : sequences) {
      first.push_back(task_behind(sequence, 0));
      first.back().end = 20;
    }
    drafter->draft(first);
    CHECK(first[0].drafts.empty());
    std::vector<DraftTask> together;
    for (const auto& [s, depth] : {std::pair(0, 2), std::pair(1, 0), std::pair(2, 5)}) {
      together.push_back(task_behind(sequences[s], depth));
      together.back().begin = 20;
      together.back().first_feature_row = 20;
    }
    drafter->draft(together);
    for (const DraftTask& task : together) {
      CHECK(static_cast<int>(task.drafts.size()) == task.depth);
      CHECK(std::equal(task.drafts.begin(), task.drafts.end(), alone[0].drafts.begin()));
    }
  }
}

TEST_CASE("draft: prompt lookup proposes what followed the longest earlier match") {
  const auto drafter = make_ngram_drafter();
  const auto drafted = [&](const std::vector<int32_t>& tokens, int depth) {
    Sequence sequence;
    sequence.tokens = tokens;
    std::vector<DraftTask> tasks{task_behind(sequence, depth)};
    drafter->draft(tasks);
    CHECK(static_cast<int>(tasks[0].drafts.size()) == drafter->most(sequence, depth));
    return tasks[0].drafts;
  };
  using Ids = std::vector<int32_t>;
  CHECK(drafted({1, 2, 3, 4, 5, 1, 2, 3}, 2) == Ids{4, 5});
  CHECK(drafted({1, 2, 3, 4, 5, 1, 2, 3}, 9) == Ids{4, 5, 1, 2, 3});  // no further than the text goes
  CHECK(drafted({1, 2, 3, 7, 9, 2, 3, 8, 1, 2, 3}, 1) == Ids{7});     // the longer match, not the later
  CHECK(drafted({2, 3, 7, 9, 2, 3, 8, 5, 2, 3}, 1) == Ids{8});        // of equal ones the later
  CHECK(drafted({4, 4, 4, 4}, 3) == Ids{4});                          // overlapping itself
  CHECK(drafted({1, 2, 3, 4, 9, 4}, 3).empty());                      // one token is no match
  CHECK(drafted({1}, 3).empty());
  CHECK(drafted({1, 2}, 3).empty());
}

TEST_CASE("draft: folders that do not fit are refused by name") {
  using Json = nlohmann::json;
  check_refused("/no/such/folder", ErrorCode::not_found, "no such folder");
  check_refused(kNano, ErrorCode::unsupported, "LlamaForCausalLMEagle3");
  check_refused(draft_with("vocab", {{"vocab_size", 6000}}), ErrorCode::bad_checkpoint, "the target's is 6144");
  check_refused(draft_with("hidden", {{"hidden_size", 512}}), ErrorCode::bad_checkpoint, "embed_tokens.weight");
  check_refused(draft_with("features", {{"target_hidden_size", 512}}), ErrorCode::bad_checkpoint, "target_hidden_size");
  check_refused(draft_with("bias", {{"attention_bias", true}}), ErrorCode::bad_checkpoint, "q_proj.bias is absent");
  check_refused(draft_with("fcnorm", {{"fc_norm", true}}), ErrorCode::bad_checkpoint, "fc_norm.0.weight is absent");
  check_refused(draft_with("mlpbias", {{"mlp_bias", true}}), ErrorCode::unsupported, "mlp_bias");
  check_refused(draft_with("layers", {{"num_hidden_layers", 2}}), ErrorCode::unsupported, "num_hidden_layers");
  check_refused(draft_with("ids", {{"eagle_config", {{"eagle_aux_hidden_state_layer_ids", Json::array({1, 3, 9})}}}}),
                ErrorCode::bad_checkpoint, "eagle_aux_hidden_state_layer_ids");
  check_refused(draft_with("count", {{"num_aux_hidden_states", 2}}), ErrorCode::bad_checkpoint, "num_aux_hidden_states");
  check_refused(draft_with("old", {{"eagle_config", {{"use_aux_hidden_state", false}}}}), ErrorCode::unsupported,
                "use_aux_hidden_state");
  check_refused(draft_with("heads", {{"num_attention_heads", 8}}), ErrorCode::bad_checkpoint, "q_proj");
  check_refused(draft_of_tensors("absent",
                                 [](auto& tensors) {
                                   std::erase_if(tensors, [](const auto& tensor) { return tensor.name == "fc.weight"; });
                                 }),
                ErrorCode::bad_checkpoint, "fc.weight is absent");
  check_refused(draft_of_tensors("more",
                                 [](auto& tensors) {
                                   tensors.push_back({"fc_norm.weight", "BF16", {2}, std::vector<std::byte>(4)});
                                 }),
                ErrorCode::unsupported, "fc_norm.weight");

  // Its values are looked at when it is loaded.
  const ModelConfig target = open_model_folder(kNano).config;
  BackendOptions options;
  options.kernels = "generic";
  const auto backend = create_backend("cpu", options);
  const auto load = [&](const std::string& folder) {
    load_draft_weights(open_draft_folder(folder, target), target, *backend, 1, nullptr);
  };
  const std::string far = draft_of_tensors("far", [](auto& tensors) {
    for (auto& tensor : tensors)
      if (tensor.name == "d2t") tensor.bytes[8 * 5 + 2] = std::byte{9};  // d2t[5] += 9 * 65536
  });
  CHECK_THROWS_WITH_AS(load(far), doctest::Contains("d2t[5]"), EngineError);
  const std::string nan = draft_of_tensors("nan", [](auto& tensors) {
    for (auto& tensor : tensors)
      if (tensor.name == "fc.weight") tensor.bytes[10] = std::byte{0xff}, tensor.bytes[11] = std::byte{0x7f};
  });
  CHECK_THROWS_WITH_AS(load(nan), doctest::Contains("fc.weight"), EngineError);
}

TEST_CASE("draft: exporters' names for the same tensors, and a draft with its own embeddings, draft alike") {
  const nlohmann::json prompts = golden_prompts();
  const auto renamed = draft_of_tensors("renamed", [](auto& tensors) {
    for (auto& tensor : tensors) {
      if (tensor.name.starts_with("midlayer.")) tensor.name = "layers.0." + tensor.name.substr(9);
      if (tensor.name != "d2t" && tensor.name != "t2d" && tensor.name != "lm_head.weight") tensor.name = "model." + tensor.name;
    }
    const Checkpoint target = Checkpoint::open(kNano);
    const TensorEntry& table = *target.find("model.word_embeddings.weight");
    testing::StoredTensor own{"model.embed_tokens.weight", dtype_name(table.dtype), table.shape,
                              std::vector<std::byte>(table.bytes)};
    table.file->read(table.offset, own.bytes.data(), table.bytes);
    tensors.push_back(std::move(own));
  });
  std::vector<std::vector<int32_t>> drafts;
  for (const std::string& name : {kDraft, renamed}) {
    const DraftFolder folder = open_draft_folder(name, open_model_folder(kNano).config);
    WorldSpec spec;
    spec.kernels = "generic";
    spec.features = {folder.config.feature_layers, 64};
    TestModel model(kNano, spec, kPositions);
    RankRunner& target = model.world->rank(0);
    const auto drafter =
        make_eagle3_drafter(folder, load_draft_weights(folder, model.config, target.backend(), 2, nullptr), target, kLimits);
    Sequence sequence;
    sequence.tokens = prompts[1]["prompt_ids"].get<std::vector<int32_t>>();
    sequence.tokens.push_back(run_prompt(model, sequence.tokens));
    sequence.pages = {0};
    std::vector<DraftTask> tasks{task_behind(sequence, 5)};
    drafter->draft(tasks);
    drafts.push_back(tasks[0].drafts);
  }
  CHECK(drafts[0] == drafts[1]);
}

namespace {

// An EAGLE3 layer as reference/model.md 5.5 has it, in double and one sequence at a time: what the optional keys are held
// against.
class PlainDraft {
 public:
  explicit PlainDraft(const std::string& folder) : checkpoint_(Checkpoint::open(folder)) {
    std::ifstream file(folder + "/config.json");
    config_ = nlohmann::json::parse(file);
  }

  using Row = std::vector<double>;

  // The hidden state of a row of features.
  Row fuse(const Row& features) const {
    Row in = features;
    if (flag("fc_norm"))
      for (int i = 0; i < 3; ++i) {
        const size_t width = features.size() / 3;
        const Row part(features.begin() + i * width, features.begin() + (i + 1) * width);
        const Row normed = norm(part, values("fc_norm." + std::to_string(i) + ".weight"));
        std::copy(normed.begin(), normed.end(), in.begin() + i * width);
      }
    return times("fc.weight", in);
  }

  struct Out {
    Row next, logits;
  };
  // Position `position` with what was drafted or read for it; its K and V stay for those behind it.
  Out step(const Row& hidden, const Row& embedding, int64_t position) {
    Row normed_hidden = norm(hidden, values("midlayer.hidden_norm.weight")),
        joined = norm(embedding, values("midlayer.input_layernorm.weight"));
    joined.insert(joined.end(), normed_hidden.begin(), normed_hidden.end());
    Row residual = flag("norm_before_residual") ? normed_hidden : hidden;
    Row q = project("q", joined), k = project("k", joined);
    turn(q, position);
    turn(k, position);
    k_.push_back(k);
    v_.push_back(project("v", joined));
    const size_t head_dim = config_["head_dim"], n_heads = q.size() / head_dim, group = n_heads / (k.size() / head_dim);
    Row attended(q.size());
    for (size_t head = 0; head < n_heads; ++head) {
      const size_t at = head * head_dim, kv_at = head / group * head_dim;
      Row weights;
      for (const Row& key : k_) {
        double dot = 0;
        for (size_t i = 0; i < head_dim; ++i) dot += q[at + i] * key[kv_at + i];
        weights.push_back(std::exp(dot / std::sqrt(static_cast<double>(head_dim))));
      }
      double sum = 0;
      for (const double weight : weights) sum += weight;
      for (size_t p = 0; p < weights.size(); ++p)
        for (size_t i = 0; i < head_dim; ++i) attended[at + i] += weights[p] / sum * v_[p][kv_at + i];
    }
    add(residual, project("o", attended));
    const Row mlp_in = norm(residual, values("midlayer.post_attention_layernorm.weight"));
    Row gate = times("midlayer.mlp.gate_proj.weight", mlp_in);
    const Row up = times("midlayer.mlp.up_proj.weight", mlp_in);
    for (size_t i = 0; i < gate.size(); ++i) gate[i] = gate[i] / (1 + std::exp(-gate[i])) * up[i];
    add(residual, times("midlayer.mlp.down_proj.weight", gate));
    const Row normed = norm(residual, values("norm.weight"));
    return {flag("norm_output") ? normed : residual, times("lm_head.weight", normed)};
  }

 private:
  bool flag(const char* name) const { return config_.value(name, false); }

  Row values(const std::string& name) const {
    const TensorEntry* entry = checkpoint_.find(name);
    REQUIRE_MESSAGE(entry, name);
    std::vector<std::byte> raw(entry->bytes);
    entry->file->read(entry->offset, raw.data(), raw.size());
    Row out(entry->bytes / dtype_bytes(entry->dtype));
    for (size_t i = 0; i < out.size(); ++i) {
      float value;
      if (entry->dtype == DType::f32) {
        std::memcpy(&value, raw.data() + 4 * i, 4);
      } else {
        uint16_t bits;
        std::memcpy(&bits, raw.data() + 2 * i, 2);
        value = bf16_to_f32(bits);
      }
      out[i] = value;
    }
    return out;
  }
  Row times(const std::string& name, const Row& x) const {
    const Row w = values(name);
    Row out(w.size() / x.size());
    for (size_t n = 0; n < out.size(); ++n)
      for (size_t k = 0; k < x.size(); ++k) out[n] += w[n * x.size() + k] * x[k];
    return out;
  }
  Row project(const std::string& which, const Row& x) const {
    const std::string name = "midlayer.self_attn." + which + "_proj.";
    Row out = times(name + "weight", x);
    if (flag("attention_bias")) add(out, values(name + "bias"));
    return out;
  }
  Row norm(const Row& x, const Row& weight) const {
    double squares = 0;
    for (const double value : x) squares += value * value;
    const double scale = 1 / std::sqrt(squares / x.size() + config_["rms_norm_eps"].get<double>());
    Row out(x.size());
    for (size_t i = 0; i < x.size(); ++i) out[i] = x[i] * scale * weight[i];
    return out;
  }
  void turn(Row& heads, int64_t position) const {
    const size_t head_dim = config_["head_dim"], half = head_dim / 2;
    const double theta = config_.value("rope_theta", 10000.0);
    for (size_t at = 0; at < heads.size(); at += head_dim)
      for (size_t i = 0; i < half; ++i) {
        const double angle = position * std::pow(theta, -2.0 * i / head_dim), a = heads[at + i], b = heads[at + half + i];
        heads[at + i] = a * std::cos(angle) - b * std::sin(angle);
        heads[at + half + i] = b * std::cos(angle) + a * std::sin(angle);
      }
  }
  static void add(Row& to, const Row& what) {
    for (size_t i = 0; i < to.size(); ++i) to[i] += what[i];
  }

  Checkpoint checkpoint_;
  nlohmann::json config_;
  std::vector<Row> k_, v_;
};

}  // namespace

TEST_CASE("draft: the optional keys of the format, each and all, against the layer written out") {
  std::mt19937 random(11);
  const auto with_tensors = [&](auto& tensors) {
    const auto vector = [&](const std::string& name, int64_t n, double centre) {
      testing::StoredTensor tensor{name, "F32", {n}, std::vector<std::byte>(4 * n)};
      for (int64_t i = 0; i < n; ++i) {
        const float value = static_cast<float>(std::normal_distribution<double>(centre, 0.3)(random));
        std::memcpy(tensor.bytes.data() + 4 * i, &value, 4);
      }
      tensors.push_back(std::move(tensor));
    };
    const auto rows_of = [&](const std::string& name) {
      return std::find_if(tensors.begin(), tensors.end(), [&](const auto& tensor) { return tensor.name == name; })->shape[0];
    };
    for (int i = 0; i < 3; ++i) vector("fc_norm." + std::to_string(i) + ".weight", 256, 1);
    for (const std::string which : {"q", "k", "v", "o"}) {
      const std::string name = "midlayer.self_attn." + which + "_proj.";
      vector(name + "bias", rows_of(name + "weight"), 0);
    }
  };
  const std::vector<nlohmann::json> kinds{
      {{"fc_norm", true}, {"attention_bias", true}},
      {{"fc_norm", true}, {"attention_bias", true}, {"norm_output", true}},
      {{"fc_norm", true}, {"attention_bias", true}, {"norm_output", true}, {"norm_before_residual", true}}};
  const std::vector<int32_t> prompt{300, 77, 1241, 9, 2000, 77};
  for (size_t kind = 0; kind < kinds.size(); ++kind) {
    CAPTURE(kinds[kind].dump());
    const std::string folder_name = draft_of_tensors(("keys" + std::to_string(kind)).c_str(), with_tensors);
    std::ifstream file(folder_name + "/config.json");
    nlohmann::json config = nlohmann::json::parse(file);
    file.close();
    config.merge_patch(kinds[kind]);
    std::ofstream(folder_name + "/config.json") << config.dump();

    const DraftFolder folder = open_draft_folder(folder_name, open_model_folder(kNano).config);
    WorldSpec spec;
    spec.kernels = "generic";
    spec.features = {folder.config.feature_layers, 64};
    TestModel model(kNano, spec, kPositions);
    RankRunner& target = model.world->rank(0);
    const auto drafter =
        make_eagle3_drafter(folder, load_draft_weights(folder, model.config, target.backend(), 2, nullptr), target, kLimits);
    DrafterLimits more_rows = kLimits;
    more_rows.max_rows += 10;
    CHECK(make_eagle3_drafter(folder, {}, target, more_rows)->bytes() - drafter->bytes() ==
          10 * eagle3_bytes_per_row(folder.config, model.config.hidden_size));
    Sequence sequence;
    sequence.tokens = prompt;
    sequence.tokens.push_back(run_prompt(model, prompt));
    sequence.pages = {0};
    std::vector<DraftTask> tasks{task_behind(sequence, 3)};
    DraftTrace trace;
    drafter->draft(tasks, &trace);
    REQUIRE(trace.logits.size() == 3);

    PlainDraft plain(folder_name);
    const size_t stride = 3 * model.config.hidden_size, width = folder.config.hidden_size;
    const auto embedding = [&](int32_t token) {
      const auto* row = target.weights().embedding.as<uint16_t>() + static_cast<size_t>(token) * width;
      PlainDraft::Row out;
      for (size_t i = 0; i < width; ++i) out.push_back(bf16_to_f32(row[i]));
      return out;
    };
    REQUIRE(target.weights().embedding_dtype == DType::bf16);
    PlainDraft::Out out;
    const auto check = [&](const PlainDraft::Row& expected, const std::vector<float>& found, const char* what) {
      check_error(row_errors(found, {expected.begin(), expected.end()}, expected.size())[0], kFloat32Bound, what);
    };
    for (size_t position = 0; position < prompt.size(); ++position) {
      const float* row = target.features() + position * stride;
      const PlainDraft::Row hidden = plain.fuse({row, row + stride});
      check(hidden, {trace.fused.begin() + position * width, trace.fused.begin() + (position + 1) * width}, "fused features");
      out = plain.step(hidden, embedding(sequence.tokens[position + 1]), static_cast<int64_t>(position));
    }
    for (int pass = 0; pass < 3; ++pass) {
      check(out.logits, trace.logits[pass], "draft logits");
      out = plain.step(out.next, embedding(tasks[0].drafts[pass]), static_cast<int64_t>(prompt.size()) + pass);
    }
  }
}
