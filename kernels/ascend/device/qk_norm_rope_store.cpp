// qkv (T, (H + 2G) * Dh) split into heads: q and k heads RMS-normed over Dh and their first dims turned by the row's position,
// q to q_out (T, H, Dh), k and v to their page slots (page, kv_head, 128, Dh). Vector cores; an item is some heads of one kind
// of one token, and every instruction works on all of them: a repeat per head, 64 columns at a time. Bound: launch and latency;
// a token is 20 KB.
//
// Instructions need 32-byte columns. Where RoPE's halves are not whole blocks a head lies in UB as three pieces (first half,
// second half, rest), each from a multiple of 16 columns on; else it lies there as it is.
#include "ascend/device/args/qk_norm_rope_store.h"

#include "kernel_operator.h"

namespace sigmoe_qk_norm_rope_store_kernel {

using namespace AscendC;
using sigmoe::ascend::kKvPageTokens;
using sigmoe::ascend::QkNormRopeStoreTiling;

constexpr int32_t kLanes = 64;  // float32 of a repeat
constexpr int32_t kBlock = 32;

struct Piece {
  int32_t from;  // first dim of the head
  int32_t at;    // first column in UB
  int32_t n;     // dims
};

class QkNormRopeStore {
 public:
  __aicore__ inline QkNormRopeStore(TPipe& pipe, GM_ADDR qkv, GM_ADDR q_norm, GM_ADDR k_norm, GM_ADDR cos, GM_ADDR sin,
                                    GM_ADDR positions, GM_ADDR seq_offsets, GM_ADDR page_tables, GM_ADDR k, GM_ADDR v,
                                    GM_ADDR q_out, const QkNormRopeStoreTiling& tiling)
      : t_(tiling) {
    qkv_.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(qkv));
    q_norm_.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(q_norm));
    k_norm_.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(k_norm));
    cos_.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(cos));
    sin_.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(sin));
    positions_.SetGlobalBuffer(reinterpret_cast<__gm__ int32_t*>(positions));
    seq_offsets_.SetGlobalBuffer(reinterpret_cast<__gm__ int32_t*>(seq_offsets));
    page_tables_.SetGlobalBuffer(reinterpret_cast<__gm__ int32_t*>(page_tables));
    k_ = k;
    v_ = v;
    q_out_.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(q_out));

    if (t_.half_pitch == t_.half) {
      n_pieces_ = 1;
      pieces_[0] = {0, 0, t_.head_dim};
    } else {
      pieces_[0] = {0, 0, t_.half};
      pieces_[1] = {t_.half, t_.half_pitch, t_.half};
      pieces_[2] = {2 * t_.half, 2 * t_.half_pitch, t_.head_dim - 2 * t_.half};
      n_pieces_ = pieces_[2].n > 0 ? 3 : 2;
    }
    const int32_t heads = t_.q_heads > t_.kv_heads ? t_.q_heads : t_.kv_heads;
    const int32_t head_bytes = heads * t_.pitch * static_cast<int32_t>(sizeof(float));
    const int32_t scalar_bytes = (heads + 7) / 8 * kBlock;
    pipe.InitBuffer(heads_in_, 2, head_bytes);
    pipe.InitBuffer(heads_out_, 2, head_bytes);
    pipe.InitBuffer(head_buffer_, head_bytes);
    pipe.InitBuffer(square_buffer_, head_bytes);
    pipe.InitBuffer(sum_buffer_, 3 * scalar_bytes);
    pipe.InitBuffer(spread_buffer_, 8 * scalar_bytes);
    if (t_.has_q_norm || t_.has_k_norm) pipe.InitBuffer(norms_in_, 1, 2 * t_.pitch * sizeof(float));
    if (t_.half > 0) {
      pipe.InitBuffer(table_in_, 2, 2 * t_.half_pitch * sizeof(float));
      pipe.InitBuffer(turn_buffer_, 4 * heads * t_.half_pitch * sizeof(float));
    }
  }

  __aicore__ inline void process() {
    const int32_t q_items = (t_.n_heads + t_.q_heads - 1) / t_.q_heads,
                  kv_items = (t_.n_kv_heads + t_.kv_heads - 1) / t_.kv_heads;
    const int32_t per_token = q_items + 2 * kv_items;
    const int64_t items = static_cast<int64_t>(t_.n_tokens) * per_token;
    if (GetBlockIdx() >= items) return;
    load_norms();
    for (int64_t item = GetBlockIdx(); item < items; item += GetBlockNum()) {
      const int32_t token = static_cast<int32_t>(item / per_token), part = static_cast<int32_t>(item % per_token);
      if (part < q_items)
        do_q(token, part * t_.q_heads);
      else if (part < q_items + kv_items)
        do_k(token, (part - q_items) * t_.kv_heads);
      else
        do_v(token, (part - q_items - kv_items) * t_.kv_heads);
    }
    if (t_.has_q_norm || t_.has_k_norm) norms_in_.FreeTensor(norms_);
  }

 private:
  __aicore__ inline void load_norms() {
    if (!t_.has_q_norm && !t_.has_k_norm) return;
    norms_ = norms_in_.AllocTensor<float>();
    if (t_.has_q_norm) load_heads(norms_, q_norm_, 1);
    if (t_.has_k_norm) load_heads(norms_[t_.pitch], k_norm_, 1);
    norms_in_.EnQue(norms_);
    norms_ = norms_in_.DeQue<float>();
  }

  __aicore__ inline void do_q(int32_t token, int32_t first) {
    const int32_t n = smaller(t_.q_heads, t_.n_heads - first);
    LocalTensor<float> in = read_heads(token, first, n);
    LocalTensor<float> head = head_buffer_.Get<float>();
    norm(head, in, norms_, t_.has_q_norm, n);
    heads_in_.FreeTensor(in);
    turn(head, positions_.GetValue(token), n);
    store_float(q_out_[(static_cast<int64_t>(token) * t_.n_heads + first) * t_.head_dim], head, n, t_.head_dim);
  }

  __aicore__ inline void do_k(int32_t token, int32_t first) {
    const int32_t n = smaller(t_.kv_heads, t_.n_kv_heads - first), position = positions_.GetValue(token);
    LocalTensor<float> in = read_heads(token, t_.n_heads + first, n);
    LocalTensor<float> head = head_buffer_.Get<float>();
    norm(head, in, norms_[t_.has_k_norm ? t_.pitch : 0], t_.has_k_norm, n);
    heads_in_.FreeTensor(in);
    turn(head, position, n);
    store_cache(k_, head, token, position, first, n);
  }

  __aicore__ inline void do_v(int32_t token, int32_t first) {
    const int32_t n = smaller(t_.kv_heads, t_.n_kv_heads - first);
    LocalTensor<float> in = read_heads(token, t_.n_heads + t_.n_kv_heads + first, n);
    store_cache(v_, in, token, positions_.GetValue(token), first, n);
    heads_in_.FreeTensor(in);
  }

  // n heads of qkv's row, from head `first` on.
  __aicore__ inline LocalTensor<float> read_heads(int32_t token, int32_t first, int32_t n) {
    const int64_t row = static_cast<int64_t>(token) * (t_.n_heads + 2 * t_.n_kv_heads);
    LocalTensor<float> in = heads_in_.AllocTensor<float>();
    load_heads(in, qkv_[(row + first) * t_.head_dim], n);
    heads_in_.EnQue(in);
    return heads_in_.DeQue<float>();
  }

  __aicore__ inline void load_heads(const LocalTensor<float>& to, const GlobalTensor<float>& from, int32_t n) {
    const DataCopyPadExtParams<float> no_padding;
    for (int32_t p = 0; p < n_pieces_; ++p) {
      const Piece& piece = pieces_[p];
      const DataCopyExtParams params{static_cast<uint16_t>(n), bytes_of(piece.n, 4), bytes_of(t_.head_dim - piece.n, 4),
                                     gap_of(piece.n, 4), 0};
      DataCopyPad(to[piece.at], from[piece.from], params, no_padding);
    }
  }

  // head = in / rms(in) * weight, or in.
  __aicore__ inline void norm(const LocalTensor<float>& head, const LocalTensor<float>& in, const LocalTensor<float>& weight,
                              int32_t has_weight, int32_t n) {
    const uint8_t step = static_cast<uint8_t>(t_.pitch / 8);
    PipeBarrier<PIPE_V>();  // the item before has been read out of the buffers
    if (!has_weight) {
      for (int32_t p = 0; p < n_pieces_; ++p)
        for (int32_t c = 0; c < pieces_[p].n; c += kLanes) {
          const int32_t at = pieces_[p].at + c;
          Muls(head[at], in[at], 1.0f, lanes(p, c), static_cast<uint8_t>(n), {1, 1, step, step});
        }
      PipeBarrier<PIPE_V>();
      return;
    }
    const int32_t scalars = (n + 7) / 8 * 8;
    LocalTensor<float> squares = square_buffer_.Get<float>(), sums = sum_buffer_.Get<float>();
    LocalTensor<float> part = sums[scalars], ones = sums[2 * scalars], spread = spread_buffer_.Get<float>();
    Duplicate(sums, 1.0f, 3 * scalars);
    bool first = true;
    for (int32_t p = 0; p < n_pieces_; ++p)
      for (int32_t c = 0; c < pieces_[p].n; c += kLanes) {
        const int32_t at = pieces_[p].at + c;
        Mul(squares[at], in[at], in[at], lanes(p, c), static_cast<uint8_t>(n), {1, 1, 1, step, step, step});
        PipeBarrier<PIPE_V>();
        WholeReduceSum(first ? sums : part, squares[at], static_cast<int32_t>(lanes(p, c)), n, 1, 1, step);
        PipeBarrier<PIPE_V>();
        if (!first) {
          Add(sums, sums, part, n);
          PipeBarrier<PIPE_V>();
        }
        first = false;
      }
    Muls(sums, sums, t_.one_over_head_dim, scalars);
    PipeBarrier<PIPE_V>();
    Adds(sums, sums, t_.eps, scalars);
    PipeBarrier<PIPE_V>();
    Sqrt(sums, sums, scalars);
    PipeBarrier<PIPE_V>();
    Div(sums, ones, sums, scalars);
    PipeBarrier<PIPE_V>();
    Brcb(spread, sums, static_cast<uint8_t>(scalars / 8), {1, 8});
    PipeBarrier<PIPE_V>();
    for (int32_t p = 0; p < n_pieces_; ++p)
      for (int32_t c = 0; c < pieces_[p].n; c += kLanes) {
        const int32_t at = pieces_[p].at + c;
        Mul(head[at], in[at], spread, lanes(p, c), static_cast<uint8_t>(n), {1, 1, 0, step, step, 1});
        PipeBarrier<PIPE_V>();
        Mul(head[at], head[at], weight[at], lanes(p, c), static_cast<uint8_t>(n), {1, 1, 1, step, step, 0});
      }
    PipeBarrier<PIPE_V>();
  }

  // Dims j and j + half of every head turned by the angles of the position.
  __aicore__ inline void turn(const LocalTensor<float>& head, int32_t position, int32_t n) {
    if (t_.half == 0) return;
    LocalTensor<float> table = table_in_.AllocTensor<float>();
    const DataCopyExtParams params{1, bytes_of(t_.half, 4), 0, 0, 0};
    const DataCopyPadExtParams<float> no_padding;
    DataCopyPad(table, cos_[static_cast<int64_t>(position) * t_.half], params, no_padding);
    DataCopyPad(table[t_.half_pitch], sin_[static_cast<int64_t>(position) * t_.half], params, no_padding);
    table_in_.EnQue(table);
    table = table_in_.DeQue<float>();
    const uint8_t step = static_cast<uint8_t>(t_.pitch / 8), turned_step = static_cast<uint8_t>(t_.half_pitch / 8);
    const uint8_t repeats = static_cast<uint8_t>(n);
    const int32_t room = n * t_.half_pitch;
    LocalTensor<float> turned = turn_buffer_.Get<float>();
    for (int32_t c = 0; c < t_.half; c += kLanes) {
      const uint64_t mask = smaller(kLanes, t_.half - c);
      const LocalTensor<float> a = head[c], b = head[t_.half_pitch + c], cos = table[c], sin = table[t_.half_pitch + c];
      const LocalTensor<float> a_cos = turned[c], b_sin = turned[room + c], b_cos = turned[2 * room + c],
                               a_sin = turned[3 * room + c];
      const BinaryRepeatParams by_table{1, 1, 1, turned_step, step, 0}, to_head{1, 1, 1, step, turned_step, turned_step};
      Mul(a_cos, a, cos, mask, repeats, by_table);
      Mul(b_sin, b, sin, mask, repeats, by_table);
      Mul(b_cos, b, cos, mask, repeats, by_table);
      Mul(a_sin, a, sin, mask, repeats, by_table);
      PipeBarrier<PIPE_V>();
      Sub(a, a_cos, b_sin, mask, repeats, to_head);
      Add(b, b_cos, a_sin, mask, repeats, to_head);
    }
    PipeBarrier<PIPE_V>();
    table_in_.FreeTensor(table);
  }

  // n heads to GM, `step` elements apart there.
  __aicore__ inline void store_float(const GlobalTensor<float>& to, const LocalTensor<float>& head, int32_t n, int32_t step) {
    const uint8_t row = static_cast<uint8_t>(t_.pitch / 8);
    LocalTensor<float> out = heads_out_.AllocTensor<float>();
    for (int32_t p = 0; p < n_pieces_; ++p)
      for (int32_t c = 0; c < pieces_[p].n; c += kLanes) {
        const int32_t at = pieces_[p].at + c;
        Muls(out[at], head[at], 1.0f, lanes(p, c), static_cast<uint8_t>(n), {1, 1, row, row});
      }
    heads_out_.EnQue(out);
    out = heads_out_.DeQue<float>();
    for (int32_t p = 0; p < n_pieces_; ++p) {
      const Piece& piece = pieces_[p];
      DataCopyPad(to[piece.from], out[piece.at],
                  {static_cast<uint16_t>(n), bytes_of(piece.n, 4), gap_of(piece.n, 4), bytes_of(step - piece.n, 4), 0});
    }
    heads_out_.FreeTensor(out);
  }

  __aicore__ inline void store_bf16(const GlobalTensor<bfloat16_t>& to, const LocalTensor<float>& head, int32_t n,
                                    int32_t step) {
    const uint8_t row = static_cast<uint8_t>(t_.pitch / 8), out_row = static_cast<uint8_t>(t_.pitch / 16);
    LocalTensor<bfloat16_t> out = heads_out_.AllocTensor<bfloat16_t>();
    for (int32_t p = 0; p < n_pieces_; ++p)
      for (int32_t c = 0; c < pieces_[p].n; c += kLanes) {
        const int32_t at = pieces_[p].at + c;
        Cast(out[at], head[at], RoundMode::CAST_RINT, lanes(p, c), static_cast<uint8_t>(n), {1, 1, out_row, row});
      }
    heads_out_.EnQue(out);
    out = heads_out_.DeQue<bfloat16_t>();
    for (int32_t p = 0; p < n_pieces_; ++p) {
      const Piece& piece = pieces_[p];
      DataCopyPad(to[piece.from], out[piece.at],
                  {static_cast<uint16_t>(n), bytes_of(piece.n, 2), gap_of(piece.n, 2), bytes_of(step - piece.n, 2), 0});
    }
    heads_out_.FreeTensor(out);
  }

  // KV heads from `first` on to the slot of the token's position.
  __aicore__ inline void store_cache(GM_ADDR cache, const LocalTensor<float>& head, int32_t token, int32_t position,
                                     int32_t first, int32_t n) {
    const int64_t page =
        page_tables_.GetValue(static_cast<int64_t>(sequence_of(token)) * t_.max_pages + position / kKvPageTokens);
    const int64_t at = ((page * t_.n_kv_heads + first) * kKvPageTokens + position % kKvPageTokens) * t_.head_dim;
    if (t_.kv_bf16) {
      GlobalTensor<bfloat16_t> to;
      to.SetGlobalBuffer(reinterpret_cast<__gm__ bfloat16_t*>(cache));
      store_bf16(to[at], head, n, kKvPageTokens * t_.head_dim);
    } else {
      GlobalTensor<float> to;
      to.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(cache));
      store_float(to[at], head, n, kKvPageTokens * t_.head_dim);
    }
  }

  // The last sequence whose rows start at or before the token.
  __aicore__ inline int32_t sequence_of(int32_t token) {
    int32_t low = 0, high = t_.n_seqs - 1;
    while (low < high) {
      const int32_t middle = (low + high + 1) / 2;
      if (seq_offsets_.GetValue(middle) <= token)
        low = middle;
      else
        high = middle - 1;
    }
    return low;
  }

  __aicore__ inline uint64_t lanes(int32_t piece, int32_t column) const { return smaller(kLanes, pieces_[piece].n - column); }
  __aicore__ inline static int32_t smaller(int32_t a, int32_t b) { return a < b ? a : b; }
  __aicore__ inline static uint32_t bytes_of(int32_t n, int32_t size) { return static_cast<uint32_t>(n * size); }
  // 32-byte blocks between the end of n elements of a head and the next head, in UB.
  __aicore__ inline uint32_t gap_of(int32_t n, int32_t size) const {
    return static_cast<uint32_t>((t_.pitch * size - (n * size + kBlock - 1) / kBlock * kBlock) / kBlock);
  }

  QkNormRopeStoreTiling t_;
  Piece pieces_[3];
  int32_t n_pieces_ = 0;
  GlobalTensor<float> qkv_, q_norm_, k_norm_, cos_, sin_, q_out_;
  GlobalTensor<int32_t> positions_, seq_offsets_, page_tables_;
  GM_ADDR k_ = nullptr;
  GM_ADDR v_ = nullptr;
  LocalTensor<float> norms_;
  TQue<TPosition::VECIN, 1> heads_in_, norms_in_, table_in_;
  TQue<TPosition::VECOUT, 1> heads_out_;
  TBuf<TPosition::VECCALC> head_buffer_, square_buffer_, sum_buffer_, spread_buffer_, turn_buffer_;
};

}  // namespace sigmoe_qk_norm_rope_store_kernel

extern "C" __global__ __aicore__ void sigmoe_qk_norm_rope_store(GM_ADDR qkv, GM_ADDR q_norm, GM_ADDR k_norm, GM_ADDR cos,
                                                                GM_ADDR sin, GM_ADDR positions, GM_ADDR seq_offsets,
                                                                GM_ADDR page_tables, GM_ADDR k, GM_ADDR v, GM_ADDR q_out,
                                                                sigmoe::ascend::QkNormRopeStoreTiling tiling) {
  KERNEL_TASK_TYPE_DEFAULT(KERNEL_TYPE_AIV_ONLY);
  AscendC::TPipe pipe;
  sigmoe_qk_norm_rope_store_kernel::QkNormRopeStore kernel(pipe, qkv, q_norm, k_norm, cos, sin, positions, seq_offsets,
                                                           page_tables, k, v, q_out, tiling);
  kernel.process();
}
