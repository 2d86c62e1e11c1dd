// The router in float32 from GEMM to weights: logits (T, E) = x (T, D) gate (E, D)^T; scores = sigmoid; choice by scores + bias
// within the kept groups, of which each counts with its two best; weights from the unbiased scores; then the slots of every
// expert. One launch on vector cores, three stages with SyncAll between them:
//   logits  a core takes a block of tokens and experts; bound by reading the gate (4 MB) at few tokens
//   choice  a core takes a token: sorts its experts 32 at a time, drops groups, merges what is left
//   lists   a core takes some experts and looks for them among the choices of all tokens
// Ties: Sort32 and MrgSort keep the earlier first, and experts lie in rising order, so the lower expert wins.
#include "ascend/device/args/route.h"

#include "kernel_operator.h"

namespace sigmoe_route_kernel {

using namespace AscendC;
using namespace sigmoe::ascend;

constexpr int32_t kLanes = 64;    // float32 of a repeat
constexpr int32_t kList = 32;     // experts that one Sort32 orders
constexpr int32_t kMerged = 128;  // records that one MrgSort can give
constexpr int32_t kRecord = 2;    // floats of a record: score, expert

__aicore__ inline int32_t smaller(int32_t a, int32_t b) { return a < b ? a : b; }
__aicore__ inline int32_t up_to(int32_t value, int32_t unit) { return (value + unit - 1) / unit * unit; }

template <HardEvent event>
__aicore__ inline void wait_for() {
  const int32_t id = GetTPipePtr()->FetchEventID(event);
  SetFlag<event>(id);
  WaitFlag<event>(id);
}

class Route {
 public:
  __aicore__ inline Route(TPipe& pipe, GM_ADDR x, GM_ADDR gate, GM_ADDR bias, GM_ADDR forced_ids, GM_ADDR logits,
                          GM_ADDR expert_ids, GM_ADDR weights, GM_ADDR expert_offsets, GM_ADDR slot_order,
                          const RouteTiling& tiling)
      : t_(tiling), places_(tiling.n_groups * tiling.group_pitch) {
    x_.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(x));
    gate_.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(gate));
    bias_.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(bias));
    forced_ids_.SetGlobalBuffer(reinterpret_cast<__gm__ int32_t*>(forced_ids));
    logits_.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(logits));
    expert_ids_.SetGlobalBuffer(reinterpret_cast<__gm__ int32_t*>(expert_ids));
    weights_.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(weights));
    expert_offsets_.SetGlobalBuffer(reinterpret_cast<__gm__ int32_t*>(expert_offsets));
    slot_order_.SetGlobalBuffer(reinterpret_cast<__gm__ int32_t*>(slot_order));

    pipe.InitBuffer(x_in_, 1, t_.token_block * t_.row_pitch * 4);
    pipe.InitBuffer(gate_in_, t_.gate_buffers, t_.row_pitch * 4);
    pipe.InitBuffer(product_buffer_, t_.row_pitch * 4);
    pipe.InitBuffer(partial_buffer_, up_to(t_.row_pitch / kLanes, kLanes) * 4);
    pipe.InitBuffer(logits_out_, 2, t_.token_block * up_to(t_.expert_block, 8) * 4);

    pipe.InitBuffer(logits_in_, 2, places_ * 4);
    pipe.InitBuffer(bias_in_, 1, places_ * 4);
    pipe.InitBuffer(score_buffer_, 2 * places_ * 4);
    pipe.InitBuffer(choice_buffer_, places_ * 4);
    pipe.InitBuffer(expert_buffer_, places_ * 4);
    pipe.InitBuffer(record_buffer_, (places_ + kMerged * merges()) * kRecord * 4);
    pipe.InitBuffer(ids_out_, 1, up_to(t_.n_active, 8) * 4);
    pipe.InitBuffer(weights_out_, 1, up_to(t_.n_active, 8) * 4);

    pipe.InitBuffer(slots_in_, 2, kSlotChunk * 4);
    pipe.InitBuffer(chosen_buffer_, kSlotChunk * 4);
    pipe.InitBuffer(index_buffer_, kSlotChunk * 4);
    pipe.InitBuffer(bits_buffer_, kSlotChunk / 8);
    pipe.InitBuffer(slots_out_, 2, kSlotChunk * 4);
    pipe.InitBuffer(at_buffer_, up_to(t_.experts_per_core, 8) * 4);
    pipe.InitBuffer(offsets_out_, 1, up_to(t_.experts_per_core + 1, 8) * 4);
  }

  __aicore__ inline void process() {
    make_logits();
    SyncAll();
    choose();
    SyncAll();
    make_lists();
  }

 private:
  // ---- logits --------------------------------------------------------------------------------------------------------

  __aicore__ inline void make_logits() {
    const int32_t token_blocks = (t_.n_tokens + t_.token_block - 1) / t_.token_block,
                  expert_blocks = (t_.n_experts + t_.expert_block - 1) / t_.expert_block;
    LocalTensor<float> product = product_buffer_.Get<float>(), partial = partial_buffer_.Get<float>();
    Duplicate(product, 0.0f, t_.row_pitch);  // what lies past the width stays zero
    Duplicate(partial, 0.0f, up_to(t_.row_pitch / kLanes, kLanes));
    PipeBarrier<PIPE_V>();
    for (int32_t item = static_cast<int32_t>(GetBlockIdx()); item < token_blocks * expert_blocks; item += GetBlockNum()) {
      const int32_t token = item / expert_blocks * t_.token_block, expert = item % expert_blocks * t_.expert_block;
      multiply(token, smaller(t_.token_block, t_.n_tokens - token), expert, smaller(t_.expert_block, t_.n_experts - expert));
    }
  }

  __aicore__ inline void multiply(int32_t token, int32_t n_tokens, int32_t expert, int32_t n_experts) {
    const int32_t out_pitch = up_to(n_experts, 8), repeats = t_.row_pitch / kLanes;
    LocalTensor<float> x = x_in_.AllocTensor<float>();
    load(x, x_[static_cast<int64_t>(token) * t_.width], n_tokens, t_.width, t_.row_pitch);
    x_in_.EnQue(x);
    x = x_in_.DeQue<float>();
    LocalTensor<float> out = logits_out_.AllocTensor<float>();
    LocalTensor<float> product = product_buffer_.Get<float>(), partial = partial_buffer_.Get<float>();
    for (int32_t e = 0; e < n_experts; ++e) {
      LocalTensor<float> row = gate_in_.AllocTensor<float>();
      load(row, gate_[static_cast<int64_t>(expert + e) * t_.width], 1, t_.width, t_.row_pitch);
      gate_in_.EnQue(row);
      row = gate_in_.DeQue<float>();
      for (int32_t t = 0; t < n_tokens; ++t) {
        Mul(product, x[t * t_.row_pitch], row, t_.width);
        PipeBarrier<PIPE_V>();
        WholeReduceSum(partial, product, kLanes, repeats, 1, 1, 8);
        PipeBarrier<PIPE_V>();
        for (int32_t at = kLanes; at < repeats; at += kLanes) {
          Add(partial, partial, partial[at], kLanes);
          PipeBarrier<PIPE_V>();
        }
        WholeReduceSum(out[t * out_pitch + e], partial, kLanes, 1, 1, 1, 8);
        PipeBarrier<PIPE_V>();
      }
      gate_in_.FreeTensor(row);
    }
    x_in_.FreeTensor(x);
    logits_out_.EnQue(out);
    out = logits_out_.DeQue<float>();
    const DataCopyExtParams rows{static_cast<uint16_t>(n_tokens), static_cast<uint32_t>(n_experts * 4), 0,
                                 static_cast<uint32_t>((t_.n_experts - n_experts) * 4), 0};
    DataCopyPad(logits_[static_cast<int64_t>(token) * t_.n_experts + expert], out, rows);
    logits_out_.FreeTensor(out);
  }

  // n rows of `width` floats, `pitch` apart in UB.
  __aicore__ inline void load(const LocalTensor<float>& to, const GlobalTensor<float>& from, int32_t n, int32_t width,
                              int32_t pitch) {
    const DataCopyExtParams rows{static_cast<uint16_t>(n), static_cast<uint32_t>(width * 4), 0,
                                 static_cast<uint32_t>((pitch - up_to(width, 8)) / 8), 0};
    const DataCopyPadExtParams<float> no_padding;
    DataCopyPad(to, from, rows, no_padding);
  }

  // ---- choice --------------------------------------------------------------------------------------------------------

  __aicore__ inline void choose() {
    if (GetBlockIdx() >= t_.n_tokens) return;
    // Places past a group's experts: a bias of minus infinity, so that none is chosen, and some expert's number all the same.
    LocalTensor<float> bias = bias_in_.AllocTensor<float>();
    Duplicate(bias, -__builtin_inff(), places_);
    wait_for<HardEvent::V_MTE2>();
    load_groups(bias, bias_, -__builtin_inff());
    bias_in_.EnQue(bias);
    bias = bias_in_.DeQue<float>();
    LocalTensor<int32_t> experts = expert_buffer_.Get<int32_t>();
    for (int32_t g = 0; g < t_.n_groups; ++g) CreateVecIndex(experts[g * t_.group_pitch], g * t_.group_size, t_.group_pitch);
    PipeBarrier<PIPE_V>();
    Mins(experts, experts, t_.n_experts - 1, places_);
    LocalTensor<float> ones = score_buffer_.Get<float>()[places_];
    Duplicate(ones, 1.0f, places_);
    PipeBarrier<PIPE_V>();
    for (int32_t token = static_cast<int32_t>(GetBlockIdx()); token < t_.n_tokens; token += GetBlockNum())
      choose_for(token, bias);
    bias_in_.FreeTensor(bias);
  }

  __aicore__ inline void choose_for(int32_t token, const LocalTensor<float>& bias) {
    LocalTensor<float> scores = score_buffer_.Get<float>(), ones = scores[places_], choice = choice_buffer_.Get<float>();
    LocalTensor<float> logits = logits_in_.AllocTensor<float>();
    Duplicate(logits, 0.0f, places_);
    wait_for<HardEvent::V_MTE2>();
    load_groups(logits, logits_[static_cast<int64_t>(token) * t_.n_experts], 0.0f);
    logits_in_.EnQue(logits);
    logits = logits_in_.DeQue<float>();
    Muls(scores, logits, -1.0f, places_);
    PipeBarrier<PIPE_V>();
    Exp(scores, scores, places_);
    PipeBarrier<PIPE_V>();
    Adds(scores, scores, 1.0f, places_);
    PipeBarrier<PIPE_V>();
    Div(scores, ones, scores, places_);
    PipeBarrier<PIPE_V>();
    Add(choice, scores, bias, places_);
    PipeBarrier<PIPE_V>();
    logits_in_.FreeTensor(logits);
    LocalTensor<int32_t> ids = ids_out_.AllocTensor<int32_t>();
    LocalTensor<float> weights = weights_out_.AllocTensor<float>();
    LocalTensor<float> records = record_buffer_.Get<float>();
    if (!t_.forced) Sort32(records, choice, expert_buffer_.Get<uint32_t>(), places_ / kList);
    PipeBarrier<PIPE_V>();
    wait_for<HardEvent::V_S>();
    wait_for<HardEvent::MTE3_S>();  // the buffers of ids and weights have been copied out
    if (t_.forced) {
      for (int32_t a = 0; a < t_.n_active; ++a)
        ids.SetValue(a, forced_ids_.GetValue(static_cast<int64_t>(token) * t_.n_active + a));
    } else {
      const LocalTensor<uint32_t> best = merged(records).ReinterpretCast<uint32_t>();
      for (int32_t a = 0; a < t_.n_active; ++a) ids.SetValue(a, static_cast<int32_t>(best.GetValue(kRecord * a + 1)));
    }
    float sum = 0.0f;
    for (int32_t a = 0; a < t_.n_active; ++a) sum += score_of(scores, ids.GetValue(a));
    const float divisor = t_.normalise ? sum + 1e-20f : 1.0f;
    for (int32_t a = 0; a < t_.n_active; ++a) weights.SetValue(a, score_of(scores, ids.GetValue(a)) / divisor * t_.scaling);
    wait_for<HardEvent::S_MTE3>();
    wait_for<HardEvent::S_V>();  // scores and records have been read
    ids_out_.EnQue(ids);
    weights_out_.EnQue(weights);
    ids = ids_out_.DeQue<int32_t>();
    weights = weights_out_.DeQue<float>();
    const DataCopyExtParams row{1, static_cast<uint32_t>(t_.n_active * 4), 0, 0, 0};
    DataCopyPad(expert_ids_[static_cast<int64_t>(token) * t_.n_active], ids, row);
    DataCopyPad(weights_[static_cast<int64_t>(token) * t_.n_active], weights, row);
    ids_out_.FreeTensor(ids);
    weights_out_.FreeTensor(weights);
  }

  // A float per expert, every group from a place of its own on; the last block of a group is filled up.
  __aicore__ inline void load_groups(const LocalTensor<float>& to, const GlobalTensor<float>& from, float filler) {
    const int32_t whole = up_to(t_.group_size, 8);
    const DataCopyExtParams groups{static_cast<uint16_t>(t_.n_groups), static_cast<uint32_t>(t_.group_size * 4), 0,
                                   static_cast<uint32_t>((t_.group_pitch - whole) / 8), 0};
    const DataCopyPadExtParams<float> padding{true, 0, static_cast<uint8_t>(whole - t_.group_size), filler};
    DataCopyPad(to, from, groups, padding);
  }

  __aicore__ inline float score_of(const LocalTensor<float>& scores, int32_t expert) const {
    return scores.GetValue(expert / t_.group_size * t_.group_pitch + expert % t_.group_size);
  }

  // The kept groups' records in order, as far as they are wanted. Scalar: what decides is two numbers per list.
  __aicore__ inline LocalTensor<float> merged(const LocalTensor<float>& records) {
    const int32_t lists_per_group = t_.group_pitch / kList;
    float scores[kRouteMaxGroups];
    for (int32_t g = 0; g < t_.n_groups; ++g) {
      float best = -__builtin_inff(), second = best;
      for (int32_t l = g * lists_per_group; l < (g + 1) * lists_per_group; ++l)
        for (int32_t i = 0; i < 2; ++i) {
          const float value = records.GetValue(kRecord * (l * kList + i));
          if (value > best) {
            second = best;
            best = value;
          } else if (value > second) {
            second = value;
          }
        }
      scores[g] = t_.group_size > 1 ? best + second : best;
    }
    int32_t lists[kRouteMaxLists];  // first record of each
    int32_t lengths[kRouteMaxLists];
    int32_t n = 0;
    for (int32_t g = 0; g < t_.n_groups; ++g) {
      int32_t ahead = 0;
      for (int32_t other = 0; other < t_.n_groups; ++other)
        if (scores[other] > scores[g] || (scores[other] == scores[g] && other < g)) ++ahead;
      if (ahead >= t_.n_groups_kept) continue;
      for (int32_t l = g * lists_per_group; l < (g + 1) * lists_per_group; ++l) {
        lists[n] = l * kList;
        lengths[n++] = smaller(kList, t_.n_active);
      }
    }
    int32_t free = places_;
    while (n > 1) {
      int32_t left = 0;
      for (int32_t first = 0; first < n; first += 4) {
        const int32_t ways = smaller(4, n - first);
        if (ways == 1) {
          lists[left] = lists[first];
          lengths[left++] = lengths[first];
          continue;
        }
        uint16_t counts[4] = {0, 0, 0, 0};
        int32_t total = 0;
        for (int32_t i = 0; i < ways; ++i) {
          counts[i] = static_cast<uint16_t>(lengths[first + i]);
          total += lengths[first + i];
        }
        const MrgSortSrcList<float> sources(records[kRecord * lists[first]], records[kRecord * lists[first + 1]],
                                            records[kRecord * lists[first + (ways > 2 ? 2 : 0)]],
                                            records[kRecord * lists[first + (ways > 3 ? 3 : 0)]]);
        const MrgSort4Info info(counts, false, static_cast<uint16_t>((1 << ways) - 1), 1);
        MrgSort(records[kRecord * free], sources, info);
        lists[left] = free;
        lengths[left++] = smaller(total, t_.n_active);
        free += kMerged;
      }
      PipeBarrier<PIPE_V>();
      n = left;
    }
    wait_for<HardEvent::V_S>();
    return records[kRecord * lists[0]];
  }

  // MrgSorts that merge all lists.
  __aicore__ inline int32_t merges() const {
    int32_t total = 0;
    for (int32_t n = places_ / kList; n > 1; n = (n + 3) / 4) total += (n + 3) / 4;
    return total;
  }

  // ---- lists ---------------------------------------------------------------------------------------------------------

  __aicore__ inline void make_lists() {
    const int32_t first = static_cast<int32_t>(GetBlockIdx()) * t_.experts_per_core,
                  end = smaller(first + t_.experts_per_core, t_.n_experts), n_slots = t_.n_tokens * t_.n_active;
    if (first >= end) return;
    LocalTensor<int32_t> index = index_buffer_.Get<int32_t>(), at = at_buffer_.Get<int32_t>();
    CreateVecIndex(index, 0, kSlotChunk);
    PipeBarrier<PIPE_V>();

    // How many slots come before this core's experts, and how many each of them has.
    int32_t before = 0;
    for (int32_t e = first; e < end; ++e) at.SetValue(e - first, 0);
    for (int32_t chunk = 0; chunk < n_slots; chunk += kSlotChunk) {
      const int32_t n = read_choices(chunk, n_slots);
      LocalTensor<int32_t> found = slots_out_.AllocTensor<int32_t>();
      before += find(found, CMPMODE::LT, first, n);
      for (int32_t e = first; e < end; ++e) at.SetValue(e - first, at.GetValue(e - first) + find(found, CMPMODE::EQ, e, n));
      slots_out_.FreeTensor(found);
    }
    LocalTensor<int32_t> offsets = offsets_out_.AllocTensor<int32_t>();
    for (int32_t e = first; e < end; ++e) {
      const int32_t count = at.GetValue(e - first);
      offsets.SetValue(e - first, before);
      at.SetValue(e - first, before);
      before += count;
    }
    const int32_t n_offsets = end - first + (end == t_.n_experts ? 1 : 0);  // the last core ends the table
    if (end == t_.n_experts) offsets.SetValue(end - first, before);
    wait_for<HardEvent::S_MTE3>();
    offsets_out_.EnQue(offsets);
    offsets = offsets_out_.DeQue<int32_t>();
    DataCopyPad(expert_offsets_[first], offsets, {1, static_cast<uint32_t>(n_offsets * 4), 0, 0, 0});
    offsets_out_.FreeTensor(offsets);

    for (int32_t chunk = 0; chunk < n_slots; chunk += kSlotChunk) {
      const int32_t n = read_choices(chunk, n_slots);
      for (int32_t e = first; e < end; ++e) {
        LocalTensor<int32_t> slots = slots_out_.AllocTensor<int32_t>();
        const int32_t count = find(slots, CMPMODE::EQ, e, n);
        if (count > 0) Adds(slots, slots, chunk, count);
        slots_out_.EnQue(slots);
        slots = slots_out_.DeQue<int32_t>();
        const int32_t to = at.GetValue(e - first);
        if (count > 0) DataCopyPad(slot_order_[to], slots, {1, static_cast<uint32_t>(count * 4), 0, 0, 0});
        at.SetValue(e - first, to + count);
        slots_out_.FreeTensor(slots);
      }
    }
  }

  // The choices of the slots of a chunk, as floats, which can be compared in every way; returns how many there are.
  __aicore__ inline int32_t read_choices(int32_t chunk, int32_t n_slots) {
    const int32_t n = smaller(kSlotChunk, n_slots - chunk);
    LocalTensor<int32_t> ids = slots_in_.AllocTensor<int32_t>();
    const DataCopyPadExtParams<int32_t> no_padding;
    DataCopyPad(ids, expert_ids_[chunk], {1, static_cast<uint32_t>(n * 4), 0, 0, 0}, no_padding);
    slots_in_.EnQue(ids);
    ids = slots_in_.DeQue<int32_t>();
    LocalTensor<float> chosen = chosen_buffer_.Get<float>();
    Duplicate(chosen, static_cast<float>(t_.n_experts), up_to(n, kLanes));
    PipeBarrier<PIPE_V>();
    Cast(chosen, ids, RoundMode::CAST_NONE, n);
    PipeBarrier<PIPE_V>();
    slots_in_.FreeTensor(ids);
    return n;
  }

  // The slots of the chunk whose choice stands so to `expert`, counted from its first; returns how many.
  __aicore__ inline int32_t find(const LocalTensor<int32_t>& slots, CMPMODE mode, int32_t expert, int32_t n) {
    LocalTensor<uint8_t> bits = bits_buffer_.Get<uint8_t>();
    CompareScalar(bits, chosen_buffer_.Get<float>(), static_cast<float>(expert), mode, up_to(n, kLanes));
    PipeBarrier<PIPE_V>();
    uint64_t count = 0;
    const GatherMaskParams params{1, 1, 8, 0};
    GatherMask(slots, index_buffer_.Get<int32_t>(), bits.ReinterpretCast<uint32_t>(), true, static_cast<uint32_t>(n), params,
               count);
    PipeBarrier<PIPE_V>();
    return static_cast<int32_t>(count);
  }

  RouteTiling t_;
  int32_t places_;  // of experts in UB: the groups with what fills them up
  GlobalTensor<float> x_, gate_, bias_, logits_, weights_;
  GlobalTensor<int32_t> forced_ids_, expert_ids_, expert_offsets_, slot_order_;
  TQue<TPosition::VECIN, 1> x_in_, gate_in_, logits_in_, bias_in_, slots_in_;
  TQue<TPosition::VECOUT, 1> logits_out_, ids_out_, weights_out_, slots_out_, offsets_out_;
  TBuf<TPosition::VECCALC> product_buffer_, partial_buffer_, score_buffer_, choice_buffer_, expert_buffer_, record_buffer_,
      chosen_buffer_, index_buffer_, bits_buffer_, at_buffer_;
};

}  // namespace sigmoe_route_kernel

extern "C" __global__ __aicore__ void sigmoe_route(GM_ADDR x, GM_ADDR gate, GM_ADDR bias, GM_ADDR forced_ids, GM_ADDR logits,
                                                   GM_ADDR expert_ids, GM_ADDR weights, GM_ADDR expert_offsets,
                                                   GM_ADDR slot_order, sigmoe::ascend::RouteTiling tiling) {
  KERNEL_TASK_TYPE_DEFAULT(KERNEL_TYPE_AIV_ONLY);
  AscendC::TPipe pipe;
  sigmoe_route_kernel::Route kernel(pipe, x, gate, bias, forced_ids, logits, expert_ids, weights, expert_offsets, slot_order,
                                    tiling);
  kernel.process();
}
