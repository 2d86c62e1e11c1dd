// One token per row of logits (R, V): bans and mask, bias, penalties, temperature, min-p, top-k, top-p, a draw;
// log-probabilities; chains. A chain of rows belongs to one vector core. Nothing is sorted but at most 1024 candidates.
//
// Weights are the integers of kernels/cpu/sample.h, so a sum does not depend on its order and the token is the very one that
// sorting the vocabulary gives. The vector unit has floats only: a weight below 2^40 goes through four digits of 12, 12, 12 and
// 4 bits, whose sums over a chunk are exact. top-k, top-p and the draw each ask for the first token, the most likely first, at
// which a sum reaches a target: cut() bisects between logits, a pass over the row each, until few candidates are left to sort.
// Bound: a greedy row reads its logits once.
#include "ascend/device/sample_cut.h"

namespace sigmoe_sample_kernel {

class Sample : public SampleCut {
 public:
  using SampleCut::SampleCut;

  __aicore__ inline void process() {
    int32_t chain = -1, token = -1;
    for (int32_t row = 0; row < t_.n_rows; ++row) {
      const int32_t drafted = word(row, kRowIfPrevious);
      if (drafted < 0) ++chain;
      if (chain % GetBlockNum() != GetBlockIdx()) continue;
      token = drafted >= 0 && token != drafted ? -1 : choose(row);
      finish(row, token);
    }
  }

 private:
  __aicore__ inline int32_t choose(int32_t row) {
    const int32_t forced = word(row, kRowForced);
    if (forced >= 0) return forced;
    const float temperature = number(row, kRowTemperature), min_p = number(row, kRowMinP), top_p = number(row, kRowTopP);
    const Cut best = prepare(row, true, temperature > 0.0f);
    if (best.value == kNever) return lowest_allowed(row);
    if (!(temperature > 0.0f)) return best.id;
    highest_ = best.value;
    temperature_ = temperature;
    float least = -kLargest;
    if (min_p > 0.0f) {  // p >= min_p * max p, as a bound on the logit; the maximum itself always passes
      least = highest_ + temperature * logarithm(min_p);
      if (!(least < highest_)) least = highest_;
    }
    const int32_t top_k = word(row, kRowTopK);
    Mass within = mass_from(least, true);
    uint64_t total = within.weight;
    if (top_k > 0 && top_k < within.count) {
      const Cut last = cut(least, within.count, static_cast<uint64_t>(top_k), false);
      least = last.value;
      const Mass above = mass_from(value_of(key_of(least) + 1), true);  // of those equal to the last, the lower ids are kept
      total = above.weight + static_cast<uint64_t>(top_k - above.count) * weight_of(least);
      within.count = mass_from(least, false).count;
    }
    if (top_p < 1.0f) {
      uint64_t share = share_of(top_p, total);
      if (share < 1) share = 1;
      if (share > total) share = total;
      const Cut last = cut(least, within.count, share, true);
      least = last.value;
      total = last.above + weight_of(least);
      within.count = mass_from(least, false).count;
    }
    return cut(least, within.count, draw_below(total, seed_of(row), word(row, kRowPosition)) + 1, true).id;
  }

  __aicore__ inline uint64_t seed_of(int32_t row) const {
    const uint64_t at = static_cast<uint64_t>(row) * kRowWords + kRowSeed;
    return static_cast<uint64_t>(rows_.GetValue(at + 1)) << 32 | rows_.GetValue(at);
  }

  __aicore__ inline void finish(int32_t row, int32_t token) {
    int32_t ids[kSampleTop];
    float values[kSampleTop];
    for (int32_t i = 0; i < kSampleTop; ++i) {
      ids[i] = -1;
      values[i] = 0.0f;
    }
    const int32_t wanted = word(row, kRowLogprobs);
    const float own = token >= 0 && wanted >= 0 ? score(row, token, wanted, ids, values) : 0.0f;
    LocalTensor<float> out = small_out_.AllocTensor<float>();
    LocalTensor<int32_t> whole = out.ReinterpretCast<int32_t>();
    wait_for<HardEvent::MTE3_S>();
    for (int32_t i = 0; i < kSampleTop; ++i) {
      whole.SetValue(i, ids[i]);
      out.SetValue(32 + i, values[i]);
    }
    out.SetValue(24, own);
    whole.SetValue(56, token);
    wait_for<HardEvent::S_MTE3>();
    small_out_.EnQue(out);
    out = small_out_.DeQue<float>();
    whole = out.ReinterpretCast<int32_t>();
    const DataCopyExtParams one{1, 4, 0, 0, 0}, top{1, kSampleTop * 4, 0, 0, 0};
    DataCopyPad(tokens_[row], whole[56], one);
    DataCopyPad(logprobs_[row], out[24], one);
    DataCopyPad(top_ids_[static_cast<int64_t>(row) * kSampleTop], whole, top);
    DataCopyPad(top_logprobs_[static_cast<int64_t>(row) * kSampleTop], out[32], top);
    small_out_.FreeTensor(out);
    const int32_t slot = word(row, kRowSlot);
    if (token >= 0 && slot >= 0) count(static_cast<int64_t>(slot) * t_.vocab_size + token);
  }

  __aicore__ inline void count(int64_t at) {
    LocalTensor<int32_t> in = counts_in_.AllocTensor<int32_t>();
    const DataCopyPadExtParams<int32_t> no_padding;
    DataCopyPad(in, counts_[at], {1, 4, 0, 0, 0}, no_padding);
    wait_for<HardEvent::MTE2_S>();
    const int32_t times = in.GetValue(0) + 1;
    counts_in_.FreeTensor(in);
    store_one(counts_[at], times);
  }

  // The log-softmax of the logits as they came, at the token and at the `wanted` most likely ones.
  __aicore__ inline float score(int32_t row, int32_t token, int32_t wanted, int32_t* ids, float* values) {
    Cut best = prepare(row, false, true);
    highest_ = best.value;
    temperature_ = 1.0f;
    const bool none = best.value == kNever;
    const float log_total = none ? logarithm(static_cast<float>(t_.vocab_size)) : log_of(mass_from(kNever, true).weight);
    const float logit = finite(logits_.GetValue(static_cast<uint64_t>(row) * t_.vocab_size + token));
    const float highest = highest_;
    for (int32_t i = 0; i < wanted && i < kSampleTop && best.value != kNever; ++i) {  // impossible tokens are no alternatives
      ids[i] = best.id;
      values[i] = (best.value - highest) - log_total;
      if (i + 1 == smaller(wanted, kSampleTop)) break;
      store_one(x_[best.id], kNever);
      best = {kNever, -1, 0};
      for (int32_t first = 0; first < t_.pitch; first += kSampleChunk) {
        const int32_t n = smaller(kSampleChunk, t_.pitch - first);
        LocalTensor<float> x = read(first, n);
        take_best(best, x, first, n);
        x_in_.FreeTensor(x);
      }
    }
    return none ? -log_total : (logit - highest) - log_total;
  }
};

}  // namespace sigmoe_sample_kernel

extern "C" __global__ __aicore__ void sigmoe_sample(GM_ADDR logits, GM_ADDR rows, GM_ADDR bias_ids, GM_ADDR bias_values,
                                                    GM_ADDR ban_ids, GM_ADDR masks, GM_ADDR counts, GM_ADDR tokens,
                                                    GM_ADDR logprobs, GM_ADDR top_ids, GM_ADDR top_logprobs, GM_ADDR workspace,
                                                    sigmoe::ascend::SampleTiling tiling) {
  KERNEL_TASK_TYPE_DEFAULT(KERNEL_TYPE_AIV_ONLY);
  AscendC::TPipe pipe;
  sigmoe_sample_kernel::Sample kernel(pipe, logits, rows, bias_ids, bias_values, ban_ids, masks, counts, tokens, logprobs,
                                      top_ids, top_logprobs, workspace, tiling);
  kernel.process();
}
