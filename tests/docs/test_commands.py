"""Commands and links in README and docs work."""

import re
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.docs.commands import ROOT, Command, all_commands, check, commands_in
from tests.pipeline_runs.project import Project, stages_run


def test_lines_of_shell_blocks_are_commands() -> None:
    page = "Do\n```sh\nls -l   # all\n\n# only a remark\necho a \\\n  b\n```\n```python\nx = 1\n```\n"
    assert list(commands_in("x.md", page)) == [Command("x.md", 3, "ls -l"), Command("x.md", 7, "echo a b")]
    assert len(all_commands()) > 80


def test_every_command_is_one_that_its_program_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    wrong = []
    for command in {command.text: command for command in all_commands()}.values():
        try:
            check(command.text, tmp_path)
        except (Exception, SystemExit) as error:  # each program raises its own
            wrong.append(f"{command}: {error!r}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "command",
    [
        "dvc exp rn -S model.n_layer=2",
        "dvc exp run -S model.n_layers=2",
        "dvc exp run -S model.n_layer=two",
        "dvc exp run -S model.n_layer=2,3",
        "dvc exp run --queue -S 'model.n_embd=256,250'",
        "dvc exp run $(python -m pipeline recipe gpt2-124m) -S model.block_size=1000",
        "NPROC=2 dvc repro",
        "python -m pipeline sweep model.n_embd=256,250",
        "python -m pipeline plan --rank x",
        "python -m pipeline plan --recipe gpt3",
        "python -m pipeline plans",
        "make train",
        "sudo reboot",
    ],
)
def test_a_command_that_could_not_work_is_refused(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises((Exception, SystemExit)):  # each program's own
        check(command, tmp_path)


class Step(NamedTuple):
    """A command of the README's story, in the author's clone or in a colleague's."""

    command: str
    prints: str = ""
    instead: str = ""
    """What is run in its place, where as documented it would take minutes."""
    colleague: bool = False
    runs: list[str] | None = None
    """The stages that DVC must run."""


# README.md in the order of a first day: run, change, compare, sweep, share, scale.
STORY = [
    Step("dvc repro", runs=[]),
    Step('python -m pipeline generate "O Romeo, Romeo"', "O Romeo, Romeo"),
    Step("python -m pipeline export data/model exported", "from_pretrained"),
    Step("dvc exp run --name bold -S sample.temperature=0.5", runs=["sample", "report"]),
    Step("dvc exp apply HEAD"),
    Step(
        "dvc exp run --name deep -S model.n_layer=6",
        instead="dvc exp run --name deep -S model.n_layer=1",
        runs=["train", "evaluate", "sample", "report"],
    ),
    Step("dvc exp apply HEAD"),
    Step("python -m pipeline compare", "reports/compare.md"),
    Step("python -m pipeline sweep model.position=learned,rope,alibi train.seed=1,2,3 --dry-run", "9 to run"),
    Step("dvc remote add -d store s3://bucket/gpt", "store"),
    Step('git commit -m "Keep data in the store" .dvc/config', "1 file changed"),
    Step("git push -u origin main"),
    Step("dvc push", "files pushed"),
    Step("dvc exp run --name deeper -S model.n_layer=8", instead="dvc exp run --name deeper -S model.n_layer=1"),
    Step("dvc exp push origin deeper", "uploaded"),
    Step("dvc repro --pull", colleague=True, runs=[]),
    Step("dvc exp list origin", "deeper", colleague=True),
    Step("dvc exp pull origin deeper", "Pulled experiment", colleague=True),
    Step("dvc exp apply deeper", colleague=True),
    Step("dvc repro", colleague=True, runs=[]),
    Step("python -m pipeline recipe gpt2-124m --apply"),
    Step("python -m pipeline plan --recipe gpt2-124m --ranks 8", "8 x H100"),
]


@pytest.mark.slow
def test_the_documented_commands_do_what_the_pages_say(finished: Project, tmp_path: Path) -> None:
    author, colleague = finished.copy(tmp_path / "author"), Project(tmp_path / "colleague")
    author.git("init", "-q", "--bare", "-b", "main", str(tmp_path / "origin.git"))
    author.git("remote", "add", "origin", str(tmp_path / "origin.git"))
    for step in STORY:
        if step.colleague and not colleague.path.exists():
            author.git("clone", "-q", str(tmp_path / "origin.git"), str(colleague.path))
        project = colleague if step.colleague else author
        command = (step.instead or step.command).replace("s3://bucket/gpt", str(tmp_path / "store"))
        output = project.run("bash", "-c", command)
        assert step.prints in output, f"{command} printed\n{output}"
        if step.runs is not None:
            assert stages_run(output) == step.runs


def test_the_story_is_documented() -> None:
    documented = {command.text for command in all_commands()}
    assert {step.command for step in STORY} <= documented


def test_links_lead_to_files_and_headings() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "--", "*.md"], cwd=ROOT, capture_output=True, text=True
    ).stdout.splitlines()
    pages = [ROOT / name for name in listed if (ROOT / name).is_file() and not name.startswith("reports/")]
    assert len(pages) > 10
    broken = []
    for page in pages:
        for target in re.findall(r"\]\(([^)\s]+)\)|(?:src|srcset)=\"([^\"]+)\"", page.read_text(encoding="utf-8")):
            address, _, anchor = next(filter(None, target)).partition("#")
            file = page.parent / address if address else page
            if "://" in address:
                continue
            if not file.exists() or (anchor and anchor not in anchors(file.read_text(encoding="utf-8"))):
                broken.append(f"{page.name}: {address}#{anchor}")
    assert not broken


def anchors(markdown: str) -> set[str]:
    """The names that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", markdown, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
