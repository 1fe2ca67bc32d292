"""A command that is silent for seconds says what it does."""

import time

import pytest

from lm.training import announce
from lm.training import prepare as prepare_module
from lm.training.announce import announced


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(announce, "PATIENCE", 0.05)


def test_slow_work_is_announced_while_it_lasts_and_quick_work_is_not(capsys):
    with announced("compiling"):
        for _ in range(200):
            time.sleep(0.01)
            if said := capsys.readouterr().err:
                break
    assert said == "compiling ...\n"
    assert capsys.readouterr().err == "compiling: 0 s\n"
    with announced("compiling"):
        pass
    time.sleep(0.1)
    assert capsys.readouterr().err == ""


def test_what_fails_while_it_is_announced_is_raised(capsys):
    with pytest.raises(KeyboardInterrupt), announced("preparing"):
        time.sleep(0.1)
        raise KeyboardInterrupt
    assert capsys.readouterr().err.startswith("preparing ...\n")


def test_preparing_says_of_what_and_where(small_config, monkeypatch, capsys):
    monkeypatch.setattr(prepare_module, "prepare", lambda *_: time.sleep(0.1))
    prepare_module.prepare_corpus(small_config)
    said = capsys.readouterr().err
    assert f"preparing {small_config.data.source} in {small_config.cache_dir}" in said
