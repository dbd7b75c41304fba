"""Writes the picture of the model, one self-contained page: python -m pipeline.model_picture [docs/model.html]

Reads page.html, style.css, formulas.js and page.js beside this file. No stage imports any of it. The formulas are those
of `pipeline/model/accounting.py`; a test moves the page's sliders in a browser and compares.
"""

import json
import sys
from pathlib import Path

from pipeline.files import write_text
from pipeline.model.config import GPT2_SIZES, GPTConfig, gpt2_config

HERE = Path(__file__).parent


def presets() -> dict[str, GPTConfig]:
    """The configurations that the page offers by name."""
    released = {name: gpt2_config(name) for name in GPT2_SIZES}
    llama = {"position": "rope", "norm": "rmsnorm", "mlp": "swiglu", "mlp_expansion": 2.667, "bias": False}
    tiny = {"n_layer": 4, "n_head": 4, "n_embd": 256, "block_size": 128, "vocab_size": 4096, "text_vocab_size": 4096}
    return {
        "tiny": released["gpt2"].changed(**tiny),
        **released,
        "gpt2, Llama's way": released["gpt2"].changed(**llama, n_kv_head=4, tie_head=False),
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
    for mark, part in parts.items():
        assert text.count(mark) == 1, f"page.html must hold {mark} once"
        text = text.replace(mark, part)
    return text


def main() -> None:
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else Path("docs/model.html")
    write_text(path, page())
    print(path)


if __name__ == "__main__":
    main()
