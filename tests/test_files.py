"""Directories are replaced as a whole and only if this pipeline wrote them; locks; the directory of unfinished work."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pipeline.files import (
    atomic_directory,
    atomic_path,
    check_replaceable,
    exclusive_lock,
    main_root,
    parsing,
    remove_directory,
    set_aside,
    shared_lock,
)
from pipeline.log import UserError


def write(path: Path, text: str) -> None:
    with atomic_directory(path, ("*.txt",)) as temporary:
        (temporary / "a.txt").write_text(text)


def test_a_directory_is_replaced_as_a_whole(tmp_path: Path) -> None:
    write(tmp_path / "out", "old")
    (tmp_path / "out/b.txt").write_text("stale")
    write(tmp_path / "out", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert {path.name: path.read_text() for path in (tmp_path / "out").iterdir()} == {"a.txt": "new"}


def test_a_directory_with_a_foreign_file_is_never_removed(tmp_path: Path) -> None:
    thesis = tmp_path / "out/thesis.tex"
    thesis.parent.mkdir()
    thesis.write_text("years of work")
    with pytest.raises(FileExistsError, match=r"thesis\.tex"):
        write(tmp_path / "out", "new")
    assert thesis.read_text() == "years of work"


def test_a_foreign_file_that_appears_while_the_directory_is_written_is_kept(tmp_path: Path) -> None:
    def write_while_another_process_does() -> None:
        with atomic_directory(tmp_path / "out", ()):
            (tmp_path / "out").mkdir()
            (tmp_path / "out/thesis.tex").write_text("years of work")

    with pytest.raises(FileExistsError):
        write_while_another_process_does()
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "thesis.tex"]


def test_paths_that_lead_elsewhere_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "repository").mkdir()
    monkeypatch.chdir(tmp_path / "repository")
    (tmp_path / "link").symlink_to(tmp_path / "repository")
    (tmp_path / "file").write_text("")
    for path in (Path(), Path(".."), Path("/"), tmp_path / "link", tmp_path / "file", tmp_path / "repository/.."):
        with pytest.raises(FileExistsError):
            check_replaceable(path, ("*",))


def test_an_error_leaves_the_old_content(tmp_path: Path) -> None:
    write(tmp_path / "out", "old")
    with pytest.raises(UnicodeEncodeError):
        write(tmp_path / "out", "\ud800")
    with pytest.raises(UnicodeEncodeError), atomic_path(tmp_path / "out/a.txt") as temporary:
        temporary.write_text("\ud800")
    assert (tmp_path / "out/a.txt").read_text() == "old"
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "a.txt"]


def test_only_a_file_is_replaced_by_a_file(tmp_path: Path) -> None:
    for path in (tmp_path, Path("/dev/null")):
        with pytest.raises(FileExistsError, match="is not a file"), atomic_path(path):
            pass
    assert Path("/dev/null").is_char_device()


@pytest.mark.parametrize("moment", ["writing a file", "writing a directory", "removing"])
def test_what_a_killed_process_leaves_is_removed_by_the_next_one(tmp_path: Path, moment: str) -> None:
    code = (
        "import os, shutil, sys; from pathlib import Path\n"
        "from pipeline.files import atomic_directory, atomic_path, remove_directory\n"
        "path, moment = Path(sys.argv[1]), sys.argv[2]\n"
        "if moment == 'removing':\n"
        "    shutil.rmtree = lambda *_, **__: os._exit(9)\n"
        "    remove_directory(path)\n"
        "with (atomic_path(path) if moment == 'writing a file' else atomic_directory(path, ())) as temporary:\n"
        "    (temporary if moment == 'writing a file' else temporary / 'a.txt').write_text('half')\n"
        "    os._exit(9)"
    )
    target = tmp_path / "out"
    if moment == "removing":
        write(target, "old")
    killed = subprocess.run([sys.executable, "-c", code, str(target), moment], check=False)
    assert killed.returncode == 9
    assert [path.suffix for path in tmp_path.iterdir()] == [".tmp"]
    write(target, "new")
    remove_directory(target)
    assert list(tmp_path.iterdir()) == []


def test_what_is_set_aside_replaces_nothing(tmp_path: Path) -> None:
    (tmp_path / "old-run-x").mkdir()  # another program's
    (tmp_path / "old-run-2").symlink_to("nowhere")
    for content in ("first", "second", "third"):
        (tmp_path / "run").write_text(content)
        assert set_aside(tmp_path / "run", "old-").read_text() == content
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "old-run",
        "old-run-2",
        "old-run-3",
        "old-run-4",
        "old-run-x",
    ]


def test_whatever_a_parser_raises_names_the_file() -> None:
    class PanicException(BaseException):  # as of libraries written in Rust
        pass

    odd = (PanicException("panicked"), RecursionError("too deep"), OSError("corrupt"), KeyError("vocab"), MemoryError())
    for error in odd:
        with pytest.raises(UserError, match=r"^a\.json: \S"), parsing("a.json"):
            raise error
    for error in (KeyboardInterrupt(), FileNotFoundError(2, "No such file", "b.json"), UserError("a.json:3: odd")):
        with pytest.raises(type(error)) as raised, parsing("a.json"):
            raise error
        assert raised.value is error


def test_an_exclusive_lock_without_waiting_names_the_holder(tmp_path: Path) -> None:
    with (
        exclusive_lock(tmp_path / "run"),
        pytest.raises(UserError, match=rf"run is in use by process {os.getpid()}:"),
        exclusive_lock(tmp_path / "run", wait=False),
    ):
        pass
    with exclusive_lock(tmp_path / "run", wait=False):
        pass


def test_shared_locks_exclude_an_exclusive_one_only(tmp_path: Path) -> None:
    with (
        shared_lock(tmp_path / "run"),
        shared_lock(tmp_path / "run"),
        pytest.raises(UserError),
        exclusive_lock(tmp_path / "run", wait=False),
    ):
        pass


def test_a_lock_is_waited_for_and_taken_over_from_a_killed_process(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from pipeline.files import exclusive_lock\n"
        "with exclusive_lock(Path(sys.argv[1])):\n    print('held', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"process {holder.pid}:"), exclusive_lock(tmp_path / "run", wait=False):
            pass
        threading.Timer(0.1, holder.kill).start()
        with exclusive_lock(tmp_path / "run"):
            assert holder.wait(30) != 0


def test_the_main_root_is_found_from_dvc_s_copies(tmp_path: Path) -> None:
    assert main_root(tmp_path) == tmp_path
    assert main_root(tmp_path / ".dvc/tmp/exps/tmpabc/data") == tmp_path
