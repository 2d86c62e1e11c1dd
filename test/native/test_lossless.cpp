// Is sampling with drafts distributed as sampling without? Chi-squared tests of two samples, for every method and sampler,
// over continuations whose seeds are different on both sides. The same tests must notice an engine that takes one draft in a
// hundred without asking, or they would prove nothing.
//
// SIGMOE_LOSSLESS_SAMPLES sets the continuations of each side. 100,000, the figure claimed, takes about an hour on two cores.
// Where SIGMOE_LOSSLESS_FOLDER is set, continuations are kept there part by part and those of earlier runs are not drawn again:
// a run that was cut off goes on where it stood. The folder belongs to one build; draws of other code are not told apart.
// With SIGMOE_LOSSLESS_SHARD=i/n a process draws every n-th part from part i on, and compares nothing: n processes
// share the work, and a last one without the variable compares. SIGMOE_LOSSLESS_KERNELS names the CPU path, so that processors
// of several kinds may draw for one folder: a path's bits are the same on all of them. SIGMOE_TEST_DEVICE=cuda draws on a GPU;
// an engine that cheats is always one of the CPU.
#include <algorithm>
#include <cmath>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <mutex>
#include <random>

#include "cpu/cpu_backend.h"
#include "doctest/doctest.h"
#include "engine/engine.h"
#include "golden.h"

using namespace sigmoe;
using namespace sigmoe::test;

namespace {

double planted_bias = 0;  // share of drafts that the engine under test takes whatever the target says

// A CPU backend that can be made to cheat.
class CheatingBackend : public CpuBackend {
 public:
  using CpuBackend::CpuBackend;
  void sample(const SampleArgs& args) override {
    std::vector<SampleRow> rows(args.rows, args.rows + args.n_rows);
    for (size_t i = 0; i + 1 < rows.size(); ++i)
      if (rows[i + 1].if_previous >= 0 && std::uniform_real_distribution<>()(random_) < planted_bias)
        rows[i].forced_token = rows[i + 1].if_previous;
    SampleArgs cheating = args;
    cheating.rows = rows.data();
    CpuBackend::sample(cheating);
  }

 private:
  std::mt19937_64 random_{99};
};

constexpr int kTokens = 4;  // the first of a continuation comes with its prompt, undrafted

using Continuation = std::array<int32_t, kTokens>;

struct Sampler {
  std::string name;
  std::function<void(GenerateRequest&)> set;
};

const std::vector<Sampler> kSamplers{
    {"temperature 1", [](GenerateRequest&) {}},
    {"temperature 1.5, top-k 20", [](GenerateRequest& r) { r.temperature = 1.5f, r.top_k = 20; }},
    {"top-p 0.9", [](GenerateRequest& r) { r.top_p = 0.9f; }},
    {"min-p 0.02", [](GenerateRequest& r) { r.min_p = 0.02f; }},
    {"the model card's",
     [](GenerateRequest& r) { r.temperature = 0.7f, r.top_p = 0.95f, r.top_k = 20, r.repetition_penalty = 1.05f; }},
    {"penalties",
     [](GenerateRequest& r) { r.repetition_penalty = 1.3f, r.presence_penalty = 0.8f, r.frequency_penalty = 0.5f; }},
    {"logit bias and bad words",
     [](GenerateRequest& r) {
       for (int32_t id = 0; id < 200; ++id) r.logit_bias.push_back({id * 7, 1.5f});
       r.bad_words = {{r.prompt.back()}, {r.prompt[0], r.prompt[1]}};
     }},
    {"allowed tokens",
     [](GenerateRequest& r) {
       r.temperature = 1.5f;
       for (int32_t id = 0; id < 6000; id += 3) r.allowed_ids.push_back(id);
     }},
};

std::vector<int32_t> context_of(size_t sampler) {
  return {static_cast<int32_t>(300 + 41 * sampler), 77, static_cast<int32_t>(1200 + 97 * sampler)};
}

constexpr int kPart = 5000;  // continuations that are kept together

// Where the engine of a draw runs.
std::string device_asked() {
  const char* device = std::getenv("SIGMOE_TEST_DEVICE");
  return planted_bias == 0 && device && *device ? device : "cpu";
}

// An engine that draws continuations, one part after the other.
class Drawer {
 public:
  explicit Drawer(const std::string& method) : checks_(!method.empty() && method != "ngram") {
    EngineOptions options;
    options.device = device_asked();
    options.max_num_seqs = 64;
    options.max_waiting = kPart;
    if (const char* kernels = std::getenv("SIGMOE_LOSSLESS_KERNELS"); kernels && options.device == "cpu")
      options.kernels = kernels;
    if (!method.empty()) {
      options.speculation = method;
      options.max_draft = kTokens - 1;
      options.adaptive_depth = false;
      if (method == "eagle3") options.draft = source_dir() + "/models/nano-eagle3";
    }
    engine_ = Engine::load(source_dir() + "/models/nano", on_test_device(options));
    engine_->set_listener([this](StepEvent&& event) {
      const std::lock_guard lock(mutex_);
      for (size_t i = 0; i < event.requests.size(); ++i) {
        tokens_[event.requests[i]].push_back(event.tokens[i]);
        n_ended_ += event.finish[i] != FinishReason::none;
      }
      ended_.notify_one();
    });
  }
  ~Drawer() { engine_->shut_down(); }

  // Continuations of one context under seeds that follow each other.
  std::vector<Continuation> draw(const std::vector<int32_t>& context, const Sampler& sampler, uint64_t first_seed, int n) {
    GenerateRequest request;
    request.prompt = context;
    request.max_tokens = kTokens;
    sampler.set(request);
    for (int i = 0; i < n; ++i) {
      request.seed = first_seed + i;
      engine_->submit(request);
    }
    std::unique_lock lock(mutex_);
    REQUIRE(ended_.wait_for(lock, std::chrono::minutes(30), [&] { return n_ended_ == n; }));
    std::vector<Continuation> out;
    for (const auto& [id, ids] : tokens_) {
      REQUIRE(ids.size() == kTokens);
      std::copy(ids.begin(), ids.end(), out.emplace_back().begin());
    }
    tokens_.clear();
    n_ended_ = 0;
    if (checks_) CHECK(engine_->stats().accepted_tokens > 0);
    return out;
  }

 private:
  bool checks_;
  std::mutex mutex_;
  std::condition_variable ended_;
  std::map<uint64_t, std::vector<int32_t>> tokens_;  // by request
  int n_ended_ = 0;
  std::unique_ptr<Engine> engine_;
};

// The part's continuations where an earlier run has left all of them; else none. A file is whole when it has its name.
std::vector<Continuation> kept_part(const std::filesystem::path& file, int n) {
  std::vector<Continuation> kept(n);
  std::ifstream in(file, std::ios::binary);
  const auto n_bytes = static_cast<std::streamsize>(n * sizeof(Continuation));
  return in.read(reinterpret_cast<char*>(kept.data()), n_bytes) ? kept : std::vector<Continuation>();
}

void keep_part(const std::filesystem::path& file, const std::vector<Continuation>& part) {
  const std::filesystem::path unfinished = file.string() + ".part";
  std::ofstream out(unfinished, std::ios::binary);
  out.write(reinterpret_cast<const char*>(part.data()), static_cast<std::streamsize>(part.size() * sizeof(Continuation)));
  out.close();
  REQUIRE(out.good());
  std::filesystem::rename(unfinished, file);
}

// Which parts this process draws: those whose number is `index` modulo `count`.
struct PartShare {
  int index = 0, count = 1;
  bool whole() const { return count == 1; }
};

PartShare shard_asked() {
  PartShare shard;
  const char* asked = std::getenv("SIGMOE_LOSSLESS_SHARD");
  if (!asked) return shard;
  REQUIRE(std::sscanf(asked, "%d/%d", &shard.index, &shard.count) == 2);
  REQUIRE((shard.index >= 0 && shard.index < shard.count));
  REQUIRE(std::getenv("SIGMOE_LOSSLESS_FOLDER"));
  return shard;
}

// All n, or of a shard those it has.
std::vector<Continuation> draw(const std::string& method, size_t sampler, uint64_t first_seed, int n, const PartShare& shard) {
  static int n_parts = 0;
  const std::string device = device_asked() == "cpu" ? "" : device_asked() + "-";
  std::unique_ptr<Drawer> drawer;
  const std::vector<int32_t> context = context_of(sampler);
  const char* folder = std::getenv("SIGMOE_LOSSLESS_FOLDER");
  std::vector<Continuation> all;
  for (int done = 0; done < n; done += kPart) {
    const int m = std::min(kPart, n - done);
    const std::string name = device + "sampler" + std::to_string(sampler) + "-" + (method.empty() ? "plain" : method) +
                             "-seed" + std::to_string(first_seed + done) + "-bias" + std::to_string(planted_bias) + "-" +
                             std::to_string(m) + ".i32";
    if (n_parts++ % shard.count != shard.index) continue;
    std::vector<Continuation> part;
    if (folder) part = kept_part(std::filesystem::path(folder) / name, m);
    if (part.empty()) {
      if (!drawer) drawer = std::make_unique<Drawer>(method);
      part = drawer->draw(context, kSamplers[sampler], first_seed + done, m);
      if (folder) keep_part(std::filesystem::path(folder) / name, part);
    }
    all.insert(all.end(), part.begin(), part.end());
  }
  return all;
}

// The upper tail of the chi-squared distribution: the regularised incomplete gamma function Q(df / 2, x / 2), by its series
// below the mean and its continued fraction above (Abramowitz and Stegun 6.5.29 and 6.5.31).
double chi_squared_tail(double x, int df) {
  const double a = df / 2.0, z = x / 2;
  if (z <= 0) return 1;
  const double scale = std::exp(a * std::log(z) - z - std::lgamma(a));
  if (z < a + 1) {
    double term = 1 / a, sum = term;
    for (double k = a + 1; term > sum * 1e-15; ++k) sum += term *= z / k;
    return 1 - scale * sum;
  }
  double b = z + 1 - a, c = 1e300, d = 1 / b, h = d;
  for (int i = 1; i < 1000; ++i) {
    const double an = -i * (i - a);
    b += 2;
    d = 1 / (an * d + b);
    c = b + an / c;
    h *= d * c;
    if (std::abs(d * c - 1) < 1e-15) break;
  }
  return scale * h;
}

// p-value of: both samples of categories come from one distribution. Categories past the n_bins most frequent, and rare ones,
// count as one.
double same_distribution(const std::vector<uint64_t>& a, const std::vector<uint64_t>& b, size_t n_bins) {
  constexpr double kLeastCount = 20;
  std::map<uint64_t, std::array<double, 2>> counts;
  for (const uint64_t category : a) ++counts[category][0];
  for (const uint64_t category : b) ++counts[category][1];
  std::vector<std::array<double, 2>> bins;
  for (const auto& [category, count] : counts) bins.push_back(count);
  std::sort(bins.begin(), bins.end(), [](const auto& x, const auto& y) { return x[0] + x[1] > y[0] + y[1]; });
  std::array<double, 2> rest{};
  while (!bins.empty() && (bins.size() > n_bins || bins.back()[0] + bins.back()[1] < kLeastCount)) {
    for (int side : {0, 1}) rest[side] += bins.back()[side];
    bins.pop_back();
  }
  if (rest[0] + rest[1] >= kLeastCount) bins.push_back(rest);
  if (bins.size() < 2) return 1;
  double n[2] = {}, x = 0;
  for (const auto& bin : bins) n[0] += bin[0], n[1] += bin[1];
  for (const auto& bin : bins)
    for (int side : {0, 1}) {
      const double expected = (bin[0] + bin[1]) * n[side] / (n[0] + n[1]);
      x += (bin[side] - expected) * (bin[side] - expected) / expected;
    }
  return chi_squared_tail(x, static_cast<int>(bins.size()) - 1);
}

// Of every drafted place by itself; of every one with the token before it, on which the draft depends: a draft that is taken
// too often hides among the drafts of other prefixes, and shows here; and of whole continuations, by a hash.
std::vector<double> compare(const std::vector<Continuation>& a, const std::vector<Continuation>& b) {
  constexpr size_t kTokenBins = 24, kPairBins = 400, kHashes = 24;
  const auto test = [&](size_t n_bins, const auto& category) {
    std::vector<uint64_t> of_a, of_b;
    for (const Continuation& one : a) of_a.push_back(category(one));
    for (const Continuation& one : b) of_b.push_back(category(one));
    return same_distribution(of_a, of_b, n_bins);
  };
  const auto token = [](const Continuation& one, int place) { return static_cast<uint64_t>(one[place]); };
  std::vector<double> p;
  for (int place = 1; place < kTokens; ++place) {
    p.push_back(test(kTokenBins, [&](const Continuation& one) { return token(one, place); }));
    p.push_back(test(kPairBins, [&](const Continuation& one) { return token(one, place - 1) << 32 | token(one, place); }));
  }
  p.push_back(test(kHashes, [&](const Continuation& one) {
    uint64_t hash = 14695981039346656037u;
    for (const int32_t id : one) hash = (hash ^ static_cast<uint64_t>(id)) * 1099511628211u;
    return (hash >> 20) % kHashes;
  }));
  return p;
}

// Holm: of m tests that all hold, the chance to reject even one stays below alpha.
bool any_rejected(std::vector<double> p, double alpha) {
  return *std::min_element(p.begin(), p.end()) < alpha / static_cast<double>(p.size());
}

int n_samples(int otherwise) {
  const char* asked = std::getenv("SIGMOE_LOSSLESS_SAMPLES");
  return asked ? std::max(100, std::atoi(asked)) : otherwise;
}

}  // namespace

TEST_CASE("lossless: the chi-squared tail is the textbook's") {
  CHECK(chi_squared_tail(3.841, 1) == doctest::Approx(0.05).epsilon(0.001));
  CHECK(chi_squared_tail(18.307, 10) == doctest::Approx(0.05).epsilon(0.001));
  CHECK(chi_squared_tail(42.980, 24) == doctest::Approx(0.01).epsilon(0.001));
  CHECK(chi_squared_tail(5.0, 24) == doctest::Approx(0.99999).epsilon(0.0001));
}

TEST_CASE("lossless: no sampler tells drafted text from plain text, and every method's cheating is noticed") {
  const int n = n_samples(250);
  const PartShare shard = shard_asked();
  std::vector<double> all;
  uint64_t seed = 1;
  const auto sample = [&](const std::string& method, size_t sampler) {
    seed += n;
    return draw(method, sampler, seed, n, shard);
  };
  for (size_t sampler = 0; sampler < kSamplers.size(); ++sampler) {
    const std::vector<Continuation> plain = sample("", sampler);
    for (const std::string method : {"eagle3", "mtp", "ngram"}) {
      const std::vector<Continuation> drafted = sample(method, sampler);
      if (!shard.whole()) continue;
      const std::vector<double> p = compare(plain, drafted);
      all.insert(all.end(), p.begin(), p.end());
      MESSAGE(kSamplers[sampler].name << ", " << method << ": least p " << *std::min_element(p.begin(), p.end()));
    }
  }
  if (shard.whole()) CHECK_FALSE(any_rejected(all, 0.01));

  // A bias of a hundredth takes the full number of samples to be seen; fewer see a larger one.
  planted_bias = std::min(1.0, 0.01 * 100'000 / n);
  make_cpu_backend = [](const BackendOptions& options) -> std::unique_ptr<Backend> {
    return std::make_unique<CheatingBackend>(options);
  };
  for (const std::string method : {"eagle3", "mtp"}) {
    const std::vector<Continuation> plain = sample("", 1), biased = sample(method, 1);
    if (!shard.whole()) continue;
    const std::vector<double> p = compare(plain, biased);
    std::vector<double> with_others = all;
    with_others.insert(with_others.end(), p.begin(), p.end());
    MESSAGE("bias of " << planted_bias << ", " << method << ": least p " << *std::min_element(p.begin(), p.end()));
    CHECK(any_rejected(with_others, 0.01));
  }
  planted_bias = 0;
  make_cpu_backend = nullptr;
  if (!shard.whole()) MESSAGE("shard " << shard.index << " of " << shard.count << ": drawn, nothing compared");
}
