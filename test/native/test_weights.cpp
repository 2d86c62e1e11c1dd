#include <algorithm>
#include <atomic>
#include <mutex>
#include <numeric>

#include "doctest/doctest.h"
#include "engine/weights/synthetic.h"
#include "engine/weights/weights.h"
#include "make_checkpoint.h"
#include "recording_backend.h"

using namespace sigmoe;
using namespace sigmoe::testing;
using nlohmann::json;

namespace {

const RecordedWeight& recorded(const std::unique_ptr<LinearWeight>& weight) {
  return static_cast<const RecordedWeight&>(*weight);
}

std::vector<float> floats(const DeviceBuffer& buffer) { return {buffer.as<float>(), buffer.as<float>() + buffer.bytes() / 4}; }

// Rows [r0, r1), columns [c0, c1) of a tensor.
std::vector<float> cut(const FloatTensor& tensor, int64_t r0, int64_t r1, int64_t c0, int64_t c1) {
  std::vector<float> out;
  for (int64_t r = r0; r < r1; ++r)
    out.insert(out.end(), tensor.values.begin() + r * tensor.shape[1] + c0, tensor.values.begin() + r * tensor.shape[1] + c1);
  return out;
}

void append(std::vector<float>& out, const std::vector<float>& more) { out.insert(out.end(), more.begin(), more.end()); }

// Columns of (n, widths[0]), (n, widths[1]), ... side by side.
std::vector<float> join_columns(const std::vector<std::vector<float>>& parts, int64_t n) {
  std::vector<float> out;
  for (int64_t r = 0; r < n; ++r)
    for (const auto& part : parts) {
      const int64_t width = static_cast<int64_t>(part.size()) / n;
      out.insert(out.end(), part.begin() + r * width, part.begin() + (r + 1) * width);
    }
  return out;
}

struct World {
  World(const StoredModel& model, int world, bool with_mtp = true, int n_files = 1)
      : truth(model.truth), config(parse_model_config(model.config.dump())) {
    const Checkpoint checkpoint = memory_checkpoint(model, n_files);
    for (int rank = 0; rank < world; ++rank) {
      LoadOptions options;
      options.rank = rank;
      options.world = world;
      options.with_mtp = with_mtp;
      options.n_threads = 3;
      ranks.push_back(load_weights(config, checkpoint, backend, options));
    }
  }
  int size() const { return static_cast<int>(ranks.size()); }

  void check_layer(const std::string& at, const std::function<const LayerWeights&(const ModelWeights&)>& layer,
                   bool dense) const {
    const int64_t D = config.hidden_size, Dh = config.head_dim, H = config.n_heads, G = config.n_kv_heads;
    const FloatTensor& qkv = truth.at(at + "attention.query_key_value.weight");
    std::vector<std::vector<float>> outs;
    for (int rank = 0; rank < size(); ++rank) {
      const LayerWeights& mine = layer(ranks[rank]);
      const HeadShard heads = shard_heads(config, rank, size());
      std::vector<float> expected = cut(qkv, heads.q.begin * Dh, heads.q.end * Dh, 0, D);
      append(expected, cut(qkv, (H + heads.kv.begin) * Dh, (H + heads.kv.end) * Dh, 0, D));
      append(expected, cut(qkv, (H + G + heads.kv.begin) * Dh, (H + G + heads.kv.end) * Dh, 0, D));
      CHECK(recorded(mine.qkv).values == expected);
      outs.push_back(recorded(mine.attn_out).values);
      CHECK(floats(mine.input_norm) == truth.at(at + "input_layernorm.weight").values);
      CHECK(floats(mine.k_norm) == truth.at(at + "attention.key_layernorm.weight").values);
      CHECK(mine.dense == dense);
      CHECK(mine.experts.gate_up.size() == static_cast<size_t>(dense ? 0 : config.n_experts));
      if (dense) continue;
      CHECK(recorded(mine.router).values == truth.at(at + "mlp.gate.weight").values);
      CHECK(floats(mine.router_bias) == truth.at(at + "mlp.gate.expert_bias").values);
    }
    CHECK(join_columns(outs, D) == truth.at(at + "attention.dense.weight").values);

    const auto check_mlp = [&](const std::string& mlp, auto&& pick) {
      std::vector<float> gate, up;
      std::vector<std::vector<float>> downs;
      for (const ModelWeights& weights : ranks) {
        const auto [gate_up, down] = pick(layer(weights));
        REQUIRE((gate_up == nullptr) == (down == nullptr));
        if (!gate_up) continue;
        const auto& both = static_cast<const RecordedWeight&>(*gate_up);
        CHECK(both.desc.gate_up);
        const auto half = both.values.begin() + static_cast<std::ptrdiff_t>(both.values.size() / 2);
        gate.insert(gate.end(), both.values.begin(), half);
        up.insert(up.end(), half, both.values.end());
        downs.push_back(static_cast<const RecordedWeight&>(*down).values);
      }
      CHECK(gate == truth.at(mlp + "gate_proj.weight").values);
      CHECK(up == truth.at(mlp + "up_proj.weight").values);
      CHECK(join_columns(downs, D) == truth.at(mlp + "down_proj.weight").values);
    };
    check_mlp(at + (dense ? "mlp." : "mlp.shared_experts."),
              [](const LayerWeights& l) { return std::pair(l.experts.shared_gate_up, l.experts.shared_down); });
    for (int64_t e = 0; !dense && e < config.n_experts; ++e)
      check_mlp(at + "mlp.experts." + std::to_string(e) + ".",
                [e](const LayerWeights& l) { return std::pair(l.experts.gate_up[e], l.experts.down[e]); });
  }

  void check_all(bool with_mtp = true) const {
    for (int64_t i = 0; i < config.n_layers; ++i)
      check_layer(
          "model.layers." + std::to_string(i) + ".", [i](const ModelWeights& w) -> const LayerWeights& { return w.layers[i]; },
          i == 0);
    std::vector<float> head;
    for (const ModelWeights& weights : ranks) {
      append(head, recorded(weights.lm_head).values);
      CHECK(std::accumulate(weights.vocab_widths.begin(), weights.vocab_widths.end(), int64_t{0}) == config.vocab_size);
      CHECK(floats(weights.final_norm) == truth.at("model.norm.weight").values);
      CHECK(weights.mtp.size() == (with_mtp ? 1u : 0u));
      const auto& table = truth.at("model.word_embeddings.weight").values;
      for (size_t i = 0; i < table.size(); ++i)
        if (const float value = weights.embedding_dtype == DType::f32 ? weights.embedding.as<float>()[i]
                                                                      : bf16_to_f32(weights.embedding.as<uint16_t>()[i]);
            value != table[i])
          FAIL_CHECK("embedding element " << i << " is " << value << ", must be " << table[i]);
    }
    CHECK(head == truth.at(config.tied_embeddings ? "model.word_embeddings.weight" : "lm_head.weight").values);
    if (!with_mtp) return;
    const std::string at = "model.layers." + std::to_string(config.n_layers) + ".";
    check_layer(
        at, [](const ModelWeights& w) -> const LayerWeights& { return w.mtp[0].layer; }, false);
    CHECK(recorded(ranks[0].mtp[0].join).values == truth.at(at + "eh_proj.weight").values);
    CHECK(floats(ranks[0].mtp[0].hidden_norm) == truth.at(at + "hnorm.weight").values);
  }

  FloatTensors truth;
  ModelConfig config;
  RecordingBackend backend;
  std::vector<ModelWeights> ranks;
};

StoredModel tiny_model(Storage storage, const json& changes = json::object()) {
  const json config = tiny_config(changes);
  return store_model(config, random_tensors(config, 5), storage);
}

// The error of loading a model after `change`.
std::string failure(StoredModel model, const std::function<void(StoredModel&)>& change, ErrorCode* code = nullptr,
                    const LoadOptions& options = {}) {
  change(model);
  try {
    const ModelConfig config = parse_model_config(model.config.dump());
    RecordingBackend backend;
    load_weights(config, memory_checkpoint(model), backend, options);
  } catch (const EngineError& error) {
    if (code) *code = error.code();
    return error.what();
  }
  return "no error";
}

StoredTensor& find(StoredModel& model, const std::string& name) {
  for (StoredTensor& tensor : model.tensors)
    if (tensor.name == name) return tensor;
  throw std::runtime_error("no tensor " + name);
}

bool has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST_CASE("weights: every format over every world reassembles to the whole") {
  for (const Storage storage : kStorages)
    for (const int world : {1, 2, 4, 8}) {
      CAPTURE(storage_name(storage));
      CAPTURE(world);
      World(tiny_model(storage), world).check_all();
    }
}

namespace {

// Counts how often each byte of a file is read.
class CountedFile : public FileReader {
 public:
  CountedFile(std::vector<std::byte> bytes, std::vector<std::atomic<int>>& counts)
      : file_(memory_file("counted", std::move(bytes))), counts_(counts) {}
  const std::string& path() const override { return file_->path(); }
  uint64_t size() const override { return file_->size(); }
  void check_unchanged() const override {}
  void read(uint64_t offset, void* out, size_t bytes) const override {
    for (size_t i = 0; i < bytes; ++i) ++counts_[offset + i];
    file_->read(offset, out, bytes);
  }

 private:
  std::unique_ptr<FileReader> file_;
  std::vector<std::atomic<int>>& counts_;
};

}  // namespace

TEST_CASE("weights: ranks that load together read every byte once, and hold what they would hold alone") {
  for (const Storage storage : {Storage::f32, Storage::bf16, Storage::fp8_block, Storage::fp8_channel, Storage::int4_group})
    for (const bool expert_parallel : {false, true})
      for (const int world : {1, 2, 4, 8}) {
        CAPTURE(sigmoe::testing::storage_name(storage));
        CAPTURE(world);
        CAPTURE(expert_parallel);
        // One tensor of some megabytes, so that it is read in pieces.
        const StoredModel model = tiny_model(storage, json{{"intermediate_size", 9216}});
        const ModelConfig config = parse_model_config(model.config.dump());
        const std::vector<std::byte> bytes = safetensors_bytes(model.tensors);
        std::vector<std::atomic<int>> counts(bytes.size());
        std::vector<std::unique_ptr<FileReader>> files;
        files.push_back(std::make_unique<CountedFile>(bytes, counts));
        const Checkpoint checkpoint = Checkpoint::from_files(std::move(files));
        for (auto& count : counts) count = 0;  // of the header
        RecordingBackend backend;
        std::vector<std::pair<int, Backend*>> ranks;
        for (int rank = 0; rank < world; ++rank) ranks.emplace_back(rank, &backend);
        LoadOptions options;
        options.world = world;
        options.expert_parallel = expert_parallel;
        options.with_mtp = true;
        options.n_threads = 3;
        const std::vector<ModelWeights> together = load_ranks(config, checkpoint, ranks, options);
        int most = 0, least = 1000;
        for (const auto& [name, tensor] : checkpoint.tensors())
          for (uint64_t i = tensor.offset; i < tensor.offset + tensor.bytes; ++i)
            most = std::max<int>(most, counts[i]), least = std::min<int>(least, counts[i]);
        CHECK(most == 1);
        CHECK(least == 1);
        uint64_t kept = 0;
        for (int rank = 0; rank < world; ++rank) {
          options.rank = rank;
          const ModelWeights alone = load_weights(config, checkpoint, backend, options);
          CHECK(alone.bytes == together[rank].bytes);
          for (size_t i = 0; i < alone.layers.size(); ++i) {
            const LayerWeights &a = alone.layers[i], &b = together[rank].layers[i];
            if (a.attn_out) CHECK(recorded(a.attn_out).values == recorded(b.attn_out).values);
            for (size_t e = 0; e < a.down.size(); ++e) {
              REQUIRE((a.down[e] == nullptr) == (b.down[e] == nullptr));
              if (a.down[e]) CHECK(recorded(a.down[e]).values == recorded(b.down[e]).values);
            }
          }
          kept += rank_bytes(config, checkpoint, rank, world, expert_parallel);
        }
        CHECK(kept + static_cast<uint64_t>(world) >= checkpoint.total_bytes());
        if (world == 1) CHECK(kept == checkpoint.total_bytes());
      }
}

TEST_CASE("weights: worlds that are no power of two") {
  for (const Storage storage : kStorages) {
    CAPTURE(storage_name(storage));
    World(tiny_model(storage, {{"num_attention_heads", 6}, {"num_key_value_heads", 3}}), 3).check_all();
  }
}

TEST_CASE("weights: shards of a checkpoint may split layers anywhere") {
  World(tiny_model(Storage::fp8_block), 2, true, 5).check_all();
}

TEST_CASE("weights: MTP layers are left alone unless asked for, and may be absent") {
  World(tiny_model(Storage::bf16), 1, false).check_all(false);
  StoredModel model = tiny_model(Storage::bf16);
  std::erase_if(model.tensors, [](const StoredTensor& tensor) { return tensor.name.starts_with("model.layers.2."); });
  World(model, 1, false).check_all(false);
  ErrorCode code{};
  LoadOptions options;
  options.with_mtp = true;
  CHECK(has(failure(
                model, [](StoredModel&) {}, &code, options),
            "model.layers.2."));
  CHECK(code == ErrorCode::not_found);
}

TEST_CASE("weights: tied embeddings and a normalised head") {
  World(tiny_model(Storage::bf16, {{"tie_word_embeddings", true}}), 2).check_all();
  const StoredModel model = tiny_model(Storage::f32, {{"norm_head", true}});
  const World world(model, 2);
  const FloatTensor& head = model.truth.at("lm_head.weight");
  const int64_t V = head.shape[0], D = head.shape[1];
  std::vector<float> found = recorded(world.ranks[0].lm_head).values;
  append(found, recorded(world.ranks[1].lm_head).values);
  for (int64_t d = 0; d < D; ++d) {
    double squares = 0, found_squares = 0;
    for (int64_t v = 0; v < V; ++v) {
      squares += static_cast<double>(head.values[v * D + d]) * head.values[v * D + d];
      found_squares += static_cast<double>(found[v * D + d]) * found[v * D + d];
    }
    CHECK(found_squares == doctest::Approx(1.0).epsilon(1e-5));
    CHECK(found[3 * D + d] == doctest::Approx(head.values[3 * D + d] / std::sqrt(squares)).epsilon(1e-5));
  }
}

TEST_CASE("weights: FP8 shares of a width are whole blocks and may be empty") {
  const World world(tiny_model(Storage::fp8_block), 4);  // expert width 40 in blocks of 32: 32, 8, nothing, nothing
  CHECK(recorded(world.ranks[0].layers[1].down[0]).desc.k == 32);
  CHECK(recorded(world.ranks[1].layers[1].down[0]).desc.k == 8);
  CHECK(world.ranks[2].layers[1].down[0] == nullptr);
  CHECK(world.ranks[3].layers[1].experts.gate_up[3] == nullptr);
}

TEST_CASE("weights: a slice that starts inside a scale block has a short first block") {
  const World world(tiny_model(Storage::int4_group), 8);  // one head of 8 per rank, groups of 16
  for (int rank = 0; rank < 8; ++rank)
    CHECK(recorded(world.ranks[rank].layers[0].attn_out).desc.k_bounds == std::vector<int64_t>{0, 8});
  const World fp8(tiny_model(Storage::fp8_block, {{"head_dim", 20}, {"partial_rotary_factor", 0.2}}), 4);
  CHECK(recorded(fp8.ranks[1].layers[0].attn_out).desc.k_bounds == std::vector<int64_t>{0, 24, 40});
}

TEST_CASE("weights: one error lists all that is wrong") {
  ErrorCode code{};
  const std::string found = failure(
      tiny_model(Storage::fp8_block),
      [](StoredModel& model) {
        std::erase_if(model.tensors, [](const StoredTensor& t) {
          return t.name == "model.norm.weight" || t.name.starts_with("model.layers.1.mlp.experts.3.") ||
                 t.name == "model.layers.0.mlp.up_proj.weight_scale_inv";
        });
        model.tensors.push_back({"model.surprise", "F32", {1}, std::vector<std::byte>(4)});
        StoredTensor& norm = find(model, "model.layers.0.input_layernorm.weight");
        norm.dtype = "I8";
        norm.shape = {96};
        StoredTensor& qkv = find(model, "model.layers.1.attention.query_key_value.weight");
        std::swap(qkv.shape[0], qkv.shape[1]);
      },
      &code);
  CHECK(code == ErrorCode::bad_checkpoint);
  for (const char* part :
       {"3 tensors absent", "model.norm.weight", "model.layers.1.mlp.experts.3.*",
        "model.layers.0.mlp.up_proj.weight_scale_inv", "1 tensors unexpected: model.surprise", "2 tensors of wrong shape",
        "must be [96, 48]", "1 tensors of wrong dtype: model.layers.0.input_layernorm.weight is I8"})
    CHECK_MESSAGE(has(found, part), found);
}

TEST_CASE("weights: long lists end in a count, absent layers are one line") {
  const std::string found = failure(tiny_model(Storage::bf16), [](StoredModel& model) {
    for (int i = 0; i < 50; ++i) model.tensors.push_back({"extra." + std::to_string(i), "F32", {1}, std::vector<std::byte>(4)});
    model.config["num_hidden_layers"] = 900;  // the MTP layer is now an ordinary one with four tensors too many
  });
  CHECK(has(found, "54 tensors unexpected"));
  CHECK(has(found, "and 34 more"));
  CHECK(has(found, "897 tensors absent: model.layers.3.*"));
}

TEST_CASE("weights: config and tensors that contradict each other") {
  // The config says BF16, the tensors are FP8.
  CHECK(has(failure(tiny_model(Storage::fp8_block), [](StoredModel& model) { model.config.erase("quantization_config"); }),
            "is F8_E4M3, must be BF16 or F32"));
  // The config says blocks, the scales are per channel.
  const std::string found = failure(tiny_model(Storage::fp8_channel), [](StoredModel& model) {
    model.config["quantization_config"] = {{"quant_method", "fp8"}, {"weight_block_size", {32, 32}}};
  });
  CHECK(has(found, "weight_scale_inv"));
  CHECK(has(found, "weights by config: FP8 blocks"));
  // Scales of other blocks than the config says.
  CHECK(has(failure(tiny_model(Storage::fp8_block),
                    [](StoredModel& model) {
                      model.config["quantization_config"]["weight_block_size"] = {128, 128};
                    }),
            "wrong shape"));
  // A packed tensor that says it is another.
  CHECK(has(
      failure(tiny_model(Storage::int4_group),
              [](StoredModel& model) { find(model, "model.layers.0.attention.dense.weight_shape").bytes[0] = std::byte{7}; }),
      "weight_shape says [7, 64]"));
  // Gate and up projections in different formats cannot run as one product.
  ErrorCode code{};
  const std::string mixed = failure(
      tiny_model(Storage::fp8_channel),
      [](StoredModel& model) {
        model.config["quantization_config"]["ignore"].push_back("re:.*layers\\.0\\.mlp\\.up_proj");
        const json config = tiny_config();
        const StoredModel plain = store_model(config, random_tensors(config, 5), Storage::bf16);
        std::erase_if(model.tensors, [](const StoredTensor& t) { return t.name.starts_with("model.layers.0.mlp.up_proj."); });
        for (const StoredTensor& tensor : plain.tensors)
          if (tensor.name == "model.layers.0.mlp.up_proj.weight") model.tensors.push_back(tensor);
      },
      &code);
  CHECK(has(mixed, "model.layers.0.mlp.gate_proj is stored as FP8 per channel"));
  CHECK(code == ErrorCode::unsupported);
}

TEST_CASE("weights: F16 is refused by name") {
  ErrorCode code{};
  CHECK(has(failure(
                tiny_model(Storage::bf16),
                [](StoredModel& model) {
                  for (StoredTensor& t : model.tensors)
                    if (t.dtype == "BF16") t.dtype = "F16";
                },
                &code),
            "F16"));
  CHECK(code == ErrorCode::unsupported);
}

TEST_CASE("weights: tensors that are not needed are ignored") {
  StoredModel model = tiny_model(Storage::bf16);
  for (const char* name : {"model.layers.0.attention.rotary_emb.inv_freq", "v_head.summary.weight",
                           "model.layers.2.shared_head.head.weight", "model.layers.2.embed_tokens.weight",
                           "model.layers.0.attention.k_scale", "model.layers.1.mlp.experts.0.up_proj.input_scale"})
    model.tensors.push_back({name, "F32", {1}, std::vector<std::byte>(4)});
  CHECK(failure(model, [](StoredModel&) {}) == "no error");
}

TEST_CASE("weights: a NaN anywhere is refused by name") {
  const std::vector<std::byte> nan = {std::byte{0xff}, std::byte{0xff}, std::byte{0xff}, std::byte{0xff}};
  for (const char* name : {"model.word_embeddings.weight", "model.norm.weight", "model.layers.0.mlp.up_proj.weight",
                           "model.layers.1.mlp.gate.expert_bias", "model.layers.0.mlp.up_proj.weight_scale_inv"}) {
    CAPTURE(name);
    const std::string found = failure(tiny_model(Storage::fp8_block), [&](StoredModel& model) {
      auto& bytes = find(model, name).bytes;
      std::copy(nan.begin(), nan.end(), bytes.begin());
    });
    CHECK(has(found, "NaN"));
  }
}

TEST_CASE("weights: progress rises to the total, and loading can be aborted") {
  const StoredModel model = tiny_model(Storage::fp8_block);
  const ModelConfig config = parse_model_config(model.config.dump());
  const Checkpoint checkpoint = memory_checkpoint(model, 3);
  RecordingBackend backend;
  LoadOptions options;
  std::vector<LoadProgress> seen;
  std::mutex mutex;
  options.with_mtp = true;
  options.on_progress = [&](const LoadProgress& progress) {
    const std::lock_guard lock(mutex);
    seen.push_back(progress);
  };
  load_weights(config, checkpoint, backend, options);
  REQUIRE(!seen.empty());
  CHECK(seen.back().bytes_done == seen.back().bytes_total);
  CHECK(seen.back().bytes_total >= checkpoint.total_bytes());  // scales of a fused product may be read for each part
  for (size_t i = 1; i < seen.size(); ++i) CHECK(seen[i].bytes_done > seen[i - 1].bytes_done);
  const std::atomic<bool> cancelled = true;
  options.cancelled = &cancelled;
  try {
    load_weights(config, checkpoint, backend, options);
    FAIL("was not aborted");
  } catch (const EngineError& error) {
    CHECK(error.code() == ErrorCode::aborted);
  }
}

TEST_CASE("weights: shard_range covers, in order, and evenly") {
  for (const int64_t size : {1, 7, 40, 128, 320, 1024})
    for (const int64_t unit : {1, 8, 16, 128})
      for (const int world : {1, 2, 3, 4, 8}) {
        int64_t at = 0, least = INT64_MAX, most = 0;
        for (int rank = 0; rank < world; ++rank) {
          const Shard shard = shard_range(size, unit, rank, world);
          CHECK(shard.begin == at);
          CHECK((shard.end % unit == 0 || shard.end == size));
          least = std::min(least, shard.size());
          most = std::max(most, shard.size());
          at = shard.end;
        }
        CHECK(at == size);
        CHECK(most - least < 2 * unit);  // one unit, and the ragged end
      }
}

TEST_CASE("weights: heads that do not divide are refused") {
  const ModelConfig config = parse_model_config(tiny_config().dump());  // 8 query heads, 2 KV heads
  CHECK_THROWS_AS(shard_heads(config, 0, 3), EngineError);
  CHECK_THROWS_AS(shard_heads(config, 0, 12), EngineError);
  CHECK(shard_heads(config, 10, 16).q.begin == 5);  // more ranks than heads: every second has one
  CHECK(shard_heads(config, 10, 16).q.size() == 1);
  CHECK(shard_heads(config, 10, 16).kv.begin == 1);
  CHECK(shard_heads(config, 11, 16).q.size() == 0);
  CHECK(shard_heads(config, 11, 16).kv.size() == 0);
  CHECK(shard_heads(config, 3, 8).kv.begin == 0);
  CHECK(shard_heads(config, 4, 8).kv.begin == 1);
}

TEST_CASE("weights: parameter counts match the published ones") {
  ModelConfig flash;
  flash.vocab_size = 157184, flash.hidden_size = 4096, flash.n_layers = 32, flash.n_dense_layers = 1, flash.n_mtp_layers = 1;
  flash.n_heads = 32, flash.n_kv_heads = 4, flash.head_dim = 128, flash.dense_width = 9216, flash.expert_width = 1024;
  flash.shared_width = 1024, flash.n_experts = 256, flash.n_active = 8;
  const ParameterCount count = count_parameters(flash);
  CHECK(count.total() == 102889697280);
  CHECK(count.active() == 4864344064);
  CHECK(count.mtp == 3306180864);
  CHECK(count.norms == 274432);
}

TEST_CASE("weights: the bundled model and every golden checkpoint load") {
  std::vector<std::string> folders = {std::string(SIGMOE_SOURCE_DIR) + "/models/nano"};
  for (const char* name : {"base", "fp8-block", "fp8-ragged", "full-rotary", "mtp", "no-qk-norm", "real-heads", "real-routing",
                           "single-group", "two-dense", "two-shared", "yarn"})
    folders.push_back(std::string(SIGMOE_GOLDEN_DIR) + "/random/" + name);
  for (const std::string& folder : folders) {
    CAPTURE(folder);
    const auto file = open_file(folder + "/config.json");
    std::string text(file->size(), '\0');
    file->read(0, text.data(), text.size());
    const ModelConfig config = parse_model_config(text);
    const Checkpoint checkpoint = Checkpoint::open(folder);
    RecordingBackend backend;
    for (const int world : {1, 2}) {
      LoadOptions options;
      options.world = world;
      options.rank = world - 1;
      options.with_mtp = config.n_mtp_layers > 0;
      CHECK(load_weights(config, checkpoint, backend, options).layers.size() == static_cast<size_t>(config.n_layers));
    }
  }
}

TEST_CASE("synthetic: shapes by name") {
  const ModelConfig mini = shape_config("ling-mini-2.0:5");
  CHECK(mini.n_layers == 5);
  CHECK(mini.n_dense_layers == 1);
  CHECK(mini.hidden_size == 2048);
  CHECK(count_parameters(shape_config("ling-mini-2.0")).total() == 16255638528);
  CHECK(count_parameters(shape_config("ling-flash-2.0")).total() == 102889697280);
  CHECK(shape_config("nano").n_experts == 16);
  for (const char* bad :
       {"", "nano:", "nano:0", "nano:-1", "nano:x", "nano:3x", "nano:99999999999", "ling:3", "ling-mini-2.0:129"})
    CHECK_THROWS_AS_MESSAGE(shape_config(bad), EngineError, bad);
}

TEST_CASE("synthetic: weights are normal with standard deviation 0.02 in every format") {
  const ModelConfig config = shape_config("nano:2");
  for (const WeightFormat format : {WeightFormat::f32, WeightFormat::bf16, WeightFormat::fp8, WeightFormat::int4}) {
    CAPTURE(weight_format_name(format));
    RecordingBackend backend;
    const ModelWeights weights = synthetic_weights(config, format, backend, 7, 2);
    const LayerWeights& layer = weights.layers[1];
    for (const auto* weight : {&layer.qkv, &layer.gate_up[3], &layer.down[15], &layer.router, &weights.lm_head}) {
      const std::vector<float>& values = recorded(*weight).values;
      double sum = 0, squares = 0;
      for (const float value : values) sum += value, squares += static_cast<double>(value) * value;
      const double n = static_cast<double>(values.size());
      CHECK(sum / n == doctest::Approx(0.0).epsilon(0.02 * 5 / std::sqrt(n)));
      CHECK(std::sqrt(squares / n) == doctest::Approx(0.02).epsilon(0.05));
    }
    CHECK(recorded(layer.qkv).desc.format == format);
    CHECK(recorded(weights.lm_head).desc.format == (format == WeightFormat::f32 ? WeightFormat::f32 : WeightFormat::bf16));
    CHECK(recorded(layer.gate_up[3]).values != recorded(layer.gate_up[4]).values);
    CHECK(floats(layer.input_norm)[0] == 1.0f);
    const ModelWeights again = synthetic_weights(config, format, backend, 7, 1);  // the seed decides, not the threads
    CHECK(recorded(again.layers[1].down[15]).values == recorded(layer.down[15]).values);
  }
}
