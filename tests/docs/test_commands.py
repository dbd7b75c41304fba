"""Every command that README and docs tell people to type is one that works."""

import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from tests.docs.checks import LONG, NOT_RUN, STEPS, Step, is_long
from tests.docs.commands import ROOT, Command, all_commands, commands_in
from tests.docs.validation import check
from tests.pipeline_runs.project import Project

DOCUMENTED = {command.text for command in all_commands()}


def test_lines_of_shell_blocks_are_commands() -> None:
    page = "Do\n```sh\nls -l   # all\n\n# only a remark\necho a \\\n  b\n```\n```python\nx = 1\n```\n"
    assert commands_in("x.md", page) == [Command("x.md", 3, "ls -l"), Command("x.md", 7, "echo a b")]
    assert len(all_commands()) > 100


@pytest.mark.parametrize("command", all_commands(), ids=str)
def test_every_command_has_a_check_and_is_one_that_its_program_takes(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = any(step.command == command.text for step in STEPS)
    assert step or is_long(command.text) or command.text in NOT_RUN, (
        f"{command}: say in tests/docs/checks.py how it is checked"
    )
    monkeypatch.chdir(ROOT)
    check(command.text, tmp_path)


def test_no_check_is_of_a_command_that_is_gone() -> None:
    assert {step.command for step in STEPS} - {""} <= DOCUMENTED
    assert {*NOT_RUN, *LONG} <= DOCUMENTED


@pytest.mark.parametrize(
    "command",
    [
        "dvc exp rn -S model.n_layer=2",
        "dvc exp run --que -Z",
        "dvc exp run -S model.n_layers=2",
        "dvc exp run -S model.n_layer=two",
        "dvc exp run -S model.n_layer=2,3",
        "dvc exp run --queue -S 'model.n_embd=256,250'",
        "dvc exp run $(python -m pipeline.recipe gpt2-124m) -S model.block_size=1000",
        "NPROC=2 dvc repro",
        "python -m pipeline.sweep model.n_embd=256,250",
        "python -m pipeline.sweep model.n_embd=256 --job 2x",
        "python -m pipeline.plan --rank x",
        "python -m pipeline.plan --recipe gpt3",
        "python -m pipeline.plans",
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


@pytest.mark.slow
def test_the_commands_do_what_the_pages_say(finished: Project, tmp_path: Path) -> None:
    """Plays STEPS: an author who runs, changes, compares, sweeps and shares, and a colleague."""
    author, colleague = finished.copy(tmp_path / "author"), Project(tmp_path / "colleague")
    author.git("init", "-q", "--bare", "-b", "main", str(tmp_path / "origin.git"))
    author.git("remote", "add", "origin", str(tmp_path / "origin.git"))
    try:
        for step in STEPS:
            if step.colleague and not colleague.path.exists():
                author.git("clone", "-q", str(tmp_path / "origin.git"), str(colleague.path))
            play(step, colleague if step.colleague else author, tmp_path)
    finally:
        author.dvc("queue", "stop", "--kill")


def play(step: Step, project: Project, folder: Path) -> None:
    """Runs a step's command in a project and looks for what it must say."""
    command = (step.instead or step.command).replace("s3://bucket/gpt", str(folder / "store"))
    said = folder / "said.txt"  # a file: `dvc queue start` leaves a worker behind that would hold a pipe open
    deadline = time.monotonic() + 300
    while True:
        shown = "true" if step.patiently else f"! cat {said}"
        project.run("bash", "-c", f"( {command} ) > {said} 2>&1 || {shown}")
        output = said.read_text(encoding="utf-8")
        if step.says in output or not step.patiently or time.monotonic() > deadline:
            break
        time.sleep(0.5)
    assert step.says in output, f"{command} says\n{output}"


def test_links_lead_to_files_and_headings() -> None:
    pages = [ROOT / name for name in tracked("*.md") if not name.startswith("reports/")]
    for page in pages:
        for target in re.findall(r"\]\(([^)\s]+)\)|(?:src|srcset)=\"([^\"]+)\"", page.read_text(encoding="utf-8")):
            address, _, anchor = next(filter(None, target)).partition("#")
            if "://" in address:
                continue
            file = page.parent / address if address else page
            assert file.exists(), f"{page.name}: {address}"
            if anchor:
                assert anchor in anchors(file.read_text(encoding="utf-8")), f"{page.name}: #{anchor}"


def anchors(markdown: str) -> set[str]:
    """The names that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", markdown, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def tracked(pattern: str) -> list[str]:
    """Files that Git knows, or would."""
    assert shutil.which("git")
    command = ["git", "ls-files", "-co", "--exclude-standard", "--", pattern]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
