// What work has to read and to compute: the bound it is compared with. Bytes are those a step must read once: weights (of
// experts, those its tokens were routed to) and cached keys and values. FLOP are two per multiply-add.
#pragma once

#include "engine/checkpoint/config.h"
#include "engine/weights/weights.h"

namespace sigmoe::bench {

struct Cost {
  double bytes = 0;
  double flop = 0;      // of BF16 operands and wider
  double flop_fp8 = 0;  // of products whose weights are FP8, and of attention that multiplies in it

  Cost& operator+=(const Cost& other) {
    bytes += other.bytes;
    flop += other.flop;
    flop_fp8 += other.flop_fp8;
    return *this;
  }
  Cost& operator-=(const Cost& other) { return *this += other * -1; }
  Cost operator*(double n) const { return {bytes * n, flop * n, flop_fp8 * n}; }
  double all_flop() const { return flop + flop_fp8; }
};
inline Cost operator+(Cost a, const Cost& b) { return a += b; }

// Costs of the parts of a layer.
class Costs {
 public:
  // `fp8_body`, `fp8_head`: the products of these weights count as FP8. So does attention of prompts where it runs in FP8, over
  // a BF16 cache half of it.
  Costs(const ModelConfig& config, const ModelWeights& weights, const BackendInfo& info, bool fp8_body, bool fp8_head);

  Cost qkv(int n_tokens) const;
  Cost attention_out(int n_tokens) const;
  // `n_seqs` sequences whose last `n_tokens` rows each end at `context`.
  Cost attention(int n_seqs, int n_tokens, int64_t context) const;
  Cost route(int n_tokens) const;
  Cost experts(double n_touched, int n_tokens, bool with_shared = true) const;  // of an MoE layer
  Cost dense_mlp(int n_tokens) const;
  Cost head(int n_rows) const;
  // Every layer of a step; n_touched experts of all MoE layers together.
  Cost trunk(int n_seqs, int n_tokens, int64_t context, double n_touched) const;

 private:
  Cost linear(const LinearWeight* weight, double macs_per_token, double n_tokens, bool fp8) const;
  const LayerWeights* first(bool dense) const;

  const ModelConfig& c_;
  const ModelWeights& weights_;
  DType kv_dtype_, prefill_dtype_;
  bool fp8_body_, fp8_head_;
};

}  // namespace sigmoe::bench
