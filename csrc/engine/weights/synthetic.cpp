// Synthetic weights are a checkpoint whose files make up their bytes when they are read, so they take the same path into a
// backend as real ones.
#include "engine/weights/synthetic.h"

#include <charconv>
#include <cmath>
#include <cstring>
#include <thread>

#include "engine/checkpoint/checkpoint_spec.h"
#include "engine/weights/weights.h"

namespace sigmoe {
namespace {

constexpr double kStd = 0.02;

uint64_t mix(uint64_t x) {  // the finaliser of SplitMix64
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

// Standard normal quantiles at the middles of 2^bits equal parts.
std::vector<float> normal_quantiles(int bits) {
  const int n = 1 << bits;
  std::vector<float> out(n);
  for (int i = 0; i < n / 2; ++i) {
    const double p = (i + 0.5) / n;
    double low = -10.0, high = 0.0;
    for (int step = 0; step < 48; ++step) {
      const double middle = (low + high) / 2;
      (0.5 * std::erfc(-middle * M_SQRT1_2) < p ? low : high) = middle;
    }
    out[i] = static_cast<float>(low);
    out[n - 1 - i] = static_cast<float>(-low);
  }
  return out;
}

// Endless bytes that depend on nothing but the seed and their offset.
class SyntheticFile : public FileReader {
 public:
  const std::string& path() const override { return path_; }
  uint64_t size() const override { return UINT64_MAX; }
  void check_unchanged() const override {}

  // The next `bytes` not yet given to a tensor, at a multiple of eight.
  uint64_t reserve(uint64_t bytes) { return std::exchange(reserved_, reserved_ + (bytes + 7) / 8 * 8); }

 private:
  std::string path_ = "synthetic weights";
  uint64_t reserved_ = 0;
};

// Independent draws from a table of 2^16 equally likely elements.
template <typename T>
class RandomFile : public SyntheticFile {
 public:
  RandomFile(std::vector<T> table, uint64_t seed) : table_(std::move(table)), seed_(mix(seed)) {}
  void read(uint64_t offset, void* out, size_t bytes) const override {
    auto* elements = static_cast<T*>(out);
    const uint64_t first = offset / sizeof(T), end = first + bytes / sizeof(T);
    uint64_t at = first;
    const auto one = [&] { elements[at - first] = table_[mix(seed_ + at / 4) >> (16 * (at % 4)) & 0xffffu], ++at; };
    while (at < end && at % 4 != 0) one();
    for (; at + 4 <= end; at += 4) {
      const uint64_t random = mix(seed_ + at / 4);
      T* four = elements + (at - first);
      four[0] = table_[random & 0xffffu];
      four[1] = table_[random >> 16 & 0xffffu];
      four[2] = table_[random >> 32 & 0xffffu];
      four[3] = table_[random >> 48];
    }
    while (at < end) one();
  }

 private:
  std::vector<T> table_;
  uint64_t seed_;
};

template <typename T>
class ConstantFile : public SyntheticFile {
 public:
  explicit ConstantFile(T value) : value_(value) {}
  void read(uint64_t, void* out, size_t bytes) const override { std::fill_n(static_cast<T*>(out), bytes / sizeof(T), value_); }

 private:
  T value_;
};

std::vector<float> normal_table() {
  std::vector<float> out = normal_quantiles(16);
  for (float& value : out) value *= static_cast<float>(kStd);
  return out;
}

std::vector<uint16_t> narrow_table(const std::vector<float>& wide) {
  std::vector<uint16_t> out;
  for (const float value : wide) out.push_back(f32_to_bf16(value));
  return out;
}

// A block of 128 x 128 normal values reaches about 4.2 standard deviations, and its maximum is stored as 448.
constexpr double kFp8Std = 448.0 / 4.2;
constexpr double kInt4Std = 7.0 / 2.5;  // a group of 32 to 128 reaches about 2.5

uint8_t nearest_fp8(float value) {
  const float wanted = std::fabs(value);
  uint8_t best = 0;
  for (uint8_t code = 1; code < 0x7f; ++code)
    if (std::fabs(f8e4m3_to_f32(code) - wanted) < std::fabs(f8e4m3_to_f32(best) - wanted)) best = code;
  return static_cast<uint8_t>(best | (value < 0 ? 0x80 : 0));
}

std::vector<uint8_t> fp8_table() {
  std::vector<uint8_t> out;
  for (const float q : normal_quantiles(16)) {
    // Neighbours in a rising table mostly share a code, and searching all 127 for each would be slow.
    const float value = q * static_cast<float>(kFp8Std);
    const uint8_t last = out.empty() ? 0 : out.back();
    const float decoded = f8e4m3_to_f32(last);
    const bool same = !out.empty() && std::fabs(value - decoded) <= std::fabs(decoded) * 0.03f;
    out.push_back(same ? last : nearest_fp8(value));
  }
  return out;
}

std::vector<uint8_t> int4_table() {  // two elements to a byte, each by eight bits
  std::vector<uint8_t> nibbles;
  for (const float q : normal_quantiles(8))
    nibbles.push_back(static_cast<uint8_t>(std::clamp(std::lround(q * kInt4Std), -8l, 7l) + 8));
  std::vector<uint8_t> out;
  for (int i = 0; i < 1 << 16; ++i) out.push_back(static_cast<uint8_t>(nibbles[i & 255] | nibbles[i >> 8] << 4));
  return out;
}

// Entries for every tensor of a config, each in the file that makes its kind.
class SyntheticCheckpoint : private TensorWalk {
 public:
  SyntheticCheckpoint(const ModelConfig& config, bool wide, uint64_t seed) : TensorWalk(config), wide_(wide) {
    std::vector<float> plain = normal_table();
    bf16_ = add(std::make_unique<RandomFile<uint16_t>>(narrow_table(plain), seed));
    if (wide) f32_ = add(std::make_unique<RandomFile<float>>(std::move(plain), seed));
    const bool int4 = config.quant.method == QuantMethod::int4_group;
    if (int4) codes_ = add(std::make_unique<RandomFile<uint8_t>>(int4_table(), seed));
    if (config.quant.method == QuantMethod::fp8_block) codes_ = add(std::make_unique<RandomFile<uint8_t>>(fp8_table(), seed));
    scales_ = add(std::make_unique<ConstantFile<float>>(static_cast<float>(kStd / (int4 ? kInt4Std : kFp8Std))));
    ones_ = add(std::make_unique<ConstantFile<uint16_t>>(f32_to_bf16(1.0f)));
    zeros_ = add(std::make_unique<ConstantFile<uint16_t>>(uint16_t{0}));
    walk();
  }
  Checkpoint take() { return Checkpoint::from_entries(std::move(files_), std::move(entries_)); }

 private:
  QuantMethod method_of(const std::string& module, int64_t, int64_t, LinearRole role) override {
    return role == LinearRole::body && config_.quant.applies_to(module) ? config_.quant.method : QuantMethod::none;
  }
  bool enter(const std::string&, bool) override { return true; }
  void optional_tensor(const std::string&, const std::vector<Shape>&, const std::vector<DType>&) override {}

  void tensor(const std::string& name, const std::vector<Shape>& shapes, const std::vector<DType>& dtypes) override {
    TensorEntry entry;
    entry.name = name;
    entry.shape = shapes[0];
    entry.dtype = dtypes[0];
    SyntheticFile* file = bf16_;
    if (entry.dtype == DType::f8_e4m3 || entry.dtype == DType::i32)
      file = codes_;
    else if (name.ends_with("_scale") || name.ends_with("_scale_inv"))
      file = scales_;
    else if (entry.shape.size() == 1)
      file = name.ends_with("expert_bias") ? zeros_ : ones_;
    else if (wide_)
      file = f32_, entry.dtype = DType::f32;
    entry.bytes = dtype_bytes(entry.dtype);
    for (const int64_t dim : entry.shape) entry.bytes *= static_cast<uint64_t>(dim);
    entry.offset = file->reserve(entry.bytes);
    entry.file = file;
    entries_.push_back(std::move(entry));
  }

  SyntheticFile* add(std::unique_ptr<SyntheticFile> file) {
    SyntheticFile* raw = file.get();
    files_.push_back(std::move(file));
    return raw;
  }

  bool wide_;
  std::vector<std::unique_ptr<FileReader>> files_;
  std::vector<TensorEntry> entries_;
  SyntheticFile *bf16_ = nullptr, *f32_ = nullptr, *codes_ = nullptr, *scales_ = nullptr, *ones_ = nullptr, *zeros_ = nullptr;
};

ModelConfig ling_shape() {  // what Ling-mini-2.0 and Ling-flash-2.0 share
  ModelConfig c;
  c.architecture = "BailingMoeV2ForCausalLM";
  c.vocab_size = 157184;
  c.n_dense_layers = 1;
  c.n_kv_heads = 4;
  c.head_dim = 128;
  c.rotary_dim = 64;
  c.n_experts = 256;
  c.n_active = 8;
  c.n_groups = 8;
  c.n_groups_kept = 4;
  c.routed_scaling = 2.5f;
  c.rope_theta = 600000.0;
  c.context = 32768;
  c.eos_ids = {156892};
  return c;
}

}  // namespace

ModelConfig shape_config(const std::string& shape) {
  const size_t colon = shape.find(':');
  const std::string name = shape.substr(0, colon);
  ModelConfig c = ling_shape();
  if (name == "ling-flash-2.0") {
    c.n_layers = 32, c.hidden_size = 4096, c.n_heads = 32, c.dense_width = 9216, c.expert_width = 1024;
  } else if (name == "ling-mini-2.0") {
    c.n_layers = 20, c.hidden_size = 2048, c.n_heads = 16, c.dense_width = 5120, c.expert_width = 512;
  } else if (name == "nano") {
    c.n_layers = 6, c.hidden_size = 256, c.n_heads = 4, c.n_kv_heads = 1, c.dense_width = 768, c.expert_width = 128;
    c.vocab_size = 6144, c.n_experts = 16, c.n_active = 4, c.n_groups = 4, c.n_groups_kept = 2, c.context = 2048,
    c.eos_ids = {6143};
  } else {
    throw EngineError(ErrorCode::invalid_argument, "shape '" + shape + "' asked for: no such shape",
                      "use nano, ling-mini-2.0:N or ling-flash-2.0:N, N being the number of layers");
  }
  c.shared_width = c.expert_width;
  if (colon != std::string::npos) {
    const char* begin = shape.data() + colon + 1;
    const char* end = shape.data() + shape.size();
    int layers = 0;
    const auto [stop, error] = std::from_chars(begin, end, layers);
    if (error != std::errc() || stop != end || layers < 1 || layers > 128)
      throw EngineError(ErrorCode::invalid_argument,
                        "shape '" + shape + "' asked for: the part after ':' is no number of layers from 1 to 128",
                        "write for example ling-mini-2.0:5");
    c.n_layers = layers;
  }
  return c;
}

Checkpoint synthetic_tensors(std::vector<TensorEntry> tensors, uint64_t seed) {
  auto random = std::make_unique<RandomFile<uint16_t>>(narrow_table(normal_table()), seed);
  auto ones = std::make_unique<ConstantFile<uint16_t>>(f32_to_bf16(1.0f));
  auto zeros = std::make_unique<ConstantFile<int64_t>>(int64_t{0});
  for (TensorEntry& tensor : tensors) {
    SyntheticFile* file = tensor.shape.size() > 1 ? static_cast<SyntheticFile*>(random.get()) : ones.get();
    if (tensor.dtype == DType::i64) file = zeros.get();
    tensor.bytes = dtype_bytes(tensor.dtype);
    for (const int64_t dim : tensor.shape) tensor.bytes *= static_cast<uint64_t>(dim);
    tensor.offset = file->reserve(tensor.bytes);
    tensor.file = file;
  }
  std::vector<std::unique_ptr<FileReader>> files;
  files.push_back(std::move(random));
  files.push_back(std::move(ones));
  files.push_back(std::move(zeros));
  return Checkpoint::from_entries(std::move(files), std::move(tensors));
}

ModelWeights synthetic_weights(const ModelConfig& config, WeightFormat format, Backend& backend, uint64_t seed, int n_threads) {
  ModelConfig stored = config;
  stored.n_mtp_layers = 0;
  stored.quant = {};
  if (format == WeightFormat::fp8) stored.quant.method = QuantMethod::fp8_block;
  if (format == WeightFormat::int4) {
    stored.quant.method = QuantMethod::int4_group;
    stored.quant.group = config.expert_width % 128 == 0 ? 128 : 32;
  }
  const Checkpoint checkpoint = SyntheticCheckpoint(stored, format == WeightFormat::f32, seed).take();
  LoadOptions options;
  options.n_threads = n_threads;
  return load_weights(stored, checkpoint, backend, options);
}

}  // namespace sigmoe
