"""Writes docs/model.html, a self-contained page with sliders for the model's shapes, parameters, FLOPs and memory.

    python docs/model_picture/build.py

It joins page.html, style.css, formulas.js and page.js of this directory. formulas.js repeats the formulas of
pipeline/model/accounting.py in JavaScript; tests/model/test_picture.py compares them in a browser.
"""

import json
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT))

from pipeline.files import write_text  # noqa: E402
from pipeline.model.config import GPT2_SIZES, GPTConfig, gpt2_config  # noqa: E402


def presets() -> dict[str, GPTConfig]:
    """The configurations that the page offers by name."""
    released = {name: gpt2_config(name) for name in GPT2_SIZES}
    llama = {"position": "rope", "norm": "rmsnorm", "mlp": "swiglu", "mlp_expansion": 2.667, "bias": False}
    small = {"n_layer": 4, "n_head": 4, "n_embd": 256, "block_size": 128, "vocab_size": 4096, "text_vocab_size": 4096}
    return {
        "params.yaml": released["gpt2"].changed(**small),
        **released,
        "gpt2 with Llama's choices": released["gpt2"].changed(**llama, n_kv_head=4, tie_embeddings=False),
    }


def page() -> str:
    """The whole page."""
    parts = {
        "/* STYLE */": (HERE / "style.css").read_text(encoding="utf-8"),
        "/* FORMULAS */": (HERE / "formulas.js").read_text(encoding="utf-8"),
        "/* PAGE */": (HERE / "page.js").read_text(encoding="utf-8"),
        "/* PRESETS */": json.dumps({name: config.model_dump() for name, config in presets().items()}),
    }
    text = (HERE / "page.html").read_text(encoding="utf-8")
    for placeholder, part in parts.items():
        assert text.count(placeholder) == 1, f"page.html must contain {placeholder} once"
        text = text.replace(placeholder, part)
    return text


if __name__ == "__main__":
    write_text(ROOT / "docs/model.html", page())
