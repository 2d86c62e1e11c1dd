// The many-row products over edge shapes against the naive kernels. The reference quantises activations as the kernels do
// (E4M3, one scale per row) on the host and multiplies in float32.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>

#include "cuda/ops.h"
#include "gemm_layers.h"

namespace sigmoe::cuda::bench {
namespace {

constexpr double kMostError = 1e-5;

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

// What the kernels read instead of x (rows, k).
std::vector<float> as_packed(WeightFormat format, std::vector<float> x, int k) {
  for (size_t row = 0; row < x.size(); row += k) {
    float largest = 1e-10f;
    for (int i = 0; i < k; ++i) largest = std::max(largest, std::fabs(x[row + i]));
    for (int i = 0; i < k; ++i)
      x[row + i] = format == WeightFormat::fp8 ? round_fp8(x[row + i] * (448.0f / largest)) * (largest / 448.0f)
                                               : bf16_to_f32(f32_to_bf16(x[row + i]));
  }
  return x;
}

int place(WeightFormat format, int k) {  // byte of k in its block of 128
  if (format == WeightFormat::fp8) {
    const int word = k / 4, i = k % 4;
    return (word / 16 * 16 + word % 8 / 2 * 4 + word / 8 % 2 * 2 + word % 2) * 4 + (i == 1 ? 2 : i == 2 ? 1 : i);
  }
  return k / 16 * 32 + k % 4 / 2 * 16 + k % 16 / 4 * 4 + k % 2 * 2;
}

// Row r of what lies between the two products as floats.
std::vector<float> unpack_row(WeightFormat format, const std::vector<uint8_t>& data, const std::vector<float>& scales,
                              int stride, int r, int k) {
  std::vector<float> row(k);
  const int in_block = block_k(format);
  for (int i = 0; i < k; ++i) {
    const size_t at = static_cast<size_t>(i / in_block) * stride + r;
    const int byte = place(format, i % in_block);
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
  const Array<float> in(backend, x), exact_in(backend, as_packed(format, x, k)), want(backend, static_cast<size_t>(rows) * n);
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
  run.pack_inner();
  run.project_down();
  std::vector<float> out;
  for (const uint16_t bits : run.out.read()) out.push_back(bf16_to_f32(bits));
  const std::vector<uint8_t> packed = run.packed_inner.data.read();
  const std::vector<float> scales = run.packed_inner.scales.read();
  const int n_tiles = run.n_tiles.read()[0];
  const std::vector<RowTile> tiles = run.tiles.read();
  const Array<float> exact_x(backend, as_packed(format, run.x.read(), width));
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
    want = as_packed(format, as_packed(WeightFormat::bf16, want, inner), inner);
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

}  // namespace

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

}  // namespace sigmoe::cuda::bench
