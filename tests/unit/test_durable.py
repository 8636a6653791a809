"""Small files appear whole, private, and once."""

from pathlib import Path

import pytest

from aimx import durable


def test_a_file_is_replaced_in_one_step_and_private(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    durable.replace(path, b"old")
    durable.replace(path, b"new")
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path], "no draft is left behind"


def test_what_is_there_first_stays(tmp_path: Path) -> None:
    path = tmp_path / "key"
    durable.create(path, b"first")
    durable.create(path, b"second")
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_replacement_keeps_the_old_file_and_leaves_no_draft(tmp_path: Path) -> None:
    folder = tmp_path / "in-the-way"
    folder.mkdir()
    with pytest.raises(OSError, match="in-the-way"):
        durable.replace(folder, b"data")
    assert list(tmp_path.iterdir()) == [folder]
