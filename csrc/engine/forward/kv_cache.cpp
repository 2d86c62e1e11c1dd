#include "engine/forward/kv_cache.h"

namespace sigmoe {

KvCache::KvCache(Backend& backend, int64_t n_layers, int64_t n_pages, int64_t n_kv_heads, int64_t head_dim) {
  const DType dtype = backend.info().kv_dtype;
  const size_t bytes = static_cast<size_t>(n_pages) * n_kv_heads * kPageTokens * head_dim * dtype_bytes(dtype);
  for (int64_t layer = 0; layer < n_layers; ++layer) {
    buffers_.push_back(backend.alloc(bytes, "KV cache (keys)"));
    buffers_.push_back(backend.alloc(bytes, "KV cache (values)"));
    views_.push_back({buffers_[2 * layer].data(), buffers_[2 * layer + 1].data(), dtype});
  }
}

uint64_t KvCache::bytes() const {
  uint64_t total = 0;
  for (const DeviceBuffer& buffer : buffers_) total += buffer.bytes();
  return total;
}

uint64_t kv_bytes_per_token(const ModelConfig& config, DType dtype, int64_t n_layers) {
  return 2ull * n_layers * config.n_kv_heads * config.head_dim * dtype_bytes(dtype);
}

}  // namespace sigmoe
