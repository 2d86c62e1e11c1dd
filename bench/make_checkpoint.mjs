// Writes a checkpoint folder of random FP8 block weights in a real shape, to measure loading on files larger than caches.
// usage: node bench/make_checkpoint.mjs <folder> [layers, default 3] [shard size in MB, default 1000]
import { closeSync, mkdirSync, openSync, writeFileSync, writeSync } from 'node:fs';
import { join } from 'node:path';

const [folder, layersText = '3', shardText = '1000'] = process.argv.slice(2);
if (!folder) {
  console.error('usage: node bench/make_checkpoint.mjs <folder> [layers] [shard MB]');
  process.exit(2);
}
const layers = Number(layersText);
const shardBytes = Number(shardText) * 1e6;

// Ling-mini-2.0 (reference: its model card), with fewer layers and a small vocabulary: experts are what loading is about.
const [hidden, heads, kvHeads, headDim, dense, width, experts, vocab] = [2048, 16, 4, 128, 5120, 512, 256, 16384];
const config = {
  architectures: ['BailingMoeV2ForCausalLM'],
  model_type: 'bailing_moe',
  num_hidden_layers: layers,
  hidden_size: hidden,
  intermediate_size: dense,
  moe_intermediate_size: width,
  num_attention_heads: heads,
  num_key_value_heads: kvHeads,
  head_dim: headDim,
  num_experts: experts,
  num_experts_per_tok: 8,
  num_shared_experts: 1,
  first_k_dense_replace: 1,
  n_group: 8,
  topk_group: 4,
  norm_topk_prob: true,
  routed_scaling_factor: 2.5,
  score_function: 'sigmoid',
  moe_router_enable_expert_bias: true,
  router_dtype: 'fp32',
  use_qk_norm: true,
  use_rmsnorm: true,
  partial_rotary_factor: 0.5,
  rope_theta: 600000,
  rope_scaling: null,
  max_position_embeddings: 32768,
  rms_norm_eps: 1e-6,
  vocab_size: vocab,
  tie_word_embeddings: false,
  hidden_act: 'silu',
  use_bias: false,
  use_qkv_bias: false,
  eos_token_id: 0,
  pad_token_id: 0,
  torch_dtype: 'bfloat16',
  quantization_config: { quant_method: 'fp8', fmt: 'e4m3', activation_scheme: 'dynamic', weight_block_size: [128, 128] },
};

/** @type {{name: string, dtype: string, shape: number[]}[]} */
const tensors = [];
const plain = (name, dtype, ...shape) => tensors.push({ name, dtype, shape });
const fp8 = (name, out, inner) => {
  plain(`${name}.weight`, 'F8_E4M3', out, inner);
  plain(`${name}.weight_scale_inv`, 'F32', Math.ceil(out / 128), Math.ceil(inner / 128));
};
const mlp = (prefix, inner) => {
  fp8(`${prefix}.gate_proj`, inner, hidden);
  fp8(`${prefix}.up_proj`, inner, hidden);
  fp8(`${prefix}.down_proj`, hidden, inner);
};
plain('model.word_embeddings.weight', 'BF16', vocab, hidden);
for (let i = 0; i < layers; i++) {
  const at = `model.layers.${i}`;
  plain(`${at}.input_layernorm.weight`, 'BF16', hidden);
  plain(`${at}.post_attention_layernorm.weight`, 'BF16', hidden);
  fp8(`${at}.attention.query_key_value`, (heads + 2 * kvHeads) * headDim, hidden);
  fp8(`${at}.attention.dense`, hidden, heads * headDim);
  plain(`${at}.attention.query_layernorm.weight`, 'BF16', headDim);
  plain(`${at}.attention.key_layernorm.weight`, 'BF16', headDim);
  if (i === 0) {
    mlp(`${at}.mlp`, dense);
    continue;
  }
  plain(`${at}.mlp.gate.weight`, 'BF16', experts, hidden);
  plain(`${at}.mlp.gate.expert_bias`, 'F32', experts);
  for (let e = 0; e < experts; e++) mlp(`${at}.mlp.experts.${e}`, width);
  mlp(`${at}.mlp.shared_experts`, width);
}
plain('model.norm.weight', 'BF16', hidden);
plain('lm_head.weight', 'BF16', vocab, hidden);

const elementBytes = { F32: 4, BF16: 2, F8_E4M3: 1 };
const bytesOf = (tensor) => tensor.shape.reduce((a, b) => a * b, 1) * elementBytes[tensor.dtype];

// One pool of random bytes, read at changing offsets: no NaN codes, BF16 and F32 of ordinary size.
const pool = { F8_E4M3: Buffer.alloc(32 << 20), BF16: Buffer.alloc(8 << 20), F32: Buffer.alloc(1 << 16) };
let state = 12345;
const random = () => {
  state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
  return state >>> 8;
};
for (let i = 0; i < pool.F8_E4M3.length; i++) {
  const byte = random() & 0xff;
  pool.F8_E4M3[i] = (byte & 0x7f) === 0x7f ? byte & 0xfe : byte;
}
for (let i = 0; i < pool.BF16.length; i += 2) pool.BF16.writeUInt16LE((random() & 0x80ff) | 0x3c00, i);
for (let i = 0; i < pool.F32.length; i += 4) pool.F32.writeFloatLE(1e-4 * (1 + (random() & 255) / 256), i);

mkdirSync(folder, { recursive: true });
writeFileSync(join(folder, 'config.json'), JSON.stringify(config, null, 1));
const shards = [[]];
let filled = 0;
for (const tensor of tensors) {
  if (filled + bytesOf(tensor) > shardBytes && shards.at(-1).length > 0) {
    shards.push([]);
    filled = 0;
  }
  shards.at(-1).push(tensor);
  filled += bytesOf(tensor);
}
const weightMap = {};
const pad = (n) => String(n).padStart(5, '0');
let total = 0;
shards.forEach((shard, index) => {
  const file = `model-${pad(index + 1)}-of-${pad(shards.length)}.safetensors`;
  const header = {};
  let at = 0;
  for (const tensor of shard) {
    header[tensor.name] = { dtype: tensor.dtype, shape: tensor.shape, data_offsets: [at, at + bytesOf(tensor)] };
    weightMap[tensor.name] = file;
    at += bytesOf(tensor);
  }
  total += at;
  const text = Buffer.from(JSON.stringify(header));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(text.length));
  const fd = openSync(join(folder, file), 'w');
  writeSync(fd, length);
  writeSync(fd, text);
  for (const tensor of shard) {
    const source = pool[tensor.dtype];
    for (let left = bytesOf(tensor); left > 0; ) {
      const start = left < source.length ? (random() % Math.max(1, (source.length - left) >> 2)) * 4 : 0;
      left -= writeSync(fd, source, start, Math.min(left, source.length - start));
    }
  }
  closeSync(fd);
});
writeFileSync(
  join(folder, 'model.safetensors.index.json'),
  JSON.stringify({ metadata: { total_size: total }, weight_map: weightMap }),
);
console.log(`${folder}: ${tensors.length} tensors, ${(total / 1e9).toFixed(2)} GB in ${shards.length} files`);
