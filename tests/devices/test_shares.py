"""Processes side by side have equal parts of this machine's cores or accelerators."""

import os

import pytest

from lm.devices import shares
from lm.devices.shares import Share, divide
from lm.errors import UserError


@pytest.fixture(autouse=True)
def nothing_is_chosen(monkeypatch):
    for name in ("JAX_PLATFORMS", "CUDA_VISIBLE_DEVICES", "TPU_VISIBLE_CHIPS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(shares, "_PLUGINS", {})


def has_cores(monkeypatch, number):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4, 4 + number)), raising=False)


def test_cores_are_divided_equally_and_a_remainder_stays_idle(monkeypatch):
    has_cores(monkeypatch, 5)
    assert divide(2) == [Share({}, frozenset({4, 5})), Share({}, frozenset({6, 7}))]


def test_gpus_are_those_that_this_process_sees(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5,6,7")
    seen = [share.environment["CUDA_VISIBLE_DEVICES"] for share in divide(2)]
    assert seen == ["2,5", "6,7"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setitem(shares._COUNTS, "cuda", ("CUDA_VISIBLE_DEVICES", lambda: 3))
    seen = [share.environment["CUDA_VISIBLE_DEVICES"] for share in divide(3)]
    assert seen == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("number", "chips", "bounds"),
    [(8, ["0", "1"], "1,1,1"), (4, ["0,1", "2,3"], "1,2,1"), (2, ["0,1,2,3"], "2,2,1")],
)
def test_a_process_has_as_many_tpu_chips_as_stand_in_a_rectangle(
    monkeypatch, number, chips, bounds
):
    monkeypatch.setattr(shares, "_PLUGINS", {"tpu": ("os",)})  # installed
    monkeypatch.setitem(shares._COUNTS, "tpu", ("TPU_VISIBLE_CHIPS", lambda: 8))
    found = [share.environment for share in divide(number)]
    assert [each["TPU_VISIBLE_CHIPS"] for each in found][: len(chips)] == chips
    assert {each["TPU_CHIPS_PER_PROCESS_BOUNDS"] for each in found} == {bounds}
    assert {each["TPU_PROCESS_BOUNDS"] for each in found} == {"1,1,1"}


@pytest.mark.parametrize(
    ("platform", "message"),
    [
        ("", "--jobs=3: this machine has 2 cores for them; use at most --jobs=2"),
        ("cuda", "--jobs=3: this machine has 1 GPU for them; use at most --jobs=1"),
        ("metal", "--jobs divides CPUs, GPUs and TPUs, not JAX_PLATFORMS=metal"),
    ],
)
def test_more_processes_than_devices_are_refused(monkeypatch, platform, message):
    has_cores(monkeypatch, 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setenv("JAX_PLATFORMS", platform)
    with pytest.raises(UserError, match=message):
        divide(3)
