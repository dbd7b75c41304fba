"""docs/model.html shows the figures of pipeline/model/accounting.py for every position of its sliders."""

import json
import re
import runpy
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pipeline.model import accounting
from pipeline.model.config import gpt2_config

ROOT = Path(__file__).parents[2]
BUILD = runpy.run_path(str(ROOT / "docs/model_picture/build.py"))
CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)

# Slider or choice -> index of the value that it is moved to; one after the other, starting at GPT-2.
MOVES: list[dict[str, int]] = [
    {},
    {"n_layer": 5},  # 6 layers
    {"n_embd": 4, "block_size": 2, "vocab_size": 4, "batch": 5},  # width 320; heads must follow
    {"position": 2, "norm": 1, "mlp": 4, "mlp_expansion": 1, "bias": 1, "tie_embeddings": 1},
    {"n_kv_head": 1},
    {"position": 3, "n_embd": 15, "mlp": 0, "mlp_expansion": 2, "tie_embeddings": 0},
]

SCRIPT = """
const states = [];
const total = () => document.querySelector('[data-figure="parameters.total"]');
for (const moves of MOVES) {
  for (const [id, value] of Object.entries(moves)) {
    const input = document.getElementById(id);
    input.value = value;
    input.dispatchEvent(new Event("input", { bubbles: true }));
  }
  const figures = {};
  for (const e of document.querySelectorAll("[data-figure]")) figures[e.dataset.figure] = e.dataset.value;
  states.push({ config: { ...state }, figures, shown: total().textContent });
}
for (const name of Object.keys(PRESETS)) {
  [...document.querySelectorAll("#presets button")].find((button) => button.textContent === name).click();
  states.push({ config: { ...state }, figures: { "parameters.total": total().dataset.value } });
}
document.body.innerHTML = "<pre id=result></pre>";
document.getElementById("result").textContent = JSON.stringify(states);
"""


@pytest.fixture(scope="module")
def states(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The page's state after each of MOVES, and then after each preset's button."""
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    folder = tmp_path_factory.mktemp("picture")
    script = SCRIPT.replace("MOVES", json.dumps(MOVES))
    moved = BUILD["page"]().replace("</body>", f"<script>{script}</script></body>")
    (folder / "page.html").write_text(moved, encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}", "--dump-dom"]
    command = [CHROMIUM, *flags, f"file://{folder / 'page.html'}"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    result_text = re.search(r'<pre id="result">(.*?)</pre>', result.stdout, re.DOTALL)
    assert result_text, f"the page did not run: {result.stdout[-500:]} {result.stderr[-500:]}"
    text = result_text[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    values: list[dict[str, Any]] = json.loads(text)
    return values


def expected(values: dict[str, Any]) -> dict[str, int]:
    """The figures of the accounting for a state of the page."""
    batch = values.pop("batch")
    config = gpt2_config("gpt2").changed(**{**values, "text_vocab_size": values["vocab_size"]})
    counts, need = accounting.parameters(config), accounting.memory(config, batch, True, "adamw")
    flops = accounting.flops_per_token(config)
    scores = 12 * config.n_layer * config.n_embd * config.block_size
    return {
        "parameters.total": counts.total,
        "parameters.without_embeddings": counts.without_embeddings,
        "parameters.per_block": counts.per_block,
        "parameters.multiplied": counts.multiplied,
        "parameters.token_embedding": counts.token_embedding,
        "parameters.position_embedding": counts.position_embedding,
        "parameters.attention": counts.blocks * counts.attention_per_block,
        "parameters.mlp": counts.blocks * counts.mlp_per_block,
        "parameters.norms": counts.blocks * counts.norms_per_block + counts.outer_norms,
        "parameters.head": counts.head,
        "flops_per_token": flops,
        "flops.matrices": flops - scores,
        "flops.attention": scores,
        "flops.step": flops * batch * config.block_size,
        "memory.weights": need.weights,
        "memory.gradients": need.gradients,
        "memory.optimizer": need.optimizer,
        "memory.activations": need.activations,
        "memory.total": need.total,
        "cache_bytes": 4 * config.n_layer * config.kv_heads * config.head_size * config.block_size,
        "visible_pairs": config.block_size * (config.block_size + 1) // 2,
    }


def test_figures_equal_the_accounting(states: list[dict[str, Any]]) -> None:
    totals = []
    for state in states[: len(MOVES)]:
        figures = {name: int(value) for name, value in state["figures"].items() if not name.startswith("shape ")}
        assert figures == expected(state["config"])
        assert state["shown"] == f"{figures['parameters.total']:,}"
        totals.append(figures["parameters.total"])
    assert len(set(totals)) == len(MOVES)


def test_shapes_of_the_forward_pass(states: list[dict[str, Any]]) -> None:
    assert states[0]["figures"]["shape mlp.c_fc"] == "8×1024×3072"
    shapes = states[3]["figures"]  # swiglu of width 320 x 2.667, context 128, batch 32
    config = states[3]["config"]
    assert (config["n_embd"], config["block_size"]) == (320, 128)
    assert config["n_embd"] % config["n_head"] == 0
    assert shapes["shape tokens"] == "32×128"
    assert shapes["shape attn.c_attn → queries"] == f"32×{config['n_head']}×128×{320 // config['n_head']}"
    assert shapes["shape mlp.c_fc"] == "32×128×1712"
    assert shapes["shape swiglu"] == "32×128×856"
    assert shapes["shape lm_head"] == "32×128×4096"
    assert states[4]["figures"]["shape keys"].split("×")[1] == str(states[4]["config"]["n_kv_head"])


def test_presets(states: list[dict[str, Any]]) -> None:
    totals = [int(state["figures"]["parameters.total"]) for state in states[len(MOVES) :]]
    assert totals == [accounting.parameters(config).total for config in BUILD["presets"]().values()]


def test_the_committed_page_is_up_to_date() -> None:
    written = (ROOT / "docs" / "model.html").read_text(encoding="utf-8")
    assert written == BUILD["page"](), "run: python docs/model_picture/build.py"


def test_the_page_is_self_contained() -> None:
    assert not re.findall(r'(?:src|href)="|url\(|@import|https?://', BUILD["page"]())
