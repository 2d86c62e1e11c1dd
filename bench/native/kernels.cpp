// Times every op of the CPU backend at the shapes of a model and prints, for each, the bytes it must read, the FLOP it
// must do, the bound that follows from the machine's measured ceilings, and the fraction of that bound.
//
//   sigmoe_kernel_bench [--shape ling-mini|ling-flash] [--kernels auto] [--compute bf16|f32] [--threads 0] [--tokens 1,512]
//                       [--format fp8|bf16|int4] [--repeat 15] [--only part of an op's name]
//
// Weights are random and more than the caches hold: layers are used in turn, experts are drawn anew for every run.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "backend/registry.h"

using namespace sigmoe;

namespace {

struct Shape {
  int64_t width, heads, kv_heads, head_dim, experts, active, groups, groups_kept, inner, shared, dense, vocab;
};
const std::map<std::string, Shape> kShapes = {
    {"ling-mini", {2048, 16, 4, 128, 256, 8, 8, 4, 512, 512, 5120, 157184}},
    {"ling-flash", {4096, 32, 4, 128, 256, 8, 8, 4, 1024, 1024, 9216, 157184}},
};

struct Options {
  std::string shape = "ling-mini", format = "fp8", only;
  std::vector<int> tokens{1, 512};
  int repeat = 15;
  BackendOptions backend;
};

class Random {
 public:
  std::vector<float> gaussian(int64_t n) {
    std::normal_distribution<float> normal;
    std::vector<float> values(n);
    for (float& value : values) value = normal(random_);
    return values;
  }
  std::vector<std::byte> bytes(WeightFormat format, int64_t n) {
    std::vector<std::byte> out(n + 8);
    for (int64_t i = 0; i < n; i += 8) {
      const uint64_t word = random_();
      std::memcpy(&out[i], &word, 8);
    }
    out.resize(n);
    for (int64_t i = 0; i < n; ++i) {  // keep clear of NaN and infinity
      if (format == WeightFormat::fp8 && (out[i] & std::byte{0x7f}) == std::byte{0x7f}) out[i] = std::byte{0};
      if (format == WeightFormat::bf16 && i % 2 == 1) out[i] = (out[i] & std::byte{0x80}) | std::byte{0x3c};
    }
    return out;
  }
  int64_t below(int64_t n) { return static_cast<int64_t>(random_() % n); }

 private:
  std::mt19937_64 random_{1};
};

double median_of(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

// Threads of one pool look for work a little before they sleep; let them, before another pool is timed.
void settle() { std::this_thread::sleep_for(std::chrono::microseconds(300)); }

double seconds_now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

class Bench {
 public:
  explicit Bench(const Options& options)
      : options_(options), shape_(kShapes.at(options.shape)), backend_(create_cpu_backend(options.backend)) {
    format_ = options.format == "bf16" ? WeightFormat::bf16 : options.format == "int4" ? WeightFormat::int4 : WeightFormat::fp8;
  }

  void run() {
    probe_ = make_ceiling_probe(options_.backend.n_threads);
    std::printf("%s · kernels %s · %s · %s weights · %s\n", options_.shape.c_str(), backend_->info().kernels.c_str(),
                dtype_name(backend_->info().compute), weight_format_name(format_), backend_->info().name.c_str());
    std::printf(
        "read stream %.1f GB/s, matrix peak %.0f GFLOP/s (best of a few; below, the median of samples beside the runs)\n\n",
        measure_read_gbps(options_.backend.n_threads), measure_matrix_gflops(options_.backend.n_threads));
    std::printf("%-32s %6s %10s %10s %8s %8s %8s %8s %8s  %s\n", "op", "tokens", "median us", "best us", "GB/s", "of read",
                "GFLOP/s", "of peak", "of bound", "bound");
    make_weights();
    for (const int tokens : options_.tokens) {
      linear_ops(tokens);
      attention_ops(tokens);
      expert_ops(tokens);
      small_ops(tokens);
    }
    head_op();
  }

 private:
  static constexpr double kSampleSeconds = 0.005;
  static constexpr int kLayers = 24;  // in turn: together more than the caches hold

  std::unique_ptr<LinearWeight> weight(WeightFormat format, int64_t n, int64_t k, bool gate_up = false) {
    LinearDesc desc{format, n, k, {}, gate_up, "benchmark"};
    const int64_t block = format == WeightFormat::fp8 || format == WeightFormat::int4 ? 128 : 0;
    if (block)
      for (int64_t at = 0; at <= k; at += block) desc.k_bounds.push_back(at);
    const size_t row_bytes = weight_row_bytes(format, k);
    std::vector<std::byte>& row = rows_[{format, k}];
    if (row.empty()) row = random_.bytes(format, row_bytes * 64);
    const std::vector<float> scales(block ? 64 * (k / block) : 0, 0.001f);
    const auto builder = backend_->begin_linear(desc);
    for (int64_t at = 0; at < n; at += 64) {
      const int64_t count = std::min<int64_t>(64, n - at);
      builder->put_rows(at, count, row.data(), row_bytes);
      if (block) builder->put_scales(at, count, scales.data());
    }
    return builder->finish();
  }

  void make_weights() {
    const int64_t qkv = (shape_.heads + 2 * shape_.kv_heads) * shape_.head_dim, q = shape_.heads * shape_.head_dim;
    for (int i = 0; i < kLayers; ++i) {
      qkv_.push_back(weight(format_, qkv, shape_.width));
      out_.push_back(weight(format_, shape_.width, q));
      router_.push_back(weight(WeightFormat::bf16, shape_.experts, shape_.width));
      dense_gate_up_.push_back(weight(format_, 2 * shape_.dense, shape_.width, true));
      dense_down_.push_back(weight(format_, shape_.width, shape_.dense));
    }
    for (int64_t e = 0; e <= shape_.experts; ++e) {
      const int64_t inner = e < shape_.experts ? shape_.inner : shape_.shared;
      expert_weights_.push_back(weight(format_, 2 * inner, shape_.width, true));
      expert_weights_.push_back(weight(format_, shape_.width, inner));
      if (e < shape_.experts) {
        experts_.gate_up.push_back(expert_weights_[2 * e].get());
        experts_.down.push_back(expert_weights_[2 * e + 1].get());
      } else {
        experts_.shared_gate_up = expert_weights_[2 * e].get();
        experts_.shared_down = expert_weights_[2 * e + 1].get();
      }
    }
    head_ = weight(WeightFormat::bf16, shape_.vocab, shape_.width);
  }

  // Times run(i), i counting up, and prints the line. bytes: read from memory; flop: done in the matrix unit.
  template <typename Run>
  void time(const std::string& name, int tokens, double bytes, double flop, Run run) {
    if (name.find(options_.only) == std::string::npos) return;
    std::vector<double> seconds, reads, peaks, fractions;
    run(0);
    double once = seconds_now();
    run(1);
    once = seconds_now() - once;
    // A sample is some milliseconds of runs one after another, as the ops of a step follow each other.
    const int burst = std::clamp(static_cast<int>(kSampleSeconds / once), 1, 1000);
    for (int i = 0; i < options_.repeat; ++i) {
      const double begin = seconds_now();
      for (int j = 0; j < burst; ++j) run(2 + i * burst + j);
      const double taken = (seconds_now() - begin) / burst;
      settle();
      reads.push_back(probe_->read_gbps() * 1e9);
      peaks.push_back(probe_->matrix_gflops() * 1e9);
      settle();
      seconds.push_back(taken);
      fractions.push_back(std::max(bytes / reads.back(), flop / peaks.back()) / taken);
    }
    const double best = *std::min_element(seconds.begin(), seconds.end()), median = median_of(seconds);
    const double read = median_of(reads), peak = median_of(peaks);
    std::printf("%-32s %6d %10.1f %10.1f %8.1f %8.1f %8.1f %8.1f %7.0f%%  %s\n", name.c_str(), tokens, median * 1e6, best * 1e6,
                bytes / median * 1e-9, read * 1e-9, flop / median * 1e-9, peak * 1e-9, 100 * median_of(fractions),
                bytes / read > flop / peak ? "read" : "matrix");
    std::fflush(stdout);
  }

  void linear_ops(int tokens) {
    const std::vector<float> x = random_.gaussian(tokens * std::max(shape_.width, shape_.heads * shape_.head_dim));
    const int64_t qkv = (shape_.heads + 2 * shape_.kv_heads) * shape_.head_dim, q = shape_.heads * shape_.head_dim;
    std::vector<float> y(tokens * qkv);
    time("linear qkv", tokens, qkv_[0]->bytes(), 2.0 * tokens * qkv * shape_.width,
         [&](int i) { backend_->linear(x.data(), *qkv_[i % kLayers], tokens, y.data()); });
    time("linear attention out", tokens, out_[0]->bytes(), 2.0 * tokens * shape_.width * q,
         [&](int i) { backend_->linear(x.data(), *out_[i % kLayers], tokens, y.data()); });
  }

  void attention_ops(int tokens) {
    const AttentionShape heads{static_cast<int>(shape_.heads), static_cast<int>(shape_.kv_heads),
                               static_cast<int>(shape_.head_dim), static_cast<int>(shape_.head_dim / 2)};
    const int64_t qkv_width = (shape_.heads + 2 * shape_.kv_heads) * shape_.head_dim, q_width = shape_.heads * shape_.head_dim;
    for (const int context : {512, 32768}) {
      if (tokens > 1 && context > 512) continue;
      const int pages = (context + kPageTokens - 1) / kPageTokens;
      const DType dtype = backend_->info().kv_dtype;
      const size_t cache_bytes =
          static_cast<size_t>(pages) * shape_.kv_heads * kPageTokens * shape_.head_dim * dtype_bytes(dtype);
      std::vector<DeviceBuffer> k, v;
      for (int i = 0; i < kLayers; ++i) {
        k.push_back(backend_->alloc(cache_bytes, "k"));
        v.push_back(backend_->alloc(cache_bytes, "v"));
      }
      std::vector<int32_t> table(pages), positions(tokens), offsets{0, tokens};
      for (int p = 0; p < pages; ++p) table[p] = p;
      for (int t = 0; t < tokens; ++t) positions[t] = context - tokens + t;
      BatchView batch;
      batch.n_tokens = tokens;
      batch.n_seqs = 1;
      batch.max_pages = pages;
      batch.positions = positions.data();
      batch.seq_offsets = offsets.data();
      batch.page_tables = table.data();
      const std::vector<float> x = random_.gaussian(tokens * shape_.width),
                               tables = random_.gaussian(context * shape_.head_dim / 4), norm(shape_.head_dim, 1.0f),
                               norm_width(shape_.width, 1.0f);
      std::vector<float> qkv = random_.gaussian(tokens * qkv_width), q = random_.gaussian(tokens * q_width),
                         out(tokens * q_width), y(tokens * shape_.width), residual(tokens * shape_.width);
      const double mean_context = context - (tokens - 1) / 2.0;
      const double flop = 4.0 * tokens * mean_context * q_width;
      const std::string suffix = ", context " + std::to_string(context);
      const auto store = [&](int i) {
        const KvView view{k[i % kLayers].data(), v[i % kLayers].data(), dtype};
        backend_->qk_norm_rope_store(batch, heads, qkv.data(), norm.data(), norm.data(), 1e-6f, tables.data(), tables.data(),
                                     view, q.data());
      };
      const auto attend = [&](int i) {
        const KvView view{k[i % kLayers].data(), v[i % kLayers].data(), dtype};
        backend_->attention(batch, heads, q.data(), view, out.data());
      };
      for (int i = 0; i < kLayers; ++i) store(i);
      time("qk_norm_rope_store" + suffix, tokens, tokens * qkv_width * 4.0, 0, store);
      time("attention" + suffix, tokens, 2.0 * cache_bytes, flop, attend);
      time("attention layer" + suffix, tokens, qkv_[0]->bytes() + out_[0]->bytes() + 2.0 * cache_bytes,
           flop + 2.0 * tokens * shape_.width * (qkv_width + q_width), [&](int i) {
             backend_->linear(x.data(), *qkv_[i % kLayers], tokens, qkv.data());
             store(i);
             attend(i);
             backend_->linear(out.data(), *out_[i % kLayers], tokens, y.data());
             backend_->reduce_add_rms_norm(residual.data(), y.data(), 1, nullptr, norm_width.data(), 1e-6f, tokens,
                                           static_cast<int>(shape_.width), y.data());
           });
    }
  }

  void expert_ops(int tokens) {
    const int n_active = static_cast<int>(shape_.active), n_slots = n_active + 1, width = static_cast<int>(shape_.width);
    const RouterShape router{static_cast<int>(shape_.experts),     n_active, static_cast<int>(shape_.groups),
                             static_cast<int>(shape_.groups_kept), true,     2.5f};
    const int64_t n_ids = static_cast<int64_t>(tokens) * n_active;
    std::vector<int32_t> ids(n_ids), offsets(shape_.experts + 1), order(n_ids);
    std::vector<float> weights(n_ids), logits(tokens * shape_.experts), out(static_cast<int64_t>(tokens) * n_slots * width),
        residual(tokens * width), bias(shape_.experts), norm(width, 1.0f), normed(tokens * width);
    const Routing routing{ids.data(), weights.data(), offsets.data(), order.data()};
    std::vector<std::vector<float>> xs;  // other tokens each time: other experts
    for (int i = 0; i < 4; ++i) xs.push_back(random_.gaussian(tokens * shape_.width));
    std::vector<int32_t> forced(n_ids * 16);
    double touched = 0;
    for (int i = 0; i < 16; ++i) {  // uniform choices; bytes are counted from the experts they touch
      std::vector<bool> seen(shape_.experts);
      for (int t = 0; t < tokens; ++t)
        for (int a = 0; a < n_active; ++a) {
          int32_t* row = &forced[i * n_ids + static_cast<int64_t>(t) * n_active];
          do row[a] = static_cast<int32_t>(random_.below(shape_.experts));
          while (std::find(row, row + a, row[a]) != row + a);
          touched += !seen[row[a]];
          seen[row[a]] = true;
        }
    }
    touched /= 16;
    const double expert_bytes = experts_.gate_up[0]->bytes() + experts_.down[0]->bytes();
    const double shared_bytes = experts_.shared_gate_up->bytes() + experts_.shared_down->bytes();
    const double bytes = touched * expert_bytes + shared_bytes;
    const double flop = 6.0 * tokens * shape_.width * (n_active * shape_.inner + shape_.shared);
    const double router_flop = 2.0 * tokens * shape_.width * shape_.experts;
    const auto route = [&](int i) {
      backend_->route(xs[i % 4].data(), *router_[i % kLayers], bias.data(), router, tokens, &forced[i % 16 * n_ids],
                      logits.data(), routing);
    };
    const auto run_experts = [&](int i) {
      backend_->experts(xs[i % 4].data(), experts_, routing, n_active, tokens, width, out.data());
    };
    time("route", tokens, router_[0]->bytes(), router_flop, [&](int i) {
      backend_->route(xs[i % 4].data(), *router_[i % kLayers], bias.data(), router, tokens, nullptr, logits.data(), routing);
    });
    time("expert layer", tokens, bytes + router_[0]->bytes(), flop + router_flop, [&](int i) {
      route(i);
      run_experts(i);
      backend_->reduce_add_rms_norm(residual.data(), out.data(), n_slots, nullptr, norm.data(), 1e-6f, tokens, width,
                                    normed.data());
    });
    time("dense MLP", tokens, dense_gate_up_[0]->bytes() + dense_down_[0]->bytes(), 6.0 * tokens * shape_.width * shape_.dense,
         [&](int i) {
           ExpertWeights dense;
           dense.shared_gate_up = dense_gate_up_[i % kLayers].get();
           dense.shared_down = dense_down_[i % kLayers].get();
           backend_->experts(xs[i % 4].data(), dense, {}, 0, tokens, width, out.data());
         });
  }

  void small_ops(int tokens) {
    const int width = static_cast<int>(shape_.width), n_slots = static_cast<int>(shape_.active) + 1;
    std::vector<float> residual(tokens * width), addend = random_.gaussian(static_cast<int64_t>(tokens) * n_slots * width),
                                                 out(tokens * width);
    const std::vector<float> norm(width, 1.0f);
    time("reduce_add_rms_norm", tokens, 4.0 * tokens * width * (n_slots + 3), 0, [&](int) {
      backend_->reduce_add_rms_norm(residual.data(), addend.data(), n_slots, nullptr, norm.data(), 1e-6f, tokens, width,
                                    out.data());
    });
    const DeviceBuffer table = backend_->alloc(static_cast<size_t>(shape_.vocab) * width * 2, "embedding");
    std::vector<int32_t> ids(tokens);
    for (int32_t& id : ids) id = static_cast<int32_t>(random_.below(shape_.vocab));
    time("embed", tokens, tokens * width * 6.0, 0, [&](int) {
      backend_->embed(Tensor(table.data(), DType::bf16, {shape_.vocab, shape_.width}), ids.data(), tokens, out.data());
    });
  }

  void head_op() {
    const std::vector<float> x = random_.gaussian(shape_.width);
    std::vector<float> logits(shape_.vocab);
    const int32_t row = 0;
    time("head_logits", 1, head_->bytes(), 2.0 * shape_.vocab * shape_.width,
         [&](int) { backend_->head_logits(x.data(), &row, 1, *head_, nullptr, {shape_.vocab}, logits.data()); });
  }

  Options options_;
  Shape shape_;
  std::unique_ptr<Backend> backend_;
  WeightFormat format_;
  Random random_;
  std::unique_ptr<CeilingProbe> probe_;
  std::map<std::pair<WeightFormat, int64_t>, std::vector<std::byte>> rows_;  // 64 random rows, used for all
  std::vector<std::unique_ptr<LinearWeight>> qkv_, out_, router_, dense_gate_up_, dense_down_, expert_weights_;
  ExpertWeights experts_;
  std::unique_ptr<LinearWeight> head_;
};

Options parse(int argc, char** argv) {
  Options options;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string name = argv[i], value = argv[i + 1];
    if (name == "--shape" && kShapes.count(value)) {
      options.shape = value;
    } else if (name == "--kernels") {
      options.backend.kernels = value;
    } else if (name == "--compute" && (value == "bf16" || value == "f32")) {
      options.backend.compute = value == "f32" ? DType::f32 : DType::bf16;
    } else if (name == "--threads") {
      options.backend.n_threads = std::atoi(value.c_str());
    } else if (name == "--format" && (value == "fp8" || value == "bf16" || value == "int4")) {
      options.format = value;
    } else if (name == "--repeat") {
      options.repeat = std::max(1, std::atoi(value.c_str()));
    } else if (name == "--only") {
      options.only = value;
    } else if (name == "--tokens") {
      options.tokens.clear();
      for (size_t at = 0; at < value.size(); at = std::min(value.find(',', at), value.size() - 1) + 1)
        options.tokens.push_back(std::max(1, std::atoi(value.c_str() + at)));
    } else {
      throw EngineError(ErrorCode::invalid_argument, name + " " + value + " asked for: no such option or value");
    }
  }
  if (argc % 2 == 0)
    throw EngineError(ErrorCode::invalid_argument, std::string(argv[argc - 1]) + " asked for: without a value");
  return options;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    Bench(parse(argc, argv)).run();
    return 0;
  } catch (const EngineError& error) {
    std::fprintf(stderr, "%s: %s\n%s\n", error_code_name(error.code()), error.what(), error.hint().c_str());
    return 1;
  }
}
