"""A file appears whole or not at all, and of several that create one, one succeeds."""

import errno
import os

import pytest

from lm.data.files import create_text


@pytest.mark.parametrize("folder", ["memory://created", "local"])
def test_a_file_is_created_once(folder, tmp_path):
    path = f"{folder}/file" if "://" in folder else tmp_path / "file"
    assert create_text(path, "mine")
    assert not create_text(path, "theirs")


def test_a_kill_before_a_file_is_whole_leaves_none_of_its_name(tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "link", killed)
    with pytest.raises(KeyboardInterrupt):
        create_text(tmp_path / "file", "mine")
    assert not (tmp_path / "file").exists()


@pytest.mark.parametrize("theirs", [False, True])
def test_without_hard_links_a_file_is_created_once_as_well(tmp_path, monkeypatch, theirs):
    def refused(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    if theirs:
        (tmp_path / "file").write_text("theirs")
    assert create_text(tmp_path / "file", "mine") is not theirs
    assert (tmp_path / "file").read_text() == ("theirs" if theirs else "mine")
    assert len(list(tmp_path.iterdir())) == 1


def test_a_link_whose_answer_was_lost_is_known_to_be_made(tmp_path, monkeypatch):
    link = os.link

    def repeated(source, target):
        link(source, target)
        link(source, target)

    monkeypatch.setattr(os, "link", repeated)
    assert create_text(tmp_path / "file", "mine")
    assert not create_text(tmp_path / "file", "theirs")
    assert (tmp_path / "file").read_text() == "mine"
