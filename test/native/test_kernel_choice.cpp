// Which CUDA kernel takes an op, over the engine's whole range and without a GPU: every op has a kernel, the full model never
// falls back on Hopper, and what falls back says why.
#include <array>
#include <fstream>
#include <functional>
#include <set>

#include "cuda/kernel_choice.h"
#include "doctest/doctest.h"
#include "engine/checkpoint/config.h"
#include "engine/weights/synthetic.h"
#include "golden.h"

using namespace sigmoe;
using test::golden_dir;
using namespace sigmoe::cuda;

namespace {

Facts hopper() {
  Facts facts;
  facts.sm = 90;
  facts.overlap = true;
  facts.n_sms = 132;
  facts.shared_bytes = 228 << 10;
  facts.has_early = facts.has_held = facts.has_stream = facts.has_tensor = facts.has_few_experts = true;
  facts.has_rank_rows = true;
  return facts;
}

Facts ampere() {
  Facts facts;
  facts.sm = 80;
  facts.n_sms = 108;
  facts.shared_bytes = 164 << 10;
  return facts;
}

std::vector<Facts> all_facts() {
  std::vector<Facts> all;
  for (const Facts& card : {hopper(), ampere()})
    for (const int option : {0, 1, 2, 3}) {
      Facts facts = card;
      facts.exact = option == 1;
      facts.deterministic = option == 2;
      if (option == 3) facts.before_hopper = true, facts.sm = 80;
      all.push_back(facts);
    }
  return all;
}

std::vector<int> all_rows() {
  std::vector<int> rows;
  for (int n = 1; n <= 300; ++n) rows.push_back(n);
  for (const int n : {511, 512, 1023, 1024, 1025, 2048, 4096, 8192, 16384}) rows.push_back(n);
  return rows;
}

constexpr std::array kFormats{WeightFormat::f32, WeightFormat::bf16, WeightFormat::fp8, WeightFormat::int4, WeightFormat::int8};

// As checkpoints are cut: FP8 in blocks of 128 x 128, INT4 in groups of 128, INT8 by row.
WeightShape weight(int64_t n, int64_t k, WeightFormat format, bool gate_up = false) {
  LinearDesc desc;
  desc.n = n, desc.k = k, desc.gate_up = gate_up;
  WeightShape shape = tiles_of(desc, format);
  if (format == WeightFormat::f32 || format == WeightFormat::bf16) return shape;
  shape.row_shift = format == WeightFormat::fp8 ? 7 : 0;
  shape.k_shift = format == WeightFormat::int8 ? 30 : 7;
  shape.scale_columns = format == WeightFormat::int8 ? 1 : shape.n_groups;
  return shape;
}

struct Op {
  std::string name;
  KernelChoice choice;
};

KernelChoice choose_product(const Facts& facts, const WeightShape& w, int n_rows, bool has_twin) {
  const ClassChoice rows = choose_linear(facts, w, n_rows);
  switch (rows.rows) {
    case RowClass::exact: return rows.with({Kernel::exact_linear, Kernel::none, {}});
    case RowClass::mma: return rows.with({Kernel::mma_gemm, Kernel::none, {}});
    case RowClass::tensor: {
      const int splits = tensor_splits(facts.n_sms, w, n_rows);
      CHECK((splits >= 1 && splits <= 4));
      return rows.with({splits > 1 ? Kernel::tensor_split : Kernel::tensor_gemm, Kernel::none, {}});
    }
    case RowClass::few: break;
  }
  return rows.with(
      choose_gemm(facts, {GemmMode::linear, n_rows, 0, true, w, {}}, !has_twin && reads_float(w.n_groups, n_rows)));
}

std::vector<KernelChoice> choose_layer_experts(const Facts& facts, const ExpertShapes& experts, int n_experts, int n_rows,
                                               bool has_twin) {
  const ClassChoice rows = choose_experts(facts, experts, n_rows);
  switch (rows.rows) {
    case RowClass::exact: return {rows.with({Kernel::exact_experts, Kernel::none, {}})};
    case RowClass::mma: return {rows.with({Kernel::mma_gemm, Kernel::none, {}})};
    case RowClass::tensor: return {choose_many_experts(experts.gate_up, experts.down, experts.n_active > 0, n_experts, n_rows)};
    case RowClass::few: break;
  }
  const WeightShape none = weight(0, 0, WeightFormat::bf16);
  const bool routed = experts.n_active > 0;
  const bool as_float = !has_twin && reads_float(experts.shared_gate_up.n_groups, n_rows);
  const GemmShape up{GemmMode::gate_up, n_rows, n_experts, true, experts.shared_gate_up, routed ? experts.gate_up : none};
  const GemmShape down{GemmMode::down, n_rows, n_experts, true, experts.shared_down, routed ? experts.down : none};
  return {rows.with(choose_gemm(facts, up, as_float)), rows.with(choose_gemm(facts, down, false))};
}

// Every op of a step of `n_rows` rows: of as many sequences, or of one.
std::vector<Op> ops_of(const ModelConfig& c, const Facts& facts, WeightFormat format, int n_rows, bool decoding,
                       bool has_twin) {
  std::vector<Op> ops;
  const int d = static_cast<int>(c.hidden_size), head_width = static_cast<int>(c.n_heads * c.head_dim);
  const AttentionShape heads{static_cast<int>(c.n_heads), static_cast<int>(c.n_kv_heads), static_cast<int>(c.head_dim),
                             static_cast<int>(c.rotary_dim)};
  const auto product = [&](const char* name, int64_t n, int64_t k, WeightFormat kept) {
    ops.push_back({name, choose_product(facts, weight(n, k, kept), n_rows, has_twin)});
  };
  product("qkv", head_width + 2 * c.n_kv_heads * c.head_dim, d, format);
  product("attention out", d, head_width, format);
  product("head", c.vocab_size, d, WeightFormat::bf16);
  product("FP8 head", c.vocab_size, d, WeightFormat::fp8);
  const auto both = [&](int64_t width, WeightShape& gate_up, WeightShape& down) {
    gate_up = weight(2 * width, d, format, true), down = weight(d, width, format);
  };
  ExpertShapes dense, sparse;
  dense.has_shared = sparse.has_shared = true;
  both(c.dense_width, dense.shared_gate_up, dense.shared_down);
  for (const KernelChoice& choice : choose_layer_experts(facts, dense, 0, n_rows, has_twin))
    ops.push_back({"dense MLP", choice});
  sparse.n_active = static_cast<int>(c.n_active);
  both(c.expert_width, sparse.gate_up, sparse.down);
  both(c.shared_width, sparse.shared_gate_up, sparse.shared_down);
  for (const KernelChoice& choice : choose_layer_experts(facts, sparse, static_cast<int>(c.n_experts), n_rows, has_twin))
    ops.push_back({"experts", choice});
  const DType kv = facts.exact ? DType::f32 : DType::bf16;
  const AttentionChoice attention = choose_attention(facts, n_rows, decoding ? n_rows : 1, heads, kv);
  if (attention.few.kernel != Kernel::none) ops.push_back({"attention", attention.few});
  if (attention.many.kernel != Kernel::none) ops.push_back({"attention", attention.many});
  CHECK((attention.few.kernel != Kernel::none || attention.many.kernel != Kernel::none));
  ops.push_back({"store", choose_qk_store(facts, n_rows, heads, kv)});
  ops.push_back({"norm", choose_norm(facts, n_rows, d, facts.many_rows())});
  ops.push_back({"route", choose_route(facts, weight(c.n_experts, d, WeightFormat::bf16), n_rows)});
  return ops;
}

void for_each_op(const ModelConfig& config, const Facts& facts, WeightFormat format,
                 const std::function<void(const Op&, int)>& see) {
  for (const int n_rows : all_rows())
    for (const bool decoding : {false, true})
      for (const bool has_twin : {false, true})
        for (const Op& op : ops_of(config, facts, format, n_rows, decoding, has_twin)) see(op, n_rows);
}

std::string why(const KernelChoice& choice) {
  return std::string(kernel_name(choice.meant)) + ": " + refusal_text(choice.refusal);
}

std::string text_of(const std::string& path) {
  std::ifstream file(path);
  REQUIRE(file.good());
  return {std::istreambuf_iterator<char>(file), {}};
}

std::vector<ModelConfig> all_configs() {
  std::vector<ModelConfig> all;
  for (const char* shape : {"ling-flash-2.0", "ling-mini-2.0", "nano"}) all.push_back(shape_config(shape));
  for (const std::string& folder : {std::string(SIGMOE_SOURCE_DIR "/models/nano"), golden_dir() + "/random/base"})
    all.push_back(parse_model_config(text_of(folder + "/config.json")));
  return all;
}

}  // namespace

TEST_CASE("kernel choice: every op of every shape has a kernel, and a fallback a reason") {
  std::set<Kernel> seen;
  for (const ModelConfig& config : all_configs())
    for (const Facts& facts : all_facts())
      for (const WeightFormat format : kFormats)
        for_each_op(config, facts, format, [&](const Op& op, int) {
          seen.insert(op.choice.kernel);
          const bool good = op.choice.kernel != Kernel::none && op.choice.kernel != Kernel::ops &&
                            std::string(kernel_name(op.choice.kernel)) != "?" &&
                            op.choice.is_fallback() == !refusal_text(op.choice.refusal).empty() &&
                            (!op.choice.is_fallback() || op.choice.meant != Kernel::none);
          if (!good) FAIL_CHECK(op.name << " by " << kernel_name(op.choice.kernel) << ": " << refusal_text(op.choice.refusal));
        });
  for (const Kernel kernel :
       {Kernel::exact_linear,    Kernel::early_linear,    Kernel::held_linear,       Kernel::stream_gemm,
        Kernel::gemm_few,        Kernel::gemm_wide,       Kernel::tensor_gemm,       Kernel::tensor_split,
        Kernel::mma_gemm,        Kernel::exact_experts,   Kernel::narrow_experts,    Kernel::exact_attention,
        Kernel::split_attention, Kernel::chain_attention, Kernel::prefill_attention, Kernel::mma_attention,
        Kernel::qk_store,        Kernel::qk_store_many,   Kernel::row_norm,          Kernel::norm_many,
        Kernel::route_logits,    Kernel::route_tensor}) {
    INFO(kernel_name(kernel));
    CHECK(seen.count(kernel) == 1);
  }
}

TEST_CASE("kernel choice: the full model in FP8 and BF16 never falls back on Hopper") {
  const ModelConfig config = shape_config("ling-flash-2.0");
  for (const WeightFormat format : {WeightFormat::fp8, WeightFormat::bf16})
    for_each_op(config, hopper(), format, [&](const Op& op, int n_rows) {
      if (op.choice.is_fallback())
        FAIL_CHECK(op.name << " of " << n_rows << " rows in " << weight_format_name(format) << " by "
                           << kernel_name(op.choice.kernel) << ": " << refusal_text(op.choice.refusal));
    });
}

TEST_CASE("kernel choice: the full model in FP8 by rows") {
  const Facts facts = hopper();
  const auto product = [&](int n) {
    return [&facts, n](int n_rows) { return choose_product(facts, weight(n, 4096, WeightFormat::fp8), n_rows, true).kernel; };
  };
  const auto linear = product(5120), out = product(4096), head = product(157184);
  CHECK(linear(1) == Kernel::early_linear);
  CHECK(linear(2) == Kernel::gemm_few);  // two rows and more take shared memory of which three blocks' would not fit an SM
  CHECK(out(4) == Kernel::early_linear);
  CHECK(linear(5) == Kernel::held_linear);
  CHECK(linear(23) == Kernel::held_linear);
  CHECK(linear(24) == Kernel::tensor_split);
  CHECK(linear(1023) == Kernel::tensor_split);
  CHECK(linear(1024) == Kernel::tensor_gemm);
  CHECK(head(1) == Kernel::gemm_few);
  CHECK(head(2) == Kernel::stream_gemm);
  CHECK(head(8) == Kernel::stream_gemm);
  CHECK(head(9) == Kernel::gemm_wide);
  CHECK(head(24) == Kernel::tensor_gemm);
  ExpertShapes shapes;
  shapes.n_active = 8;
  shapes.has_shared = true;
  shapes.gate_up = shapes.shared_gate_up = weight(2048, 4096, WeightFormat::fp8, true);
  shapes.down = shapes.shared_down = weight(4096, 1024, WeightFormat::fp8);
  const auto experts = [&](int n_rows) { return choose_layer_experts(facts, shapes, 256, n_rows, true)[0].kernel; };
  CHECK(experts(1) == Kernel::gemm_few);
  CHECK(experts(2) == Kernel::stream_gemm);
  CHECK(experts(47) == Kernel::stream_gemm);
  CHECK(experts(48) == Kernel::narrow_experts);
  CHECK(experts(256) == Kernel::narrow_experts);
  CHECK(experts(257) == Kernel::tensor_gemm);

  // A layer of one row by kernels of several ops.
  const RouterShape router{256, 8, 8, 4, true, 2.5f};
  const WeightShape gate = weight(256, 4096, WeightFormat::bf16);
  CHECK(takes_decode_layer(facts, 4));
  CHECK_FALSE(takes_decode_layer(facts, 5));
  CHECK(choose_normed_linear(facts, weight(5120, 4096, WeightFormat::fp8), 1, 0).kernel == Kernel::normed_linear);
  CHECK(choose_adding_linear(facts, weight(4096, 4096, WeightFormat::fp8), 4).kernel == Kernel::adding_linear);
  CHECK(choose_few_experts(facts, shapes, true, gate, router, 1, 0).kernel == Kernel::few_experts);
  CHECK_FALSE(choose_few_experts(facts, shapes, true, gate, router, 2, 0).is_fallback());
}

// What two and four ranks have of the full model, experts in parts and whole.
TEST_CASE("kernel choice: a layer of one row between ranks, and the sums over them") {
  const RouterShape router{256, 8, 8, 4, true, 2.5f};
  const WeightShape gate = weight(256, 4096, WeightFormat::bf16);
  for (const WeightFormat format : {WeightFormat::fp8, WeightFormat::bf16})
    for (const int world : {2, 4}) {
      CAPTURE(weight_format_name(format));
      CAPTURE(world);
      ExpertShapes experts;
      experts.n_active = 8;
      experts.has_shared = true;
      experts.shared_gate_up = weight(2048 / world, 4096, format, true);
      experts.shared_down = weight(4096, 1024 / world, format);
      experts.gate_up = experts.shared_gate_up, experts.down = experts.shared_down;
      const auto qkv = weight(5120 / world, 4096, format), out = weight(4096, 4096 / world, format);
      CHECK(choose_rank_linear(hopper(), qkv, true).kernel == Kernel::rank_linear);
      CHECK(choose_rank_linear(hopper(), out, false).kernel == Kernel::rank_linear);
      CHECK(choose_rank_experts(hopper(), experts, gate, router).kernel == Kernel::rank_experts);
      CHECK(choose_rank_linear(ampere(), qkv, true).refusal.reason == Reason::no_hopper);
      CHECK(choose_rank_experts(ampere(), experts, gate, router).refusal.reason == Reason::no_hopper);
      experts.gate_up = weight(2048, 4096, format, true), experts.down = weight(4096, 1024, format);
      CHECK((choose_rank_experts(hopper(), experts, gate, router).kernel == Kernel::rank_experts) ==
            (format == WeightFormat::fp8));
      experts.down = weight(4096, 1024, WeightFormat::int4);
      CHECK(choose_rank_experts(hopper(), experts, gate, router).is_fallback());
    }
  CHECK(choose_rank_linear(hopper(), weight(2560, 2048, WeightFormat::fp8), true).refusal.wanted == 4096);
  CHECK(choose_rank_linear(hopper(), weight(4096, 512, WeightFormat::fp8), false).refusal.found == 512);

  const auto sum = [](const Facts& facts, RankFacts::Way way, int world, bool all_hopper, int n_rows, int width) {
    return choose_sum(facts, {way, world, all_hopper}, n_rows, width);
  };
  constexpr auto peers = RankFacts::Way::peer_memory;
  CHECK(sum(hopper(), peers, 2, true, 23, 4096).kernel == Kernel::one_shot_reduce);
  CHECK(sum(hopper(), peers, 2, true, 24, 4096).kernel == Kernel::many_reduce);
  CHECK(sum(hopper(), peers, 2, false, 24, 4096).is_fallback());
  CHECK(sum(hopper(), peers, 2, true, 24, 8192).refusal.found == 8192);
  CHECK(sum(hopper(), peers, 4, true, 16, 4096).kernel == Kernel::one_shot_reduce);
  CHECK(sum(hopper(), peers, 4, true, 17, 4096).kernel == Kernel::two_shot_reduce);
  CHECK_FALSE(sum(hopper(), peers, 4, true, 17, 4096).is_fallback());
  CHECK(sum(ampere(), peers, 2, false, 33, 4096).kernel == Kernel::two_shot_reduce);
  CHECK(sum(hopper(), RankFacts::Way::nccl, 2, true, 128, 4096).kernel == Kernel::nccl);
  CHECK(sum(hopper(), RankFacts::Way::host, 2, true, 128, 4096).kernel == Kernel::host_sum);
}

TEST_CASE("kernel choice: reasons of fallbacks") {
  const auto linear = [&](const Facts& facts, const WeightShape& w, int n_rows) {
    return why(choose_product(facts, w, n_rows, true));
  };
  const WeightShape qkv = weight(5120, 4096, WeightFormat::fp8);
  CHECK(linear(hopper(), weight(2048, 2048, WeightFormat::fp8), 1) == "early_linear: k 2048 is not 4096");
  CHECK(linear(hopper(), weight(512, 256, WeightFormat::fp8), 5) == "held_linear: k 256 is not 2048");
  CHECK(linear(hopper(), weight(5120, 4096, WeightFormat::int4), 512) ==
        "tensor_gemm: weights in " + std::string(weight_format_name(WeightFormat::int4)));
  CHECK(linear(ampere(), qkv, 512) == "tensor_gemm: it needs Hopper (compute capability 9.0) and a build with code for it");
  // What a card before Hopper could have run counts for more than what it could not.
  CHECK(linear(ampere(), weight(5120, 4096, WeightFormat::int8), 512) ==
        "mma_gemm: weights in " + std::string(weight_format_name(WeightFormat::int8)));
  Facts deterministic = hopper();
  deterministic.deterministic = true;
  CHECK(linear(deterministic, qkv, 512) == "tensor_gemm: deterministic keeps the kernels of few rows");
  Facts asked = hopper();
  asked.before_hopper = true, asked.sm = 80;
  CHECK(linear(asked, qkv, 512) == "tensor_gemm: kernels of cards before Hopper were asked for");

  ExpertShapes shapes;
  shapes.n_active = 8;
  shapes.has_shared = true;
  shapes.gate_up = shapes.shared_gate_up = weight(2 * 192, 4096, WeightFormat::fp8, true);
  shapes.down = shapes.shared_down = weight(4096, 192, WeightFormat::fp8);
  const auto experts = [&](int n_rows) { return choose_layer_experts(hopper(), shapes, 256, n_rows, true); };
  CHECK(why(experts(16)[1]) == "stream_gemm: k 192 is no multiple of 128");
  CHECK(why(experts(64)[0]) == "tensor_gemm: the expert's width 192 is no multiple of 128");
  shapes.uniform = false;
  CHECK(experts(16)[0].kernel == Kernel::exact_experts);
  CHECK(experts(16)[0].is_fallback());

  const AttentionShape odd{8, 2, 96, 96}, wide{64, 2, 128, 64};
  CHECK(why(choose_attention(hopper(), 4, 4, odd, DType::bf16).few) == "split_attention: head_dim 96 is not 128");
  CHECK(why(choose_attention(hopper(), 4, 4, wide, DType::bf16).few) ==
        "split_attention: query heads of a KV head 32 is more than 16");
  const AttentionChoice none = choose_attention(ampere(), 4, 4, wide, DType::f8_e4m3);
  CHECK(none.few.kernel == Kernel::none);
  CHECK(none.many.kernel == Kernel::none);
}

TEST_CASE("kernel choice: a step of prompts and decoding rows has a kernel for each") {
  const AttentionShape heads{32, 4, 128, 64};
  const AttentionChoice mixed = choose_attention(hopper(), 2048, 8, heads, DType::bf16);
  CHECK(mixed.few.kernel == Kernel::chain_attention);
  CHECK(mixed.many.kernel == Kernel::prefill_attention);
  const AttentionChoice prompt = choose_attention(hopper(), 2048, 1, heads, DType::bf16);
  CHECK(prompt.few.kernel == Kernel::none);
  CHECK(prompt.many.kernel == Kernel::prefill_attention);
  const AttentionChoice older = choose_attention(ampere(), 2048, 8, heads, DType::bf16);
  CHECK(older.few.kernel == Kernel::split_attention);
  CHECK(older.many.kernel == Kernel::mma_attention);
  CHECK(choose_attention(ampere(), 2048, 1, heads, DType::bf16).few.kernel == Kernel::none);
}

TEST_CASE("kernel choice: prompts are read in FP8 where that was asked for and heads have 128 dims") {
  const AttentionShape heads{32, 4, 128, 64}, narrow{32, 4, 64, 64};
  Facts facts = hopper();
  facts.fp8_prefill = true;
  for (const DType kv : {DType::bf16, DType::f8_e4m3}) {
    const AttentionChoice mixed = choose_attention(facts, 2048, 8, heads, kv);
    CHECK(mixed.few.kernel == Kernel::chain_attention);
    CHECK(mixed.many.kernel == Kernel::fp8_prefill);
    CHECK_FALSE(mixed.many.is_fallback());
    CHECK(mixed.reads_prompts_on_hopper());
    CHECK(choose_attention(facts, 17, 1, heads, kv).many.kernel == Kernel::fp8_prefill);
    CHECK(choose_attention(facts, 32, 32, heads, kv).many.kernel == Kernel::none);
    const KernelChoice other = choose_attention(facts, 2048, 8, narrow, kv).many;
    CHECK(other.kernel == Kernel::prefill_attention);
    CHECK(why(other) == "fp8_prefill: head_dim 64 is not 128");
  }
  CHECK_FALSE(choose_attention(ampere(), 2048, 8, heads, DType::bf16).reads_prompts_on_hopper());
}
