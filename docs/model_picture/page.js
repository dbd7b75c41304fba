// State, controls and drawing. The exact value of every figure is in its data-value attribute, for the tests.

const $ = (id) => document.getElementById(id);
const range = (from, to, step) => Array.from({ length: Math.floor((to - from) / step) + 1 }, (_, i) => from + i * step);
const powers = (from, to) => range(Math.log2(from), Math.log2(to), 1).map((e) => 2 ** e);
const divisors = (n) => range(1, n, 1).filter((d) => n % d === 0);
const nearest = (values, x) => values.reduce((a, b) => (Math.abs(b - x) < Math.abs(a - x) ? b : a));

// Sliders: key, label, allowed values for a state.
const SLIDERS = [
  ["n_layer", "Layers", () => range(1, 64, 1)],
  ["n_embd", "Width", () => range(64, 2048, 64)],
  ["n_head", "Heads", (c) => divisors(c.n_embd).filter((h) => h <= 64 && (c.n_embd / h) % 2 === 0)],
  ["n_kv_head", "Key/value heads", (c) => divisors(c.n_head)],
  ["block_size", "Context", () => powers(32, 8192)],
  ["vocab_size", "Vocabulary", () => [257, 512, 1024, 2048, 4096, 8192, 16384, 32768, 50257, 50304, 65536, 100352, 131072]],
  ["batch", "Batch", () => powers(1, 256)],
];
const CHOICES = {
  position: ["learned", "sinusoidal", "rope", "alibi"],
  norm: ["layernorm", "rmsnorm"],
  mlp: ["gelu_tanh", "gelu", "relu", "relu_squared", "swiglu", "geglu"],
  mlp_expansion: [2, 2.667, 4, 8],
  bias: [true, false],
  tie_embeddings: [true, false],
};

let state = { ...PRESETS["gpt2"], batch: 8, n_kv_head: PRESETS["gpt2"].n_head };

// Makes the state valid: heads divide the width, key/value heads divide the heads.
function settle() {
  const grouped = state.n_kv_head < state.n_head;
  for (const [key, , values] of SLIDERS) {
    if (key === "n_kv_head" && !grouped) state.n_kv_head = state.n_head;
    state[key] = nearest(values(state), state[key]);
  }
}

function buildControls() {
  for (const [key, label] of SLIDERS) {
    $("controls").insertAdjacentHTML("beforeend", `<label class="slider"><span>${label}<b id="${key}-value"></b></span>
      <input type="range" id="${key}" min="0" step="1"></label>`);
    $(key).addEventListener("input", (event) => {
      const values = SLIDERS.find(([name]) => name === key)[2](state);
      const ungrouped = state.n_kv_head === state.n_head;
      state[key] = values[event.target.value];
      if (key === "n_head" && ungrouped) state.n_kv_head = state.n_head;
      draw();
    });
  }
  for (const [key, values] of Object.entries(CHOICES)) {
    const options = values.map((v, i) => `<option value="${i}">${v}</option>`).join("");
    $("choices").insertAdjacentHTML("beforeend", `<label><code>${key}</code><select id="${key}">${options}</select></label>`);
    $(key).addEventListener("input", (event) => { state[key] = values[event.target.value]; draw(); });
  }
  for (const name of Object.keys(PRESETS)) {
    $("presets").insertAdjacentHTML("beforeend", `<button type="button">${name}</button>`);
    $("presets").lastChild.addEventListener("click", () => {
      state = { ...PRESETS[name], batch: state.batch, n_kv_head: PRESETS[name].n_kv_head ?? PRESETS[name].n_head };
      draw();
    });
  }
}

function drawControls() {
  for (const [key, , values] of SLIDERS) {
    const allowed = values(state);
    $(key).max = allowed.length - 1;
    $(key).value = allowed.indexOf(state[key]);
    $(`${key}-value`).textContent = state[key].toLocaleString("en");
  }
  for (const [key, values] of Object.entries(CHOICES)) $(key).value = values.indexOf(state[key]);
  for (const button of $("presets").children) {
    const preset = PRESETS[button.textContent];
    const same = Object.keys(CHOICES).concat("n_layer", "n_embd", "n_head", "block_size", "vocab_size");
    const pressed = same.every((key) => preset[key] === state[key]) && kvHeads(preset) === state.n_kv_head;
    button.setAttribute("aria-pressed", String(pressed));
  }
}

const count = (n) => n.toLocaleString("en");
const short = (n) => (n < 1e4 ? count(n) : Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 4 }).format(n));
const power = (n) => { const e = Math.floor(Math.log10(n)); return `${(n / 10 ** e).toFixed(2)} × 10${String(e).replace(/\d/g, (d) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[d])}`; };
const bytes = (n) => {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"], e = Math.min(Math.floor(Math.log2(Math.max(n, 1)) / 10), 4);
  return `${(n / 1024 ** e).toLocaleString("en", { maximumSignificantDigits: 3 })} ${units[e]}`;
};

function figure(name, value, text) {
  for (const element of document.querySelectorAll(`[data-figure="${name}"]`)) {
    element.dataset.value = value;
    element.textContent = text(value);
  }
}

// A stacked bar and its table. Rows: [label, colour, figure name, value].
function drawShares(id, rows, text, total) {
  const sum = rows.reduce((all, row) => all + row[3], 0);
  $(`${id}-stack`).innerHTML = rows.map(([label, colour, , value]) =>
    `<i style="flex: ${value / sum} 0 0; background: var(${colour})" title="${label}: ${text(value)}"></i>`).join("");
  $(`${id}-table`).innerHTML = rows.map(([label, colour, name, value]) => `<tr><td><span class="dot"
    style="background: var(${colour})"></span>${label}</td><td data-figure="${name}" data-value="${value}">${text(value)}</td>
    <td>${(100 * value / sum).toFixed(1)} %</td></tr>`).join("") + total;
}

const letter = (l) => `<span class="${l}">${l === "G" ? "2F" : l}</span>`;

function stepRow([what, weights, letters, remark], size, largest) {
  const numbers = [...letters].map((l) => count(size[l])), elements = [...letters].reduce((n, l) => n * size[l], 1);
  const virtual = letters === "BHTT";
  const occupied = elements * (letters === "BT" ? 8 : 2);
  const width = Math.max(1, 100 * Math.sqrt(occupied / largest)); // square root, so that small ones stay visible
  return `<div class="step ${virtual ? "virtual" : ""}"><div class="what">${what}<span class="weights mono">${weights}</span></div>
    <div class="shape mono"><span class="letters">(${[...letters].map(letter).join(", ")})</span><span class="numbers"
    data-figure="shape ${what}" data-value="${numbers.join("×").replaceAll(",", "")}">${numbers.join(" × ")}</span>
    <span class="remark">${remark}</span></div>
    <div class="size">${bytes(occupied)}<div class="bar" style="width: ${width}%"></div></div></div>`;
}

function drawFlow() {
  const pass = forwardPass(state), size = dimensions(state, state.batch);
  const largest = 2 * state.batch * state.block_size * Math.max(state.vocab_size, state.n_head * state.block_size);
  const rows = (steps) => steps.map((step) => stepRow(step, size, largest)).join("");
  $("flow").innerHTML = `${rows(pass.before)}<div class="block" data-times="× ${state.n_layer}">${rows(pass.block)}</div>${rows(pass.after)}`;
  const meaning = { B: "batch", T: "tokens", C: "width", H: "heads", K: "key/value heads", D: "head size", F: "MLP width", V: "vocabulary" };
  $("letters").innerHTML = Object.entries(meaning).map(([l, name]) => `<span>${letter(l)} ${name} ${count(size[l])}</span>`).join("");
}

function drawMask(hovered = -1) {
  const canvas = $("mask"), context = canvas.getContext("2d"), T = state.block_size, n = Math.min(T, 32), cell = canvas.width / n;
  const style = getComputedStyle(document.documentElement), colour = (name) => style.getPropertyValue(name);
  const slope = 2 ** (-8 / 2 ** Math.floor(Math.log2(state.n_head)));
  context.clearRect(0, 0, canvas.width, canvas.height);
  for (let query = 0; query < n; query++) {
    for (let key = 0; key < n; key++) {
      const weight = state.position === "alibi" ? Math.max(0.08, Math.exp(-slope * (query - key))) : 0.85;
      context.globalAlpha = key > query ? 1 : query === hovered ? 1 : hovered < 0 ? weight : 0.35 * weight;
      context.fillStyle = key > query ? colour("--line") : query === hovered ? colour("--c3") : colour("--c1");
      context.fillRect(key * cell + 1, query * cell + 1, cell - 2, cell - 2);
    }
  }
  const seen = (T * (T + 1)) / 2;
  $("mask-caption").innerHTML = `Rows are queries, columns are keys; ${n < T ? `the first ${n} of ${count(T)} positions are drawn` : "all are drawn"}.
    Of ${count(T * T)} pairs, <b data-figure="visible_pairs" data-value="${seen}">${count(seen)}</b> are visible
    (${(100 * seen / (T * T)).toFixed(2)} %), in each of ${state.n_layer} layers and ${state.n_head} heads.
    ${state.position === "alibi" ? "ALiBi: fainter means a larger distance penalty (first head)." : ""}`;
  $("mask-row").textContent = hovered < 0 ? "Point at a row." : `Token ${hovered} sees ${hovered + 1} token${hovered ? "s" : ""}: 0 to ${hovered}.`;
}

function draw() {
  settle();
  drawControls();
  const p = parameters(state), flops = flopsPerToken(state), attention = attentionFlopsPerToken(state), m = memory(state, state.batch);
  figure("parameters.total", p.total, count);
  figure("parameters.without_embeddings", p.without_embeddings, count);
  figure("flops_per_token", flops, power);
  figure("memory.total", m.total, bytes);
  const L = p.blocks;
  drawShares("parameter", [
    ["token embedding", "--c1", "parameters.token_embedding", p.token_embedding],
    ["position embedding", "--c7", "parameters.position_embedding", p.position_embedding],
    [`attention, ${L} × ${short(p.attention_per_block)}`, "--c2", "parameters.attention", L * p.attention_per_block],
    [`MLP, ${L} × ${short(p.mlp_per_block)}`, "--c4", "parameters.mlp", L * p.mlp_per_block],
    ["norms", "--c5", "parameters.norms", L * p.norms_per_block + p.final_norm],
    ["head" + (state.tie_embeddings ? " (the token embedding)" : ""), "--c6", "parameters.head", p.head],
  ], count, `<tr class="sum"><td>total</td><td>${count(p.total)}</td><td></td></tr>
    <tr><td class="note">one block</td><td data-figure="parameters.per_block" data-value="${p.per_block}">${count(p.per_block)}</td>
    <td>${(100 * p.per_block / p.total).toFixed(1)} %</td></tr>
    <tr><td class="note">in matrix products (N)</td><td data-figure="parameters.multiplied" data-value="${p.multiplied}">
    ${count(p.multiplied)}</td><td>${(100 * p.multiplied / p.total).toFixed(1)} %</td></tr>`);
  drawShares("flops", [
    ["matrices, 6N", "--c4", "flops.matrices", flops - attention],
    ["attention scores", "--c2", "flops.attention", attention],
  ], power, `<tr class="sum"><td>a step of ${state.batch} × ${count(state.block_size)} tokens</td>
    <td data-figure="flops.step" data-value="${flops * state.batch * state.block_size}">${power(flops * state.batch * state.block_size)}</td><td></td></tr>`);
  drawShares("memory", [
    ["weights", "--c1", "memory.weights", m.weights],
    ["gradients", "--c7", "memory.gradients", m.gradients],
    ["AdamW moments", "--c6", "memory.optimizer", m.optimizer],
    ["activations", "--c4", "memory.activations", m.activations],
  ], bytes, `<tr class="sum"><td>key/value cache, one sequence</td><td data-figure="cache_bytes"
    data-value="${cacheBytes(state)}">${bytes(cacheBytes(state))}</td><td></td></tr>`);
  drawFlow();
  drawMask();
}

buildControls();
draw();
$("mask").addEventListener("pointermove", (event) => {
  const n = Math.min(state.block_size, 32);
  drawMask(Math.min(n - 1, Math.max(0, Math.floor((n * event.offsetY) / $("mask").clientHeight))));
});
$("mask").addEventListener("pointerleave", () => drawMask());
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => draw());
