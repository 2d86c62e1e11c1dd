// sigmoe_cuda_gemm_bench: the many-row products of the CUDA backend, checked against the naive kernels over edge shapes, then
// timed at the model's shapes beside the read stream measured in the same run.
//
//   sigmoe_cuda_gemm_bench check            every case must pass: error 1 - 2<x,y> / (|x|^2 + |y|^2) below 1e-5
//   sigmoe_cuda_gemm_bench time [PEAK [quick]]   PEAK: TFLOPS of a large FP8 product measured in the same job, for the
//                                                fractions; quick: many rows alone
//   sigmoe_cuda_gemm_bench sustain          the experts' products for a second each: at the card's power limit
//
// The reference quantises activations as the kernels do (E4M3, one scale per row, the inner ones rounded per 128 first) on the
// host and multiplies in float32. Times are medians of graph replays over weights larger than the cache, packing of x included.
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <numeric>
#include <random>
#include <string>

#include "cuda/bench_kernels.h"
#include "cuda/cuda_backend.h"
#include "cuda/ops.h"
#include "cuda/tensor_gemm.h"

using namespace sigmoe;
using namespace sigmoe::cuda;

namespace {

constexpr double kMostError = 1e-5;

// Device memory of one type.
template <typename T>
struct Array {
  Array(Backend& backend, size_t n)
      : backend(backend), n(n), buffer(backend.alloc(std::max<size_t>(n, 1) * sizeof(T), "bench")) {}
  Array(Backend& backend, const std::vector<T>& values) : Array(backend, values.size()) { write(values); }
  void write(const std::vector<T>& values) { backend.upload(buffer.data(), values.data(), values.size() * sizeof(T)); }
  T* get() const { return buffer.template as<T>(); }
  std::vector<T> read() const {
    std::vector<T> values(n);
    backend.download(values.data(), buffer.data(), n * sizeof(T));
    return values;
  }
  Backend& backend;
  size_t n;
  DeviceBuffer buffer;
};

float from_fp8(uint8_t code) { return f8e4m3_to_f32(code); }

// The E4M3 value nearest to v, ties to even: codes of a sign are ordered as their values.
float round_fp8(float v) {
  static const std::vector<float> values = [] {
    std::vector<float> all;
    for (int code = 0; code < 0x7f; ++code) all.push_back(from_fp8(static_cast<uint8_t>(code)));
    return all;
  }();
  const float size = std::min(std::fabs(v), 448.0f);
  size_t above = std::lower_bound(values.begin(), values.end(), size) - values.begin();
  if (above > 0) {
    const float low = size - values[above - 1], high = values[above] - size;
    if (low < high || (low == high && above % 2 == 1)) --above;
  }
  return std::copysign(values[above], v);
}

// What the kernels read instead of x (rows, k), one scale per `block` of a row, rounded up to a power of 16 or not.
std::vector<float> as_packed(WeightFormat format, std::vector<float> x, int k, int block, bool power_of_16) {
  for (size_t row = 0; row < x.size(); row += k)
    for (int first = 0; first < k; first += block) {
      const int last = std::min(k, first + block);
      float largest = 1e-10f;
      for (int i = first; i < last; ++i) largest = std::max(largest, std::fabs(x[row + i]));
      if (power_of_16) largest = std::exp2(4 * std::ceil(std::log2(largest / 448.0f) / 4)) * 448.0f;
      for (int i = first; i < last; ++i)
        x[row + i] = format == WeightFormat::fp8 ? round_fp8(x[row + i] * (448.0f / largest)) * (largest / 448.0f)
                                                 : bf16_to_f32(f32_to_bf16(x[row + i]));
    }
  return x;
}

int place(WeightFormat format, int k) {  // byte of k in its 32-byte chunk
  if (format == WeightFormat::fp8) {
    const int i = k % 4;
    return k % 8 / 4 * 16 + k / 8 * 4 + (i == 1 ? 2 : i == 2 ? 1 : i);
  }
  return k % 4 / 2 * 16 + k / 4 * 4 + k % 2 * 2;
}

// Row r of what lies between the two products as floats.
std::vector<float> unpack_row(WeightFormat format, const std::vector<uint8_t>& data, const std::vector<float>& scales,
                              int stride, int r, int k) {
  std::vector<float> row(k);
  const int in_block = block_k(format), in_chunk = chunk_k(format);
  for (int i = 0; i < k; ++i) {
    const size_t at = static_cast<size_t>(i / in_block) * stride + r;
    const int byte = i % in_block / in_chunk * 32 + place(format, i % in_chunk);
    const uint8_t* source = &data[at * 128 + (byte / 16 ^ r % 8) * 16 + byte % 16];
    if (format == WeightFormat::fp8) {
      row[i] = from_fp8(*source) * scales[r];
    } else {
      uint16_t bits;
      std::memcpy(&bits, source, 2);
      row[i] = bf16_to_f32(bits);
    }
  }
  return row;
}

double error_of(const std::vector<float>& x, const std::vector<float>& y) {
  double xy = 0, sizes = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    xy += static_cast<double>(x[i]) * y[i];
    sizes += static_cast<double>(x[i]) * x[i] + static_cast<double>(y[i]) * y[i];
  }
  return sizes == 0 ? 0 : 1 - 2 * xy / sizes;
}

std::vector<float> gaussian(size_t n, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(n);
  for (float& value : values) value = normal(random);
  return values;
}

// A weight with codes and scales all different; block_n 128: blocks of 128 x 128, 1: one scale per row.
std::unique_ptr<LinearWeight> host_weight(Backend& backend, WeightFormat format, int n, int k, bool gate_up, int block_n,
                                          uint64_t seed) {
  std::minstd_rand random(static_cast<uint32_t>(seed) + 1);
  LinearDesc desc;
  desc.format = format, desc.n = n, desc.k = k, desc.gate_up = gate_up, desc.name = "bench weight";
  if (format == WeightFormat::fp8) {
    if (block_n == 128)
      for (int b = 0; b < k; b += 128) desc.k_bounds.push_back(b);
    else
      desc.k_bounds.push_back(0);
    desc.k_bounds.push_back(k);
  }
  const auto builder = backend.begin_linear(desc);
  const size_t row_bytes = weight_row_bytes(format, k);
  std::vector<std::byte> rows(row_bytes * n);
  std::uniform_real_distribution<float> values(-0.1f, 0.1f);
  if (format == WeightFormat::fp8) {
    for (auto& code : rows) {
      code = static_cast<std::byte>(random() >> 8);
      if ((code & std::byte{0x7f}) == std::byte{0x7f}) code = std::byte{1};
    }
  } else {
    for (size_t i = 0; i < rows.size() / 2; ++i) reinterpret_cast<uint16_t*>(rows.data())[i] = f32_to_bf16(values(random));
  }
  builder->put_rows(0, n, rows.data(), row_bytes);
  if (format == WeightFormat::fp8) {
    const size_t n_blocks = desc.k_bounds.size() - 1;
    std::uniform_real_distribution<float> uniform(0.0002f, 0.0008f);
    std::vector<float> scales(n_blocks * n);
    for (int row = 0; row < n; ++row)
      for (size_t b = 0; b < n_blocks; ++b)
        scales[row * n_blocks + b] = row % block_n == 0 ? uniform(random) : scales[(row - 1) * n_blocks + b];
    builder->put_scales(0, n, scales.data());
  }
  return builder->finish();
}

struct Packed {
  Packed(Backend& backend, WeightFormat format, int n_rows, int k)
      : n_blocks((k + 127) / 128 * 128 / block_k(format)),
        stride(round_up_8(n_rows)),
        data(backend, PackedRows::data_bytes(n_blocks, stride)),
        scales(backend, PackedRows::inner_scales(n_blocks, stride)) {}
  PackedRows view() const { return {data.get(), scales.get(), stride}; }
  PackedRows inner() const { return PackedRows::of_inner(data.get(), scales.get(), stride); }
  int n_blocks, stride;
  Array<uint8_t> data;
  Array<float> scales;
};

bool report(const std::string& name, double error, double limit) {
  const bool right = error < limit;
  std::printf("%-58s error %.2e %s\n", name.c_str(), error, right ? "" : "WRONG");
  return right;
}

// Which k each k was multiplied as: x row t is one at k = t alone, so y (t, n) must be W (n, t).
void probe(CudaBackend& backend, WeightFormat format) {
  constexpr int k = 128, n = 256, rows = 128;
  const auto weight = host_weight(backend, format, n, k, false, 1, 77);
  std::vector<float> x(rows * k);
  for (int t = 0; t < rows; ++t) x[t * k + t] = 1.0f;
  const Array<float> in(backend, x), want(backend, rows * n), got(backend, rows * n);
  launch_exact_linear(backend.queue(), in.get(), nullptr, view_of(*weight), rows, want.get());
  const Packed packed(backend, format, rows, k);
  launch_pack_rows(backend.queue(), format, in.get(), nullptr, rows, k, packed.view(), {});
  TensorGemmArgs args;
  args.weight = view_of(*weight), args.x = packed.view(), args.n_rows = rows, args.out = got.get();
  launch_tensor_gemm(backend.queue(), args);
  const std::vector<float> a = got.read(), b = want.read();
  const auto same = [](float u, float v) { return std::fabs(u - v) <= 0.01f * std::fabs(v) + 1e-7f; };
  int wrong = 0;
  for (int i = 0; i < rows * n; ++i) wrong += !same(a[i], b[i]);
  std::printf("probe %s: %d of %d wrong\n", weight_format_name(format), wrong, rows * n);
  if (wrong == 0) return;
  for (int t = 0; t < rows; t += t < 40 ? 1 : 17) {
    int best = -1, best_hits = 0;
    for (int other = 0; other < k; ++other) {
      int hits = 0;
      for (int m = 0; m < n; ++m) hits += same(a[t * n + m], b[other * n + m]);
      if (hits > best_hits) best = other, best_hits = hits;
    }
    std::printf("  row %d looks like k %d (%d of %d), first %g want %g\n", t, best, best_hits, n, a[t * n], b[t * n]);
  }
}

bool check_linear(CudaBackend& backend, WeightFormat format, int rows, int n, int k, int block_n) {
  const auto weight = host_weight(backend, format, n, k, false, block_n, n + k + rows);
  const std::vector<float> x = gaussian(static_cast<size_t>(rows) * k, 5);
  const Array<float> in(backend, x), exact_in(backend, as_packed(format, x, k, k, false)),
      want(backend, static_cast<size_t>(rows) * n);
  const Array<float> got(backend, std::vector<float>(static_cast<size_t>(rows) * n, -12345.0f));
  launch_exact_linear(backend.queue(), exact_in.get(), nullptr, view_of(*weight), rows, want.get());
  const Packed packed(backend, format, rows, k);
  launch_pack_rows(backend.queue(), format, in.get(), nullptr, rows, k, packed.view(), {});
  TensorGemmArgs args;
  args.weight = view_of(*weight), args.x = packed.view(), args.n_rows = rows, args.out = got.get();
  launch_tensor_gemm(backend.queue(), args);
  const std::vector<float> a = got.read(), b = want.read();
  const bool right = report("linear " + std::string(weight_format_name(format)) + " rows " + std::to_string(rows) + " n " +
                                std::to_string(n) + " k " + std::to_string(k) + (block_n == 1 ? " per channel" : ""),
                            error_of(a, b), kMostError);
  if (!right)
    for (int i = 0, told = 0; i < rows * n && told < 6; ++i)
      if (std::fabs(a[i] - b[i]) > 0.02f * std::fabs(b[i]) + 1e-2f)
        ++told, std::printf("  row %d n %d: %g, should be %g\n", i / n, i % n, a[i], b[i]);
  return right;
}

// Lists of an expert layer: counts[e] slots of expert e, spread over tokens with n_active choices each.
struct Lists {
  int n_tokens, n_active, n_experts;
  std::vector<int32_t> offsets, order;
  std::vector<float> weights;
  Lists(const std::vector<int>& counts, int n_active, uint64_t seed) : n_active(n_active), n_experts(counts.size()) {
    offsets.push_back(0);
    for (const int count : counts) offsets.push_back(offsets.back() + count);
    n_tokens = (offsets.back() + n_active - 1) / n_active;
    // Slots in any order: the kernels only need each to be listed once.
    order.resize(offsets.back());
    std::iota(order.begin(), order.end(), 0);
    std::mt19937_64 random(seed);
    std::shuffle(order.begin(), order.end(), random);
    for (int e = 0; e < n_experts; ++e) std::sort(order.begin() + offsets[e], order.begin() + offsets[e + 1]);
    weights = gaussian(static_cast<size_t>(n_tokens) * n_active, seed);
  }
};

struct ExpertLayer {
  std::vector<std::unique_ptr<LinearWeight>> gate_up, down;
  std::unique_ptr<LinearWeight> shared_gate_up, shared_down;
  std::unique_ptr<Array<ExpertTiles>> gate_up_tiles, down_tiles;
  template <typename Make>
  ExpertLayer(CudaBackend& backend, int n_experts, bool shared, const Make& make) {
    for (int e = 0; e < n_experts; ++e) gate_up.push_back(make(true, 2 * e)), down.push_back(make(false, 2 * e + 1));
    if (shared) shared_gate_up = make(true, 9001), shared_down = make(false, 9002);
    gate_up_tiles = table(backend, gate_up);
    down_tiles = table(backend, down);
  }
  static std::unique_ptr<Array<ExpertTiles>> table(Backend& backend,
                                                   const std::vector<std::unique_ptr<LinearWeight>>& weights) {
    std::vector<ExpertTiles> host;
    for (const auto& weight : weights) host.push_back({view_of(*weight).tiles, view_of(*weight).scales});
    return std::make_unique<Array<ExpertTiles>>(backend, host);
  }
};

// The two products of an expert layer with all their buffers.
struct ExpertRun {
  ExpertRun(CudaBackend& backend, WeightFormat format, const ExpertLayer& layer, const Lists& lists, int width, int inner)
      : backend(backend),
        format(format),
        lists(lists),
        width(width),
        n_shared(layer.shared_gate_up ? lists.n_tokens : 0),
        n_slots(lists.n_active + (layer.shared_gate_up ? 1 : 0)),
        x(backend, static_cast<size_t>(lists.n_tokens) * width),
        offsets(backend, lists.offsets),
        order(backend, lists.order),
        weights(backend, lists.weights),
        packed(backend, format, lists.n_tokens, width),
        packed_inner(backend, format, most_packed_rows(lists.order.size(), lists.n_experts, n_shared), inner),
        tiles(backend, most_tiles(lists.order.size(), lists.n_experts, n_shared)),
        n_tiles(backend, 1),
        out(backend, static_cast<size_t>(lists.n_tokens) * n_slots * width) {
    launch_fill_f32(backend.queue(), 31, 1.7f, x.n, x.get());
    plan.expert_offsets = offsets.get();
    plan.experts = layer.gate_up_tiles->get();
    plan.n_experts = lists.n_experts;
    plan.n_shared = n_shared;
    plan.tiles = tiles.get();
    plan.n_tiles = n_tiles.get();
    up.mode = GemmMode::gate_up, down.mode = GemmMode::down;
    up.weight = view_of(layer.shared_gate_up ? *layer.shared_gate_up : *layer.gate_up[0]);
    down.weight = view_of(layer.shared_down ? *layer.shared_down : *layer.down[0]);
    up.experts = layer.gate_up_tiles->get();
    down.experts = layer.down_tiles->get();
    for (TensorGemmArgs* args : {&up, &down}) {
      args->tiles = tiles.get();
      args->n_tiles = n_tiles.get();
      args->n_experts = lists.n_experts;
      args->slot_order = order.get();
      args->slot_weights = weights.get();
      args->n_active = lists.n_active;
      args->n_slots = n_slots;
      args->rows_each = static_cast<int>(lists.order.size()) / lists.n_experts;
    }
    up.x = packed.view();
    up.inner = down.x = packed_inner.inner();
    down.slots = reinterpret_cast<__nv_bfloat16*>(out.get());
  }
  void pack() const { launch_pack_rows(backend.queue(), format, x.get(), nullptr, lists.n_tokens, width, packed.view(), plan); }
  void gate_up() const { launch_tensor_gemm(backend.queue(), up); }
  void rescale() const {
    if (format == WeightFormat::fp8) launch_row_scales(backend.queue(), up.inner, packed_inner.n_blocks);
  }
  void project_down() const { launch_tensor_gemm(backend.queue(), down); }

  CudaBackend& backend;
  WeightFormat format;
  const Lists& lists;
  int width, n_shared, n_slots;
  Array<float> x;
  Array<int32_t> offsets, order;
  Array<float> weights;
  Packed packed, packed_inner;
  Array<RowTile> tiles;
  Array<int32_t> n_tiles;
  Array<uint16_t> out;  // BF16
  TilePlan plan;
  TensorGemmArgs up, down;
};

bool check_experts(CudaBackend& backend, WeightFormat format, const std::vector<int>& counts, int width, int inner, bool shared,
                   int block_n) {
  const Lists lists(counts, 3, 17);
  const ExpertLayer layer(backend, lists.n_experts, shared, [&](bool gate_up, int seed) {
    return host_weight(backend, format, gate_up ? 2 * inner : width, gate_up ? width : inner, gate_up, block_n, seed);
  });
  const ExpertRun run(backend, format, layer, lists, width, inner);
  run.backend.upload(run.out.get(), std::vector<uint16_t>(run.out.n, f32_to_bf16(-12345.0f)).data(),
                     run.out.n * sizeof(uint16_t));
  run.pack();
  run.gate_up();
  run.rescale();
  run.project_down();
  std::vector<float> out;
  for (const uint16_t bits : run.out.read()) out.push_back(bf16_to_f32(bits));
  const std::vector<uint8_t> packed = run.packed_inner.data.read();
  const std::vector<float> scales = run.packed_inner.scales.read();
  const int n_tiles = run.n_tiles.read()[0];
  const std::vector<RowTile> tiles = run.tiles.read();
  const Array<float> exact_x(backend, as_packed(format, run.x.read(), width, width, false));
  std::vector<float> inner_got, inner_want, out_got, out_want;
  std::vector<char> written(out.size() / width);
  for (int i = 0; i < n_tiles; ++i) {
    const RowTile& tile = tiles[i];
    const bool is_shared = tile.expert == lists.n_experts;
    std::vector<int32_t> tokens, slots;
    std::vector<float> own;  // the inner rows as the kernel left them
    for (int r = 0; r < tile.n_rows; ++r) {
      slots.push_back(is_shared ? (tile.first + r) : lists.order[tile.first + r]);
      tokens.push_back(is_shared ? slots[r] : slots[r] / lists.n_active);
      const std::vector<float> row = unpack_row(format, packed, scales, run.packed_inner.stride, tile.packed_row + r, inner);
      own.insert(own.end(), row.begin(), row.end());
    }
    const Array<int32_t> ids(backend, tokens);
    const Array<float> both(backend, tokens.size() * 2 * inner), own_x(backend, own), y(backend, tokens.size() * width);
    launch_exact_linear(backend.queue(), exact_x.get(), ids.get(),
                        view_of(is_shared ? *layer.shared_gate_up : *layer.gate_up[tile.expert]), tile.n_rows, both.get());
    const std::vector<float> products = both.read();
    std::vector<float> want(tokens.size() * inner);
    for (int r = 0; r < tile.n_rows; ++r)
      for (int f = 0; f < inner; ++f) {
        const float gate = products[(2 * r) * inner + f], up = products[(2 * r + 1) * inner + f];
        want[r * inner + f] = gate / (1 + std::exp(-gate)) * up;
      }
    want = as_packed(format, as_packed(format, want, inner, 128, true), inner, inner, true);
    inner_want.insert(inner_want.end(), want.begin(), want.end());
    inner_got.insert(inner_got.end(), own.begin(), own.end());
    launch_exact_linear(backend.queue(), own_x.get(), nullptr,
                        view_of(is_shared ? *layer.shared_down : *layer.down[tile.expert]), tile.n_rows, y.get());
    const std::vector<float> down = y.read();
    for (int r = 0; r < tile.n_rows; ++r) {
      const int row = is_shared ? slots[r] * run.n_slots + lists.n_active
                                : slots[r] / lists.n_active * run.n_slots + slots[r] % lists.n_active;
      written[row] = 1;
      const float weight = is_shared ? 1.0f : lists.weights[slots[r]];
      for (int d = 0; d < width; ++d) {
        out_want.push_back(down[r * width + d] * weight);
        out_got.push_back(out[static_cast<size_t>(row) * width + d]);
      }
    }
  }
  size_t n_written = std::count(written.begin(), written.end(), 1);
  bool whole = n_written == lists.order.size() + (shared ? lists.n_tokens : 0);
  for (size_t row = 0; row < written.size(); ++row)
    if (!written[row]) whole = whole && out[row * width] == bf16_to_f32(f32_to_bf16(-12345.0f));
  std::string name = std::string(weight_format_name(format)) + " " + std::to_string(width) + "x" + std::to_string(inner) +
                     (shared ? " shared" : "") + (block_n == 1 ? " per channel" : "") + " rows";
  for (size_t i = 0; i < std::min<size_t>(counts.size(), 6); ++i) name += " " + std::to_string(counts[i]);
  // a product within rounding of a tie may round the other way: one E4M3 step of one value
  const bool up_right = report("gate_up " + name, error_of(inner_got, inner_want), 1e-4);
  const bool down_right = report("down    " + name, error_of(out_got, out_want), kMostError);
  if (!whole) std::printf("  rows written: %zu, or one that no expert has\n", n_written);
  return up_right && down_right && whole;
}

int check(CudaBackend& backend) {
  bool right = true;
  for (const WeightFormat format : {WeightFormat::fp8, WeightFormat::bf16}) {
    probe(backend, format);
    for (const auto& [rows, n, k] : {std::array<int, 3>{128, 256, 128},
                                     {128, 256, 1024},
                                     {1, 256, 256},
                                     {17, 512, 384},
                                     {64, 100, 200},
                                     {130, 272, 640},
                                     {300, 1024, 4096},
                                     {600, 5120, 512},
                                     {97, 24, 77}})
      right = check_linear(backend, format, rows, n, k, 128) && right;
    if (format == WeightFormat::fp8) right = check_linear(backend, format, 200, 333, 512, 1) && right;
    for (const int rows : {5, 32, 100, 300, 1023, 1024}) right = check_linear(backend, format, rows, 5120, 1152, 128) && right;
    right = check_experts(backend, format, {128, 256}, 256, 128, false, 128) && right;
    right = check_experts(backend, format, {0, 1, 5, 0, 130, 33, 16, 17, 600}, 512, 256, true, 128) && right;
    right = check_experts(backend, format, {64, 9, 0, 0, 300}, 1024, 384, true, 128) && right;
    // in pairs of blocks: even and odd numbers of row tiles
    right = check_experts(backend, format, {300, 257, 130, 1, 0, 128, 520}, 512, 256, true, 128) && right;
    right = check_experts(backend, format, {384, 129, 16, 256}, 1024, 512, true, 128) && right;
    right = check_experts(backend, format, {7, 3, 90}, 256, format == WeightFormat::fp8 ? 128 : 160, true, 1) && right;
    right = check_experts(backend, format, {3, 3, 0, 40}, 4096, 1024, false, 128) && right;
  }
  std::printf(right ? "all right\n" : "SOME WRONG\n");
  return right ? 0 : 1;
}

// ---- times -----------------------------------------------------------------------------------------------------------

double median_us(CudaBackend& backend, int n_runs, const std::function<void(int)>& run) {
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  const cudaStream_t stream = backend.queue().stream;
  run(0);
  CUDA_CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  for (int i = 0; i < n_runs; ++i) run(i);
  CUDA_CHECK(cudaStreamEndCapture(stream, &graph));
  CUDA_CHECK(cudaGraphInstantiate(&exec, graph, 0));
  cudaEvent_t start, stop;
  CUDA_CHECK(cudaEventCreate(&start));
  CUDA_CHECK(cudaEventCreate(&stop));
  std::vector<float> times;
  for (int i = 0; i < 13; ++i) {
    CUDA_CHECK(cudaEventRecord(start, stream));
    CUDA_CHECK(cudaGraphLaunch(exec, stream));
    CUDA_CHECK(cudaEventRecord(stop, stream));
    CUDA_CHECK(cudaEventSynchronize(stop));
    float ms;
    CUDA_CHECK(cudaEventElapsedTime(&ms, start, stop));
    if (i >= 2) times.push_back(ms * 1000 / n_runs);
  }
  std::sort(times.begin(), times.end());
  CUDA_CHECK(cudaGraphExecDestroy(exec));
  CUDA_CHECK(cudaGraphDestroy(graph));
  CUDA_CHECK(cudaEventDestroy(start));
  CUDA_CHECK(cudaEventDestroy(stop));
  return times[times.size() / 2];
}

double measure_stream(CudaBackend& backend) {
  cudaDeviceProp properties;
  CUDA_CHECK(cudaGetDeviceProperties(&properties, 0));
  const int n_sms = properties.multiProcessorCount;
  constexpr size_t kBytes = size_t{6} << 30;
  const DeviceBuffer data = backend.alloc(kBytes, "read stream"), sink = backend.alloc(256, "sink");
  launch_fill_f32(backend.queue(), 3, 1.0f, kBytes / 4, data.as<float>());
  const double us =
      median_us(backend, 1, [&](int) { launch_read_stream(backend.queue(), n_sms, data.data(), kBytes, sink.as<uint32_t>()); });
  return kBytes / us / 1e6;
}

constexpr int kWidth = 4096, kInner = 1024, kExperts = 256;
constexpr int kRagged = 257;  // stands for what a router without favourites makes of 8,192 tokens: 256 on the average

std::unique_ptr<LinearWeight> made(CudaBackend& backend, WeightFormat format, int n, int k, bool gate_up, int seed) {
  LinearDesc desc;
  desc.format = format, desc.n = n, desc.k = k, desc.gate_up = gate_up, desc.name = "bench";
  return backend.random_linear(desc, seed * 7919 + 3);
}

ExpertLayer model_layer(CudaBackend& backend, WeightFormat format, int n_experts = kExperts) {
  return ExpertLayer(backend, n_experts, false, [&](bool gate_up, int seed) {
    return made(backend, format, gate_up ? 2 * kInner : kWidth, gate_up ? kWidth : kInner, gate_up, seed);
  });
}

std::vector<int> counts_of(int rows) {
  std::vector<int> counts(kExperts, rows);
  std::mt19937_64 random(5);
  std::binomial_distribution<int> routed(8192 * 8, 1.0 / kExperts);
  if (rows == kRagged)
    for (int& count : counts) count = routed(random);
  return counts;
}

int sustain(CudaBackend& backend) {
  const ExpertLayer layer = model_layer(backend, WeightFormat::fp8);
  for (const int rows : {256, kRagged, 512}) {
    const Lists lists(counts_of(rows), 8, 3);
    const ExpertRun run(backend, WeightFormat::fp8, layer, lists, kWidth, kInner);
    run.pack();
    run.gate_up();
    run.rescale();
    const auto us = [&](const std::function<void()>& work) {
      const double once = median_us(backend, 1, [&](int) { work(); });
      return median_us(backend, std::max(1, static_cast<int>(1e6 / once) / 13), [&](int) { work(); });
    };
    std::printf("%d rows, sustained: gate_up %.1f us, down %.1f us\n", rows, us([&] { run.gate_up(); }),
                us([&] { run.project_down(); }));
  }
  return 0;
}

int time(CudaBackend& backend, double peak, bool quick) {
  const double stream = measure_stream(backend);
  std::printf("%s: read stream %.2f TB/s, FP8 peak given %.0f TFLOPS\n", backend.info().name.c_str(), stream, peak);
  for (const WeightFormat format : {WeightFormat::fp8, WeightFormat::bf16}) {
    if (quick && format == WeightFormat::bf16) continue;
    const double bytes_each = format == WeightFormat::fp8 ? 1 : 2;
    std::printf(
        "experts, %s: rows | pack us | gate_up us TFLOPS %%peak TB/s %%stream | down us (of them rescaling) TFLOPS %%peak TB/s "
        "%%stream\n",
        weight_format_name(format));
    const ExpertLayer layer = model_layer(backend, format);
    for (const int rows : {1, 8, 16, 32, 64, 128, 256, kRagged, 512}) {
      if (format == WeightFormat::bf16 && rows != 8 && rows != 64 && rows != 256) continue;
      if (quick && rows < 128) continue;
      const Lists lists(counts_of(rows), rows == 1 ? 1 : 8, 3);
      const ExpertRun run(backend, format, layer, lists, kWidth, kInner);
      const double slots = static_cast<double>(lists.order.size());
      const double pack = median_us(backend, 1, [&](int) { run.pack(); });
      const double up = median_us(backend, 1, [&](int) { run.gate_up(); });
      const double rescale = median_us(backend, 1, [&](int) { run.rescale(); });  // once more each time: codes end as zeros
      run.gate_up();
      run.rescale();
      const double down = rescale + median_us(backend, 1, [&](int) { run.project_down(); });
      const double up_flop = 2.0 * slots * 2 * kInner * kWidth, down_flop = 2.0 * slots * kInner * kWidth;
      const double up_bytes = bytes_each * (2.0 * kInner * kWidth * kExperts + lists.n_tokens * kWidth + slots * kInner);
      const double down_bytes = bytes_each * (1.0 * kInner * kWidth * kExperts + slots * kInner) + 2.0 * slots * kWidth;
      std::printf("%4d | %6.1f | %7.1f %6.0f %3.0f%% %5.2f %3.0f%% | %7.1f (%.1f) %6.0f %3.0f%% %5.2f %3.0f%%\n", rows, pack,
                  up, up_flop / up / 1e6, up_flop / up / 1e4 / peak, up_bytes / up / 1e6, up_bytes / up / 1e4 / stream, down,
                  rescale, down_flop / down / 1e6, down_flop / down / 1e4 / peak, down_bytes / down / 1e6,
                  down_bytes / down / 1e4 / stream);
    }
  }
  std::printf("linear, fp8, packing included: n k rows | us TFLOPS %%peak | weight TB/s %%stream\n");
  for (const auto& [n, k] : {std::pair<int, int>{5120, 4096}, {4096, 4096}, {18432, 4096}, {4096, 9216}, {157184, 4096}}) {
    const bool head = n > 100000;
    std::vector<std::unique_ptr<LinearWeight>> weights;
    for (int i = 0; i < (head ? 2 : 12); ++i) weights.push_back(made(backend, WeightFormat::fp8, n, k, false, 400 + i));
    for (const int rows : {32, 64, 128, 256, 512, 1023, 4096, 8192}) {
      if ((quick && (rows != 8192 || n != 5120)) || (head && rows > 512)) continue;
      const Array<float> x(backend, static_cast<size_t>(rows) * k), y(backend, static_cast<size_t>(rows) * n);
      launch_fill_f32(backend.queue(), 9, 1.7f, x.n, x.get());
      const Packed packed(backend, WeightFormat::fp8, rows, k);
      const double us = median_us(backend, rows > 1000 ? 3 : 24, [&](int i) {
        launch_pack_rows(backend.queue(), WeightFormat::fp8, x.get(), nullptr, rows, k, packed.view(), {});
        TensorGemmArgs args;
        args.weight = view_of(*weights[i % weights.size()]), args.x = packed.view(), args.n_rows = rows, args.out = y.get();
        launch_tensor_gemm(backend.queue(), args);
      });
      const double flop = 2.0 * rows * n * k;
      std::printf("%5d %4d %4d | %7.1f %6.0f %3.0f%% | %5.2f %3.0f%%\n", n, k, rows, us, flop / us / 1e6,
                  flop / us / 1e4 / peak, 1.0 * n * k / us / 1e6, 1.0 * n * k / us / 1e4 / stream);
    }
  }
  return 0;
}

// One product of each kind, for a profiler.
int profile(CudaBackend& backend) {
  constexpr int kRows = 8192, n = 5120, k = 4096, kFew = 64;
  const auto weight = made(backend, WeightFormat::fp8, n, k, false, 1);
  const Array<float> x(backend, static_cast<size_t>(kRows) * k), y(backend, static_cast<size_t>(kRows) * n);
  launch_fill_f32(backend.queue(), 9, 1.7f, x.n, x.get());
  backend.linear(x.get(), *weight, kRows, y.get());
  const ExpertLayer layer = model_layer(backend, WeightFormat::fp8, kFew);
  const Lists lists(std::vector<int>(kFew, 256), 8, 3);
  const ExpertRun run(backend, WeightFormat::fp8, layer, lists, kWidth, kInner);
  run.pack();
  run.gate_up();
  run.rescale();
  run.project_down();
  backend.synchronize();
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  try {
    CudaBackend backend(BackendOptions{});
    const std::string mode = argc > 1 ? argv[1] : "check";
    if (mode == "check") return check(backend);
    if (mode == "profile") return profile(backend);
    if (mode == "sustain") return sustain(backend);
    return time(backend, argc > 2 ? std::atof(argv[2]) : 1305, argc > 3);
  } catch (const std::exception& error) {
    std::printf("failed: %s\n", error.what());
    return 1;
  }
}
