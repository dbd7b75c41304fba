// The formulas of pipeline/model/accounting.py under the same names. Sizes in bytes; all counts stay below 2^53.

function mlpWidth(c) {
  const width = c.mlp_expansion * c.n_embd;
  if (Math.abs(width - Math.round(width)) <= 1e-9 * width) return Math.max(1, Math.round(width));
  return Math.max(8, 8 * Math.round(width / 8));
}

const gated = (c) => c.mlp === "swiglu" || c.mlp === "geglu";
const kvHeads = (c) => c.n_kv_head ?? c.n_head;
const headSize = (c) => c.n_embd / c.n_head;

function parameters(c) {
  const C = c.n_embd, D = headSize(c), F = mlpWidth(c), V = c.vocab_size;
  const qkv = C + 2 * kvHeads(c) * D, fc = F * (gated(c) ? 2 : 1);
  const b = c.bias ? 1 : 0;
  const normBias = c.norm === "layernorm" ? b : 0;
  const p = {
    token_embedding: V * C,
    position_embedding: c.position === "learned" ? c.block_size * C : 0,
    attention_per_block: (C + b) * qkv + (C + b) * C,
    mlp_per_block: (C + b) * fc + (F + b) * C,
    norms_per_block: 2 * C * (1 + normBias) + (c.qk_norm ? 2 * D * (1 + normBias) : 0),
    blocks: c.n_layer,
    final_norm: c.norm_placement === "pre" ? C * (1 + normBias) : 0,
    head: c.tie_embeddings ? 0 : V * C,
  };
  p.per_block = p.attention_per_block + p.mlp_per_block + p.norms_per_block;
  p.total = p.token_embedding + p.position_embedding + p.blocks * p.per_block + p.final_norm + p.head;
  p.without_embeddings = p.total - p.token_embedding - p.position_embedding;
  p.multiplied = p.total - p.position_embedding - (c.tie_embeddings ? 0 : p.token_embedding);
  return p;
}

const attentionFlopsPerToken = (c) => 12 * c.n_layer * c.n_embd * c.block_size;
const flopsPerToken = (c) => 6 * parameters(c).multiplied + attentionFlopsPerToken(c);

// One rank, AdamW, bfloat16 autocast.
function memory(c, sequences) {
  const p = parameters(c);
  const m = {
    weights: 4 * p.total + 2 * p.multiplied,
    gradients: 4 * p.total,
    optimizer: 8 * p.total,
    activations: sequences * c.block_size * activationBytesPerToken(c),
  };
  m.total = m.weights + m.gradients + m.optimizer + m.activations;
  return m;
}

function activationBytesPerToken(c) {
  const C = c.n_embd, F = mlpWidth(c), kv = kvHeads(c) * headSize(c);
  const norm = 4 * C + 2 * C + 8;
  let attention = 2 * (C + 2 * kv) + 2 * C + 4 * c.n_head;
  if (c.position === "rope" || c.qk_norm) attention += 2 * (C + kv);
  const mlp = 2 * (gated(c) ? 4 : 2) * F;
  const loss = 4 * c.vocab_size + 16;
  return c.n_layer * (2 * norm + attention + mlp) + norm + loss;
}

// Bytes of the key/value cache of one full sequence, in bfloat16.
const cacheBytes = (c) => 2 * 2 * c.n_layer * kvHeads(c) * headSize(c) * c.block_size;

// Every tensor of the forward pass in order: [what computes it, weight shape, dimensions, remark].
function forwardPass(c) {
  const width = gated(c) ? "2F" : "F";
  const norm = c.norm === "layernorm" ? "LayerNorm" : "RMSNorm";
  const added = { learned: "wte + wpe", sinusoidal: "wte + sines", rope: "wte", alibi: "wte" }[c.position];
  const seen = {
    learned: "scores of each query and key; sdpa never stores them",
    sinusoidal: "scores of each query and key; sdpa never stores them",
    rope: "after rotating queries and keys by their positions",
    alibi: "minus a slope times the distance, one slope per head",
  }[c.position];
  const block = [
    ["ln_1", "C", "BTC", norm],
    ["attn.c_attn → queries", "C × (C + 2KD)", "BHTD", "one product gives queries, keys and values"],
    ["keys", "", "BKTD", kvHeads(c) < c.n_head ? `each shared by ${c.n_head / kvHeads(c)} query heads` : ""],
    ["values", "", "BKTD", ""],
    ["queries · keys / √D", "", "BHTT", seen],
    ["softmax · values", "", "BHTD", "causal: a query sees itself and earlier tokens"],
    ["attn.c_proj", "C × C", "BTC", "added to the residual stream"],
    ["ln_2", "C", "BTC", norm],
    ["mlp.c_fc", `C × ${width}`, gated(c) ? "BTG" : "BTF", gated(c) ? "gate and value side by side" : ""],
    [c.mlp, "", "BTF", gated(c) ? "gate times value" : "activation"],
    ["mlp.c_proj", "F × C", "BTC", "added to the residual stream"],
  ];
  return {
    before: [["tokens", "", "BT", "ids"], [added, c.position === "learned" ? "V × C, T × C" : "V × C", "BTC", "the residual stream"]],
    block,
    after: [["ln_f", "C", "BTC", norm], ["lm_head", c.tie_embeddings ? "tied to wte" : "C × V", "BTV", "logits of the next token"]],
  };
}

function dimensions(c, batch) {
  return {
    B: batch, T: c.block_size, C: c.n_embd, H: c.n_head, K: kvHeads(c), D: headSize(c), F: mlpWidth(c), G: 2 * mlpWidth(c),
    V: c.vocab_size,
  };
}
