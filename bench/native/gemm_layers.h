// What sigmoe_cuda_gemm_bench multiplies: arrays on the device, packed rows, lists of slots, and an expert layer's two products
// with all their buffers.
#pragma once

#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "cuda/bench_kernels.h"
#include "cuda/cuda_backend.h"
#include "cuda/tensor_gemm.h"

namespace sigmoe::cuda::bench {

inline std::vector<float> gaussian(size_t n, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(n);
  for (float& value : values) value = normal(random);
  return values;
}

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

struct Packed {
  Packed(Backend& backend, WeightFormat format, int n_rows, int k)
      : n_blocks((k + 127) / 128 * 128 / block_k(format)),
        stride(round_up_8(n_rows)),
        data(backend, PackedRows::data_bytes(n_blocks, stride)),
        scales(backend, stride) {}
  PackedRows view() const { return {data.get(), scales.get(), stride}; }
  int n_blocks, stride;
  Array<uint8_t> data;
  Array<float> scales;
};

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
        inner_rows(backend, static_cast<size_t>(packed_inner.stride) * ((inner + 127) / 128 * 128)),
        tiles(backend, most_tiles(tile_rows(format), lists.order.size(), lists.n_experts, n_shared)),
        n_tiles(backend, 1),
        out(backend, static_cast<size_t>(lists.n_tokens) * n_slots * width) {
    launch_fill_f32(backend.queue(), 31, 1.7f, x.n, x.get());
    plan.expert_offsets = offsets.get();
    plan.experts = layer.gate_up_tiles->get();
    plan.n_experts = lists.n_experts;
    plan.n_shared = n_shared;
    plan.tile_rows = tile_rows(format);
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
    up.inner = down.x = packed_inner.view();
    up.inner_rows = inner_rows.get();
    down.slots = reinterpret_cast<__nv_bfloat16*>(out.get());
  }
  void pack() const { launch_pack_rows(backend.queue(), format, x.get(), nullptr, lists.n_tokens, width, packed.view(), plan); }
  void gate_up() const { launch_tensor_gemm(backend.queue(), up); }
  void pack_inner() const {
    if (format == WeightFormat::fp8) launch_pack_inner(backend.queue(), up.inner_rows, packed_inner.n_blocks, down.x);
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
  Array<__nv_bfloat16> inner_rows;
  Array<RowTile> tiles;
  Array<int32_t> n_tiles;
  Array<uint16_t> out;  // BF16
  TilePlan plan;
  TensorGemmArgs up, down;
};

// cuda_gemm_check.cpp: 0 if every case is right.
int check(CudaBackend& backend);

}  // namespace sigmoe::cuda::bench
