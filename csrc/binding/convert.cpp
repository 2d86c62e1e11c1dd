#include "binding/convert.h"

#include <cstring>

namespace sigmoe::binding {
namespace {

template <typename Array, typename T>
Array typed_array(Napi::Env env, const std::vector<T>& values) {
  Array array = Array::New(env, values.size());
  if (!values.empty()) std::memcpy(array.Data(), values.data(), values.size() * sizeof(T));
  return array;
}

// An array of one object per item, which fill(object, item) completes.
template <typename Item, typename Fill>
Napi::Array array_of(Napi::Env env, const std::vector<Item>& items, Fill fill) {
  Napi::Array array = Napi::Array::New(env, items.size());
  for (size_t i = 0; i < items.size(); ++i) {
    Napi::Object entry = Napi::Object::New(env);
    fill(entry, items[i]);
    array.Set(static_cast<uint32_t>(i), entry);
  }
  return array;
}

Napi::Number count(Napi::Env env, uint64_t value) { return Napi::Number::New(env, static_cast<double>(value)); }

}  // namespace

Napi::Object to_js(Napi::Env env, const EngineInfo& info) {
  Napi::Object out = Napi::Object::New(env);
  out.Set("architecture", info.architecture);
  out.Set("device", info.device);
  out.Set("deviceName", info.device_name);
  out.Set("deviceReason", info.device_reason);
  out.Set("kernels", info.kernels);
  out.Set("compute", info.compute);
  out.Set("kvCacheDtype", info.kv_cache_dtype);
  out.Set("prefillAttention", info.prefill_attention);
  out.Set("weightFormat", info.weight_format);
  const std::pair<const char*, int64_t> numbers[] = {
      {"context", info.context},
      {"vocabSize", info.vocab_size},
      {"hiddenSize", info.hidden_size},
      {"layers", info.n_layers},
      {"denseLayers", info.n_dense_layers},
      {"mtpLayers", info.n_mtp_layers},
      {"heads", info.n_heads},
      {"kvHeads", info.n_kv_heads},
      {"headDim", info.head_dim},
      {"experts", info.n_experts},
      {"activeExperts", info.n_active},
      {"sharedExperts", info.n_shared},
      {"parameters", info.parameters},
      {"activeParameters", info.active_parameters},
      {"checkpointBytes", static_cast<int64_t>(info.checkpoint_bytes)},
      {"weightBytes", static_cast<int64_t>(info.weight_bytes)},
      {"kvBytesPerToken", static_cast<int64_t>(info.kv_bytes_per_token)},
      {"kvBytes", static_cast<int64_t>(info.kv_bytes)},
      {"workspaceBytes", static_cast<int64_t>(info.workspace_bytes)},
      {"kvCacheTokens", info.kv_cache_tokens},
      {"threads", info.n_threads},
      {"tensorParallelSize", info.tensor_parallel},
      {"dataParallelSize", info.data_parallel},
      {"maxNumSeqs", info.max_num_seqs},
      {"maxBatchedTokens", info.max_batched_tokens},
      {"maxDraft", info.max_draft},
  };
  for (const auto& [name, value] : numbers) out.Set(name, Napi::Number::New(env, static_cast<double>(value)));
  Napi::Array parts = Napi::Array::New(env, info.parts.size());
  for (size_t i = 0; i < info.parts.size(); ++i) {
    Napi::Object part = Napi::Object::New(env);
    part.Set("part", info.parts[i].part);
    part.Set("parameters", Napi::Number::New(env, static_cast<double>(info.parts[i].parameters)));
    parts.Set(static_cast<uint32_t>(i), part);
  }
  out.Set("parts", parts);
  out.Set("speculation", info.speculation);
  Napi::Array eos = Napi::Array::New(env, info.eos_ids.size());
  for (size_t i = 0; i < info.eos_ids.size(); ++i) eos.Set(static_cast<uint32_t>(i), Napi::Number::New(env, info.eos_ids[i]));
  out.Set("eosIds", eos);
  out.Set("ranks", array_of(env, info.ranks, [&](Napi::Object& entry, const RankMemory& rank) {
            entry.Set("weightBytes", count(env, rank.weight_bytes));
            entry.Set("kvBytesPerToken", count(env, rank.kv_bytes_per_token));
          }));
  return out;
}

Napi::Object to_js(Napi::Env env, const EngineStats& stats) {
  Napi::Object out = Napi::Object::New(env);
  out.Set("freePages", count(env, stats.free_pages));
  out.Set("cachedPages", count(env, stats.cached_pages));
  out.Set("heldPages", count(env, stats.held_pages));
  out.Set("totalPages", count(env, stats.total_pages));
  out.Set("running", count(env, stats.running));
  out.Set("waiting", count(env, stats.waiting));
  out.Set("steps", count(env, stats.steps));
  out.Set("prefillTokens", count(env, stats.prefill_tokens));
  out.Set("decodeTokens", count(env, stats.decode_tokens));
  out.Set("preemptions", count(env, stats.preemptions));
  out.Set("prefixQueriedTokens", count(env, stats.prefix_queried_tokens));
  out.Set("prefixHitTokens", count(env, stats.prefix_hit_tokens));
  out.Set("draftChecks", count(env, stats.draft_checks));
  out.Set("draftedTokens", count(env, stats.drafted_tokens));
  out.Set("acceptedTokens", count(env, stats.accepted_tokens));
  Napi::Array accepted_at = Napi::Array::New(env, stats.accepted_at.size());
  for (size_t i = 0; i < stats.accepted_at.size(); ++i)
    accepted_at.Set(static_cast<uint32_t>(i), count(env, stats.accepted_at[i]));
  out.Set("acceptedPerPosition", accepted_at);
  out.Set("plainSteps", count(env, stats.plain_steps));
  out.Set("verifySteps", count(env, stats.verify_steps));
  out.Set("draftPasses", count(env, stats.draft_passes));
  out.Set("plainMs", stats.plain_ms);
  out.Set("verifyMs", stats.verify_ms);
  out.Set("draftMs", stats.draft_ms);
  return out;
}

Napi::Object to_js(Napi::Env env, const StepEvent& event) {
  Napi::Object out = Napi::Object::New(env);
  const size_t n = event.requests.size();
  Napi::Float64Array requests = Napi::Float64Array::New(env, n);
  Napi::Uint8Array finish = Napi::Uint8Array::New(env, n);
  for (size_t i = 0; i < n; ++i) {
    requests[i] = static_cast<double>(event.requests[i]);
    finish[i] = static_cast<uint8_t>(event.finish[i]);
  }
  out.Set("requests", requests);
  out.Set("tokens", typed_array<Napi::Int32Array>(env, event.tokens));
  out.Set("finish", finish);
  if (!event.logprobs.empty()) {
    out.Set("logprobs", typed_array<Napi::Float32Array>(env, event.logprobs));
    out.Set("topIds", typed_array<Napi::Int32Array>(env, event.top_ids));
    out.Set("topLogprobs", typed_array<Napi::Float32Array>(env, event.top_logprobs));
  }
  out.Set("failures", array_of(env, event.failures, [&](Napi::Object entry, const StepEvent::Failure& failure) {
            entry.Set("request", count(env, failure.request));
            entry.Set("code", error_code_name(failure.code));
            entry.Set("message", failure.message);
            entry.Set("hint", failure.hint);
          }));
  out.Set("logits", array_of(env, event.logits, [&](Napi::Object entry, const StepEvent::Logits& logits) {
            entry.Set("request", count(env, logits.request));
            entry.Set("rows", count(env, logits.rows));
            entry.Set("vocab", count(env, logits.vocab));
            entry.Set("values", typed_array<Napi::Float32Array>(env, logits.values));
          }));
  out.Set("starts", array_of(env, event.starts, [&](Napi::Object entry, const StepEvent::Start& start) {
            entry.Set("request", count(env, start.request));
            entry.Set("cachedTokens", count(env, start.n_cached));
            entry.Set("queueMs", Napi::Number::New(env, start.queue_ms));
          }));
  out.Set("promptLogprobs",
          array_of(env, event.prompt_logprobs, [&](Napi::Object entry, const StepEvent::PromptLogprobs& scores) {
            entry.Set("request", count(env, scores.request));
            entry.Set("begin", count(env, scores.begin));
            entry.Set("logprobs", typed_array<Napi::Float32Array>(env, scores.logprobs));
            entry.Set("topIds", typed_array<Napi::Int32Array>(env, scores.top_ids));
            entry.Set("topLogprobs", typed_array<Napi::Float32Array>(env, scores.top_logprobs));
          }));
  out.Set("proposals", array_of(env, event.proposals, [&](Napi::Object entry, const StepEvent::Proposal& proposal) {
            entry.Set("request", count(env, proposal.request));
            entry.Set("tokens", typed_array<Napi::Int32Array>(env, proposal.tokens));
          }));
  out.Set("drafts", array_of(env, event.drafts, [&](Napi::Object entry, const auto& drafts) {
            entry.Set("request", count(env, drafts.request));
            entry.Set("drafted", count(env, drafts.n_drafted));
            entry.Set("accepted", count(env, drafts.n_accepted));
          }));
  return out;
}

}  // namespace sigmoe::binding
