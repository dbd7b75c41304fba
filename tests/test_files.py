"""Directories are replaced whole, and only those that this code has written."""

from pathlib import Path

import pytest

from pipeline.files import atomic_directory, check_replaceable


def write(path: Path, text: str) -> None:
    with atomic_directory(path, ("*.txt",)) as temporary:
        (temporary / "a.txt").write_text(text)


def test_a_directory_of_ours_is_replaced_as_a_whole(tmp_path: Path) -> None:
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
    def write_while_another_does() -> None:
        with atomic_directory(tmp_path / "out", ()):
            (tmp_path / "out").mkdir()
            (tmp_path / "out/thesis.tex").write_text("years of work")

    with pytest.raises(FileExistsError):
        write_while_another_does()
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "thesis.tex"]


def test_paths_that_lead_elsewhere_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "repository").mkdir()
    monkeypatch.chdir(tmp_path / "repository")
    (tmp_path / "link").symlink_to(tmp_path / "repository")
    (tmp_path / "file").write_text("")
    for path in (Path(), Path(".."), Path("/"), tmp_path / "link", tmp_path / "file", tmp_path / "repository/.."):
        with pytest.raises(FileExistsError):
            check_replaceable(path, ("*",))


def test_an_error_leaves_what_was_there(tmp_path: Path) -> None:
    write(tmp_path / "out", "old")
    with pytest.raises(UnicodeEncodeError):
        write(tmp_path / "out", "\ud800")
    assert (tmp_path / "out/a.txt").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
