// The device memory behind the pages of the KV cache; which page is whose is page_pool.h's story.
#pragma once

#include <cstdint>
#include <vector>

#include "backend/backend.h"
#include "engine/checkpoint/config.h"

namespace sigmoe {

// One rank's K and V of every layer, MTP layers last.
class KvCache {
 public:
  KvCache(Backend& backend, int64_t n_layers, int64_t n_pages, int64_t n_kv_heads, int64_t head_dim);

  const KvView& layer(int64_t index) const { return views_[index]; }
  uint64_t bytes() const;

 private:
  std::vector<DeviceBuffer> buffers_;
  std::vector<KvView> views_;
};

// Of so many KV heads: all of the model's, or those that a rank has.
uint64_t kv_bytes_per_token(const ModelConfig& config, int64_t n_kv_heads, DType dtype, int64_t n_layers);

}  // namespace sigmoe
