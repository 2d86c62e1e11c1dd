// The paged KV cache: which pages belong to whom (PagePool, plain data), and the device memory behind them (KvCache).
//
// Life of a page: free [in the pool's list] -> held [by exactly one sequence] -> free. Whenever the engine is idle,
// free + held = total and held = 0; release() checks that nothing is given back twice.
#pragma once

#include <cstdint>
#include <vector>

#include "backend/backend.h"
#include "engine/config.h"

namespace sigmoe {

constexpr int64_t pages_for(int64_t n_tokens) { return (n_tokens + kPageTokens - 1) / kPageTokens; }

class PagePool {
 public:
  explicit PagePool(int64_t n_pages);

  int64_t total() const { return static_cast<int64_t>(held_.size()); }
  int64_t free() const { return static_cast<int64_t>(free_.size()); }
  int64_t held() const { return total() - free(); }

  bool acquire(std::vector<int32_t>& pages, int64_t n);  // appends n pages, or appends none and returns false
  void release(std::vector<int32_t>& pages);             // gives all of them back and empties the list

 private:
  std::vector<int32_t> free_;  // taken from the back: pages used last are warm in cache
  std::vector<bool> held_;
};

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

uint64_t kv_bytes_per_token(const ModelConfig& config, DType dtype, int64_t n_layers);

}  // namespace sigmoe
