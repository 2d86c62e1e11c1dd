// Feeds the loader mutated checkpoints: sigmoe_fuzz_loader [iterations] [seed]. Anything but success or an EngineError is a
// failure; a sanitizer build also catches what corrupts memory. Iteration i of a seed is the same in every run, so that
// "sigmoe_fuzz_loader 1 SEED" with the seed of a failure repeats it.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <random>
#include <string>

#include "engine/weights/weights.h"
#include "make_checkpoint.h"
#include "recording_backend.h"

#if defined(__SANITIZE_ADDRESS__)
// Half the time of a run would go into recording where each of millions of small blocks was allocated; to see it for one
// failure, repeat that seed with ASAN_OPTIONS=malloc_context_size=30.
extern "C" const char* __asan_default_options() { return "malloc_context_size=1:quarantine_size_mb=4"; }
#endif

namespace {

using namespace sigmoe;
using namespace sigmoe::testing;
using nlohmann::json;

// The process must never ask for more than this at once, whatever a file claims.
constexpr size_t kMaxAllocation = 64u << 20;

using Random = std::mt19937_64;

uint64_t below(Random& random, uint64_t n) { return random() % n; }
bool one_in(Random& random, int n) { return below(random, static_cast<uint64_t>(n)) == 0; }

// What is fed to the loader. Files are bytes, everything else text.
struct Input {
  std::string config, modelopt, index;
  std::vector<std::string> names;
  std::vector<std::vector<std::byte>> files;
};

// A valid checkpoint and its parts, made once and mutated many times.
struct Seed {
  StoredModel model;
  std::string config;
  Shards shards;
  std::vector<std::vector<StoredTensor>> dealt;  // the tensors of each shard
};

std::vector<Seed> make_seeds() {
  std::vector<Seed> seeds;
  const json small = {{"hidden_size", 16},
                      {"intermediate_size", 24},
                      {"moe_intermediate_size", 8},
                      {"num_attention_heads", 4},
                      {"num_key_value_heads", 2},
                      {"vocab_size", 64},
                      {"num_experts", 2},
                      {"n_group", 1},
                      {"topk_group", 1},
                      {"head_dim", 4}};
  for (const Storage storage : kStorages)
    for (const int n_files : {1, 3}) {
      json config = tiny_config(small);
      config["num_hidden_layers"] = 1;  // alone it has experts; with an MTP layer, which always has, it is dense
      config["num_nextn_predict_layers"] = config["first_k_dense_replace"] = n_files == 1 ? 0 : 1;
      if (n_files == 1) config.update({{"num_shared_experts", 0}, {"num_experts", 1}, {"num_experts_per_tok", 1}});
      if (storage == Storage::bf16 && n_files == 1) config["norm_head"] = true;
      if (storage == Storage::f32 && n_files == 1) config["tie_word_embeddings"] = true;
      Seed seed;
      seed.model = store_model(config, random_tensors(config, 1), storage);
      seed.config = seed.model.config.dump();
      seed.shards = shard_model(seed.model.tensors, n_files);
      seed.dealt.resize(n_files);
      for (size_t i = 0; i < seed.model.tensors.size(); ++i) seed.dealt[i % n_files].push_back(seed.model.tensors[i]);
      seeds.push_back(std::move(seed));
    }
  return seeds;
}

// ---- mutations -----------------------------------------------------------------------------------------------------

json odd_value(Random& random) {
  switch (below(random, 16)) {
    case 0: return nullptr;
    case 1: return -1;
    case 2: return 0;
    case 3: return 1;
    case 4: return 7;
    case 5: return 4096;
    case 6: return 1ll << 33;
    case 7: return 1e300;
    case 8: return 0.5;
    case 9: return "";
    case 10: return "re:(a*)*b";
    case 11: return true;
    case 12: return json::array({1, 2, 3});
    case 13: return json::object({{"type", "yarn"}, {"factor", 4.0}, {"num_bits", 4}});
    case 14: return UINT64_MAX;
    default: return false;
  }
}

// Replaces, removes, adds or moves a value somewhere in a document.
void mutate_json(json& value, Random& random) {
  if (value.is_structured() && !value.empty() && !one_in(random, 4)) {
    auto child = value.begin();
    std::advance(child, static_cast<std::ptrdiff_t>(below(random, value.size())));
    if (one_in(random, 12)) {
      value.erase(child);
      return;
    }
    return mutate_json(*child, random);
  }
  if (value.is_number_integer() && one_in(random, 2)) {
    const int64_t step = static_cast<int64_t>(below(random, 5)) - 2;
    value = value.get<int64_t>() + step;
    return;
  }
  if (value.is_object() && one_in(random, 2)) {
    static const char* const names[] = {"dtype",
                                        "shape",
                                        "rope_parameters",
                                        "rope_scaling",
                                        "quantization_config",
                                        "num_nextn_predict_layers",
                                        "use_qk_norm",
                                        "tie_word_embeddings",
                                        "norm_head",
                                        "ignore",
                                        "extra",
                                        "weight_block_size",
                                        "rotary_dim",
                                        "moe_shared_expert_intermediate_size",
                                        "modules_to_not_convert",
                                        "sparsity_config"};
    value[names[below(random, std::size(names))]] = odd_value(random);
    return;
  }
  value = odd_value(random);
}

template <typename Bytes>
void mutate_bytes(Bytes& bytes, Random& random) {
  using Byte = typename Bytes::value_type;
  for (uint64_t n = 1 + below(random, 4); n > 0 && !bytes.empty(); --n) {
    const size_t at = below(random, bytes.size());
    switch (below(random, 5)) {
      case 0: bytes[at] = static_cast<Byte>(random()); break;
      case 1: bytes[at] = static_cast<Byte>(static_cast<int>(bytes[at]) ^ 1 << below(random, 8)); break;
      case 2: bytes.resize(at); break;
      case 3:
        bytes.insert(bytes.begin() + static_cast<std::ptrdiff_t>(at), 1 + below(random, 9),
                     static_cast<Byte>("[{\",:}]0-"[below(random, 9)]));
        break;
      case 4:
        bytes.erase(bytes.begin() + static_cast<std::ptrdiff_t>(at),
                    bytes.begin() + static_cast<std::ptrdiff_t>(std::min(bytes.size(), at + 1 + below(random, 16))));
        break;
    }
  }
}

std::string header_of(const std::vector<std::byte>& file) {
  uint64_t length = 0;
  std::memcpy(&length, file.data(), 8);
  return std::string(reinterpret_cast<const char*>(file.data()) + 8, length);
}

void replace_header(std::vector<std::byte>& file, const std::string& header, uint64_t claimed) {
  const size_t old_end = 8 + header_of(file).size();
  std::vector<std::byte> out(8 + header.size());
  std::memcpy(out.data(), &claimed, 8);
  std::memcpy(out.data() + 8, header.data(), header.size());
  out.insert(out.end(), file.begin() + static_cast<std::ptrdiff_t>(old_end), file.end());
  file = std::move(out);
}

void mutate_header(std::vector<std::byte>& file, Random& random) {
  std::string text = header_of(file);
  switch (below(random, 4)) {
    case 0: {  // well formed, but saying something else
      json header = json::parse(text);
      for (uint64_t n = 1 + below(random, 3); n > 0; --n) mutate_json(header, random);
      text = header.dump();
      break;
    }
    case 1: {  // the usual lies about one tensor
      json header = json::parse(text);
      auto entry = header.begin();
      std::advance(entry, static_cast<std::ptrdiff_t>(below(random, header.size())));
      static const char* const dtypes[] = {"F32", "BF16", "F16", "F8_E4M3", "I32", "I64", "BOOL", "F64"};
      switch (below(random, 4)) {
        case 0: (*entry)["dtype"] = dtypes[below(random, std::size(dtypes))]; break;
        case 1: (*entry)["shape"] = {1ull << below(random, 64), 1ull << below(random, 64)}; break;
        case 2: (*entry)["data_offsets"] = {below(random, 4096), random() >> below(random, 64)}; break;
        case 3: header[one_in(random, 2) ? "lm_head.weight" : "x"] = *entry; break;
      }
      text = header.dump();
      break;
    }
    case 2: mutate_bytes(text, random); break;
    default: text = std::string(below(random, 20000), "[{"[below(random, 2)]); break;
  }
  replace_header(file, text, one_in(random, 8) ? random() >> below(random, 64) : text.size());
}

// Tensors of the model changed before they are written, so that every layer of checks behind the header is reached.
void mutate_tensors(std::vector<StoredTensor>& tensors, Random& random) {
  StoredTensor& tensor = tensors[below(random, tensors.size())];
  switch (below(random, 6)) {
    case 0: tensors.erase(tensors.begin() + (&tensor - tensors.data())); break;
    case 1: tensor.name += one_in(random, 2) ? ".extra" : ".k_scale"; break;
    case 2: std::reverse(tensor.shape.begin(), tensor.shape.end()); break;
    case 3:
      if (tensor.dtype == "BF16") tensor.dtype = "F16";
      break;
    case 4:
      for (std::byte& byte : tensor.bytes) byte = static_cast<std::byte>(random());
      break;
    case 5:
      std::fill(tensor.bytes.begin(), tensor.bytes.end(), std::byte{0xff});  // NaN in every float format
      break;
  }
}

const char* mutate(const Seed& seed, Input& input, Random& random) {
  input.config = seed.config;
  input.names = seed.shards.names;
  if (seed.shards.files.size() > 1 || one_in(random, 4)) input.index = seed.shards.index;  // a single file may do without
  input.files = seed.shards.files;
  std::vector<std::byte>& file = input.files[below(random, input.files.size())];
  switch (below(random, 10)) {
    case 0: return "nothing";
    case 1: {
      json config = seed.model.config;
      for (uint64_t n = 1 + below(random, 3); n > 0; --n) mutate_json(config, random);
      input.config = config.dump();
      return "config values";
    }
    case 2: mutate_bytes(input.config, random); return "config bytes";
    case 3: {
      json modelopt = {{"quantization", {{"quant_algo", "FP8"}, {"exclude_modules", {"lm_head", "*.gate*"}}}}};
      mutate_json(modelopt, random);
      input.modelopt = modelopt.dump();
      return "hf_quant_config";
    }
    case 4: mutate_header(file, random); return "header";
    case 5: mutate_bytes(file, random); return "file bytes";
    case 6: {
      json index = json::parse(seed.shards.index);
      if (one_in(random, 2))
        mutate_json(index, random);
      else
        index["weight_map"].begin().value() = input.names[below(random, input.names.size())];
      input.index = index.dump();
      if (one_in(random, 3)) mutate_bytes(input.index, random);
      return "index";
    }
    case 7: {
      for (std::byte& byte : file) byte = static_cast<std::byte>(random());
      file.resize(below(random, file.size() + 1));
      return "noise";
    }
    default: {
      const size_t shard = below(random, input.files.size());
      std::vector<StoredTensor> tensors = seed.dealt[shard];
      for (uint64_t n = 1 + below(random, 2); n > 0; --n) mutate_tensors(tensors, random);
      input.files[shard] = safetensors_bytes(tensors);
      input.index.clear();  // names have changed; an index that disagrees is another mutation
      return "tensors";
    }
  }
}

// ---- one run -------------------------------------------------------------------------------------------------------

// A backend that refuses absurd sizes, which the loader must never ask for.
class BoundedBackend : public RecordingBackend {
 public:
  DeviceBuffer alloc(size_t bytes, const char* what) override {
    SIGMOE_CHECK(bytes <= kMaxAllocation, std::string("allocation bomb: ") + what);
    return RecordingBackend::alloc(bytes, what);
  }
  std::unique_ptr<LinearBuilder> begin_linear(const LinearDesc& desc) override {
    SIGMOE_CHECK(static_cast<uint64_t>(desc.n) * static_cast<uint64_t>(desc.k) <= kMaxAllocation,
                 "allocation bomb: " + desc.name);
    return RecordingBackend::begin_linear(desc);
  }
};

// "loaded", or the stage that refused and its code.
std::string outcome_of(Input& input, Random& random) {
  const char* stage = "config";
  try {
    const ModelConfig config = parse_model_config(input.config, input.modelopt);
    stage = "index";
    const ShardIndex index = input.index.empty() ? ShardIndex() : parse_shard_index(input.index);
    stage = "files";
    std::vector<std::unique_ptr<FileReader>> files;
    for (size_t i = 0; i < input.files.size(); ++i) files.push_back(memory_file(input.names[i], std::move(input.files[i])));
    const Checkpoint checkpoint = Checkpoint::from_files(std::move(files), index.empty() ? nullptr : &index);
    stage = "tensors";
    check_tensors(config, checkpoint);
    stage = "weights";
    BoundedBackend backend;
    LoadOptions options;
    options.world = static_cast<int>(1 + below(random, 4));  // three ranks do not divide four heads
    options.rank = static_cast<int>(below(random, static_cast<uint64_t>(options.world)));
    options.with_mtp = one_in(random, 2);
    options.n_threads = one_in(random, 50) ? 2 : 1;
    load_weights(config, checkpoint, backend, options);
    return "loaded";
  } catch (const EngineError& error) {
    if (error.code() == ErrorCode::internal) throw;  // a broken promise of ours, not a bad file
    if (std::string(error.what()).size() > 20000)
      throw std::length_error("a message of " + std::to_string(std::string(error.what()).size()) + " bytes");
    return std::string(stage) + " " + error_code_name(error.code());
  }
}

uint64_t seed_of_iteration(uint64_t seed, uint64_t i) { return seed + i * 0x9e3779b97f4a7c15u; }

}  // namespace

int main(int argc, char** argv) {
  const uint64_t iterations = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 100000;
  const uint64_t seed = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 1;
  const std::vector<Seed> seeds = make_seeds();
  const auto start = std::chrono::steady_clock::now();
  std::map<std::string, uint64_t> outcomes, unchanged;
  double slowest = 0;
  for (uint64_t i = 0; i < iterations; ++i) {
    const uint64_t iteration_seed = seed_of_iteration(seed, i);
    Random random(iteration_seed);
    Input input;
    const char* mutation = mutate(seeds[below(random, seeds.size())], input, random);
    const auto begin = std::chrono::steady_clock::now();
    try {
      const std::string outcome = outcome_of(input, random);
      ++outcomes[outcome];
      if (std::strcmp(mutation, "nothing") == 0) ++unchanged[outcome];
    } catch (const std::exception& error) {
      std::printf("FAILED after '%s': %s\nrepeat with: sigmoe_fuzz_loader 1 %llu\n", mutation, error.what(),
                  static_cast<unsigned long long>(iteration_seed));
      return 1;
    }
    slowest = std::max(slowest, std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
  }
  for (const auto& [outcome, count] : outcomes)
    std::printf("%-32s %llu\n", outcome.c_str(), static_cast<unsigned long long>(count));
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  std::printf("%llu mutated checkpoints, %zu outcomes, slowest %.0f ms, %.1f s\n", static_cast<unsigned long long>(iterations),
              outcomes.size(), slowest * 1e3, seconds);
  // A fuzzer that stops reaching a check tests nothing: in a long run every stage must both pass and refuse.
  if (iterations >= 10000)
    for (const char* wanted : {"config ERR_BAD_CHECKPOINT", "config ERR_UNSUPPORTED", "index ERR_BAD_CHECKPOINT",
                               "files ERR_BAD_CHECKPOINT", "tensors ERR_BAD_CHECKPOINT", "tensors ERR_UNSUPPORTED",
                               "weights ERR_BAD_CHECKPOINT", "weights ERR_UNSUPPORTED", "loaded"})
      if (!outcomes.contains(wanted)) {
        std::printf("FAILED: no input ended in '%s'\n", wanted);
        return 1;
      }
  // What was not mutated must load, or be refused only for heads that do not divide over the ranks or absent MTP layers.
  for (const auto& [outcome, count] : unchanged)
    if (outcome != "loaded" && outcome != "weights ERR_UNSUPPORTED") {
      std::printf("FAILED: %llu valid checkpoints ended in '%s'\n", static_cast<unsigned long long>(count), outcome.c_str());
      return 1;
    }
  return 0;
}
