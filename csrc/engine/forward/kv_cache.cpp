#include "engine/forward/kv_cache.h"

namespace sigmoe {

KvCache::KvCache(Backend& backend, int64_t n_layers, int64_t n_pages, int64_t n_kv_heads, int64_t head_dim) {
  const DType dtype = backend.info().kv_dtype;
  const size_t n_rows = static_cast<size_t>(n_pages) * n_kv_heads * kPageTokens, bytes = n_rows * head_dim * dtype_bytes(dtype);
  const auto part = [&](size_t part_bytes, const char* what) {
    return buffers_.emplace_back(backend.alloc(part_bytes, what)).data();
  };
  for (int64_t layer = 0; layer < n_layers; ++layer) {
    KvView view;
    view.dtype = dtype;
    view.k = part(bytes, "KV cache (keys)");
    view.v = part(bytes, "KV cache (values)");
    if (dtype == DType::f8_e4m3) {
      view.k_scales = static_cast<float*>(part(n_rows * sizeof(float), "KV cache (scales)"));
      view.v_scales = static_cast<float*>(part(n_rows * sizeof(float), "KV cache (scales)"));
    }
    views_.push_back(view);
  }
}

uint64_t KvCache::bytes() const {
  uint64_t total = 0;
  for (const DeviceBuffer& buffer : buffers_) total += buffer.bytes();
  return total;
}

uint64_t kv_bytes_per_token(const ModelConfig& config, int64_t n_kv_heads, DType dtype, int64_t n_layers) {
  return static_cast<uint64_t>(n_layers) * n_kv_heads * kv_head_bytes(dtype, config.head_dim);
}

}  // namespace sigmoe
