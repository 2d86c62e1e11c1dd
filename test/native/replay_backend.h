// A CPU backend that behaves as one that records steps, and checks what that rests on: whenever a key comes again, the calls
// behind it have the arguments they had the first time.
#pragma once

#include <map>
#include <vector>

#include "cpu/cpu_backend.h"
#include "doctest/doctest.h"

namespace sigmoe::test {

class ReplayBackend : public CpuBackend {
 public:
  using CpuBackend::CpuBackend;
  static inline int n_replays = 0;  // of all of them

  bool records_steps() const override { return true; }
  bool would_replay(uint64_t key) const override { return calls_.contains(key); }
  void run_recorded(uint64_t key, const std::function<void()>& ops) override {
    now_.clear();
    recording_ = true;
    ops();
    recording_ = false;
    const auto [found, is_new] = calls_.emplace(key, now_);
    n_replays += !is_new;
    CHECK_MESSAGE(found->second == now_, "one key, two recordings");
  }
  void download(void* host, const void* device, size_t bytes) override {
    CHECK_MESSAGE(!recording_, "a recorded step reads results back");
    CpuBackend::download(host, device, bytes);
  }
  void upload(void* device, const void* host, size_t bytes) override {
    CHECK_MESSAGE(!recording_, "a recorded step uploads");
    CpuBackend::upload(device, host, bytes);
  }

  void embed(const Tensor& table, const int32_t* ids, int n, float* out) override {
    note(table.data, ids, n, out);
    CpuBackend::embed(table, ids, n, out);
  }
  void reduce_add_rms_norm(float* residual, float* addend, int n_slots, Comm* comm, const float* weight, float eps, int n,
                           int width, float* out) override {
    note(residual, addend, n_slots, comm, weight, n, width, out);
    CpuBackend::reduce_add_rms_norm(residual, addend, n_slots, comm, weight, eps, n, width, out);
  }
  void linear(const float* x, const LinearWeight& weight, int n, float* y) override {
    note(x, &weight, n, y);
    CpuBackend::linear(x, weight, n, y);
  }
  void qk_norm_rope_store(const BatchView& batch, const AttentionShape& shape, const float* qkv, const float* q_norm,
                          const float* k_norm, float eps, const float* cos, const float* sin, const KvView& kv,
                          float* q_out) override {
    note_batch(batch);
    note(qkv, q_norm, k_norm, cos, sin, kv.k, kv.v, q_out);
    CpuBackend::qk_norm_rope_store(batch, shape, qkv, q_norm, k_norm, eps, cos, sin, kv, q_out);
  }
  void attention(const BatchView& batch, const AttentionShape& shape, const float* q, const KvView& kv, float* out) override {
    note_batch(batch);
    note(q, kv.k, kv.v, out);
    CpuBackend::attention(batch, shape, q, kv, out);
  }
  void route(const float* x, const LinearWeight& gate, const float* bias, const RouterShape& shape, int n,
             const int32_t* forced_ids, float* logits, const Routing& out) override {
    note(x, &gate, bias, n, forced_ids, logits, out.expert_ids, out.weights, out.expert_offsets, out.slot_order);
    CpuBackend::route(x, gate, bias, shape, n, forced_ids, logits, out);
  }
  void experts(const float* x, const ExpertWeights& weights, const Routing& routing, int n_active, int n, int width,
               float* out) override {
    note(x, &weights, routing.expert_ids, n_active, n, width, out);
    CpuBackend::experts(x, weights, routing, n_active, n, width, out);
  }
  void head_logits(const float* x, const int32_t* row_ids, int n, const LinearWeight& head, Comm* comm,
                   const std::vector<int64_t>& widths, float* logits) override {
    note(x, row_ids, n, &head, comm, logits);
    CpuBackend::head_logits(x, row_ids, n, head, comm, widths, logits);
  }
  void sample(const SampleArgs& args) override {
    note(args.logits, args.n_rows, args.vocab_size, args.rows, args.bias_ids, args.bias_values, args.ban_ids, args.masks,
         args.counts, args.tokens, args.logprobs, args.top_ids, args.top_logprobs);
    CpuBackend::sample(args);
  }
  void join_norms(const float* embedding, const float* embedding_norm, const float* hidden, const float* hidden_norm, float eps,
                  int n, int width, float* out) override {
    note(embedding, embedding_norm, hidden, hidden_norm, n, width, out);
    CpuBackend::join_norms(embedding, embedding_norm, hidden, hidden_norm, eps, n, width, out);
  }
  void copy_rows(const float* from, const int32_t* from_ids, int64_t from_stride, float* to, const int32_t* to_ids,
                 int64_t to_stride, int n, int width) override {
    note(from, from_ids, from_stride, to, to_ids, to_stride, n, width);
    CpuBackend::copy_rows(from, from_ids, from_stride, to, to_ids, to_stride, n, width);
  }

 private:
  template <typename... T>
  void note(T... values) {
    if (recording_) (now_.push_back(bits_of(values)), ...);
  }
  void note_batch(const BatchView& batch) {
    for (int b = 0; b < batch.n_seqs && batch.n_seqs == batch.n_tokens; ++b)
      CHECK_MESSAGE(batch.seq_offsets[b] == b, "as many sequences as rows, and not one row each");
    note(batch.n_tokens, batch.n_seqs, batch.max_pages, batch.token_ids, batch.positions, batch.seq_offsets, batch.page_tables);
  }
  template <typename T>
  static uint64_t bits_of(T* pointer) {
    return reinterpret_cast<uintptr_t>(pointer);
  }
  static uint64_t bits_of(int64_t number) { return static_cast<uint64_t>(number); }

  std::map<uint64_t, std::vector<uint64_t>> calls_;
  std::vector<uint64_t> now_;
  bool recording_ = false;
};

}  // namespace sigmoe::test
