"""Draws docs/pictures/architecture.svg and architecture-dark.svg: python docs/pictures/architecture.py

What each stage reads and writes comes from dvc.yaml; the floors are those of tests/dag/test_imports.py.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from ruamel.yaml import YAML

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
WIDTH, HEIGHT = 900, 684
LEFT, COLUMN, BOX = 20, 145, 135  # pixels: the first stage, from one stage to the next, a stage's width
TOP, LANES, LANE = 46, 132, 26  # the stages, the first line of data, from one line to the next
FLOORS, FLOOR = 406, 48  # the first floor, from one floor to the next

LIGHT = {"ground": "#ffffff", "text": "#1f2328", "muted": "#59636e", "line": "#d1d9e0", "box": "#f6f8fa"}
DARK = {"ground": "#0d1117", "text": "#f0f6fc", "muted": "#9198a1", "line": "#3d444d", "box": "#151b23"}
LIGHT |= {"data": "#0969da", "reports": "#8250df", "torch": "#fff1e5", "torch-line": "#e0a06a"}
DARK |= {"data": "#4493f8", "reports": "#ab7df8", "torch": "#2b2118", "torch-line": "#8a5a2b"}

# Floor by floor: what stands on it, and whether it computes with torch.
HOUSE = [
    [("evaluation", "loss, HellaSwag", True), ("generation", "text from a model", True),
     ("tracking", "curves, W&B", False), ("reporting", "report, comparison", False)],
    [("training", "trainer, step, loader, order, optim, schedule, checkpoint, parallel", True)],
    [("model", "gpt, attention, mlp, positions, norms, cache, files, huggingface, accounting", True)],
    [("corpus", "sources, tokenization, encodings, shards, hellaswag_items", False)],
    [("the ground", "config, files, log, machine, progress, runs, runtime, distributed", False)],
]  # fmt: skip
COMMANDS = {
    "plan": "what it will cost",
    "recipe": "named sets of params",
    "sweep": "many experiments",
    "reporting.compare": "side by side",
    "generation": "text as it comes",
    "export_model": "to Hugging Face",
    "import_model": "and from it",
}


def artefact(path: str) -> str | None:
    """The line that a dep or out of dvc.yaml belongs to; None for source files."""
    folder, _, rest = path.partition("/")
    if folder == "data":
        return path
    if folder != "reports":
        return None
    inner, slash, _ = rest.partition("/")
    return f"reports/{inner}" if slash or inner == "sample" else "reports/report.md, .html, figures"


def flows() -> tuple[list[str], dict[str, tuple[int, list[int]]]]:
    """The stages in order; and by artefact the stage that writes it and those that read it, by number."""
    stages: dict[str, Any] = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]
    found: dict[str, tuple[int, list[int]]] = {}
    for number, stage in enumerate(stages.values()):
        written = [*stage.get("outs", []), *stage.get("metrics", []), *stage.get("plots", [])]
        for out in written:
            if name := artefact(out if isinstance(out, str) else next(iter(out))):
                found.setdefault(name, (number, []))
        for name in dict.fromkeys(map(artefact, stage["deps"])):
            if name:
                found[name][1].append(number)
    return list(stages), dict(sorted(found.items(), key=lambda flow: (not flow[0].startswith("data"), flow[1][0])))


def text(x: float, y: float, words: str, fill: str, size: float = 13, weight: int = 400, anchor: str = "start") -> str:
    return (
        f'<text x="{x:g}" y="{y:g}" fill="{fill}" font-size="{size:g}" font-weight="{weight}" '
        f'text-anchor="{anchor}">{escape(words)}</text>'
    )


def box(x: float, y: float, width: float, height: float, fill: str, line: str) -> str:
    rounding = min(6, height / 4)
    return f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="{rounding:g}" fill="{fill}" stroke="{line}"/>'


def line(x1: float, y1: float, x2: float, y2: float, stroke: str, more: str = "") -> str:
    return f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="{stroke}" {more}/>'


def draw_stages(stages: list[str], colour: dict[str, str]) -> Iterator[str]:
    """The six boxes, an arrow from each to the next, and a thread down from each through the lines of data."""
    yaml = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]
    yield text(LEFT, 28, "stages/", colour["text"], weight=600)
    yield text(LEFT + 56, 28, "six modules that only wire; DVC runs those whose inputs have changed", colour["muted"])
    for number, name in enumerate(stages):
        x = LEFT + number * COLUMN
        middle = x + BOX / 2
        yield line(middle, TOP + 52, middle, LANES + 7 * LANE, colour["line"], 'stroke-dasharray="2 4"')
        yield box(x, TOP, BOX, 52, colour["box"], colour["line"])
        yield text(middle, TOP + 22, name, colour["text"], 15, 600, "middle")
        yield text(middle, TOP + 41, ", ".join(yaml[name]["params"]), colour["muted"], 12.5, anchor="middle")
        if number:
            yield f'<path d="M{x - 8} {TOP + 21} l7 5 l-7 5 z" fill="{colour["muted"]}"/>'


def draw_flows(artefacts: dict[str, tuple[int, list[int]]], colour: dict[str, str]) -> Iterator[str]:
    """A line for each artefact, from the stage that writes it (full dot) to the last that reads it (rings)."""
    for row, (name, (writer, readers)) in enumerate(artefacts.items()):
        y = LANES + row * LANE
        stroke = colour[name.partition("/")[0]]
        start, end = (LEFT + number * COLUMN + BOX / 2 for number in (writer, max(readers, default=writer)))
        yield line(start, y, end, y, stroke, 'stroke-width="2"')
        yield f'<circle cx="{start}" cy="{y}" r="5" fill="{stroke}"/>'
        for reader in readers:
            x = LEFT + reader * COLUMN + BOX / 2
            yield f'<circle cx="{x}" cy="{y}" r="5" fill="{colour["ground"]}" stroke="{stroke}" stroke-width="2"/>'
        if readers:
            yield text(start + 11, y - 6, name, stroke)
        else:
            yield text(start - 11, y + 4.5, name, stroke, anchor="end")
    y = LANES + len(artefacts) * LANE + 16
    yield f'<circle cx="{LEFT + 8}" cy="{y - 4}" r="5" fill="{colour["muted"]}"/>'
    yield text(LEFT + 20, y, "writes", colour["muted"])
    ring = f'r="5" fill="{colour["ground"]}" stroke="{colour["muted"]}" stroke-width="2"'
    yield f'<circle cx="{LEFT + 82}" cy="{y - 4}" {ring}/>'
    yield text(LEFT + 94, y, "reads", colour["muted"])
    yield text(LEFT + 160, y, "data/ is DVC's: large, cached", colour["data"])
    yield text(LEFT + 365, y, "reports/ is Git's: small, to be read", colour["reports"])


def draw_house(colour: dict[str, str]) -> Iterator[str]:
    """The floors of pipeline/, and beside them the commands off the line."""
    width, gap = 570, 10
    yield text(LEFT, FLOORS - 14, "pipeline/", colour["text"], weight=600)
    yield text(LEFT + 68, FLOORS - 14, "the library: imports go down only", colour["muted"])
    for floor, rooms in enumerate(HOUSE):
        y = FLOORS + floor * FLOOR
        room = (width - gap * (len(rooms) - 1)) / len(rooms)
        for place, (name, holds, torch) in enumerate(rooms):
            x = LEFT + place * (room + gap)
            fill, stroke = (colour["torch"], colour["torch-line"]) if torch else (colour["box"], colour["line"])
            yield box(x, y, room, FLOOR - 8, fill, stroke)
            if len(rooms) == 1:
                yield text(x + 12, y + 25, name, colour["text"], 14, 600)
                yield text(x + 96, y + 25, holds, colour["muted"], 12.5)
            else:
                yield text(x + room / 2, y + 17, name, colour["text"], 14, 600, "middle")
                yield text(x + room / 2, y + 33, holds, colour["muted"], 12.5, anchor="middle")
    y = FLOORS + len(HOUSE) * FLOOR + 14
    yield box(LEFT, y - 11, 14, 14, colour["torch"], colour["torch-line"])
    yield text(LEFT + 22, y, "computes with torch", colour["muted"])
    yield box(LEFT + 168, y - 11, 14, 14, colour["box"], colour["line"])
    yield text(LEFT + 190, y, "does not", colour["muted"])
    x = LEFT + width + 20
    height = len(HOUSE) * FLOOR - 8
    yield text(x, FLOORS - 14, "python -m pipeline.", colour["text"], weight=600)
    yield text(x + 132, FLOORS - 14, "off the line, by hand", colour["muted"])
    yield box(x, FLOORS, WIDTH - LEFT - x, height, colour["ground"], colour["line"])
    for number, (name, does) in enumerate(COMMANDS.items()):
        at = FLOORS + 4 + (number + 0.5) * height / len(COMMANDS)
        yield text(x + 12, at, name, colour["text"], weight=600)
        yield text(WIDTH - LEFT - 12, at, does, colour["muted"], 12.5, anchor="end")


def picture(colour: dict[str, str]) -> str:
    """The whole picture as an SVG document."""
    stages, artefacts = flows()
    parts = [*draw_stages(stages, colour), *draw_flows(artefacts, colour), *draw_house(colour)]
    title = "Six stages, what they write and read, and the floors of the library beneath them"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
            f'font-family="-apple-system, Segoe UI, Noto Sans, Helvetica, Arial, sans-serif" role="img">',
            f"<title>{title}</title>",
            f'<rect width="{WIDTH}" height="{HEIGHT}" fill="{colour["ground"]}"/>',
            *parts,
            "</svg>\n",
        ]
    )


if __name__ == "__main__":
    for name, colour in (("architecture.svg", LIGHT), ("architecture-dark.svg", DARK)):
        (HERE / name).write_text(picture(colour), encoding="utf-8")
