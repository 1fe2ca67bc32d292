"""Slices are named as Cloud TPU names them, and described without being there."""

import jax
import pytest

from lm.devices.accelerators import accelerator_of
from lm.devices.slices import open_slice
from lm.errors import UserError


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("v5e-12", "v5e-12 is no slice of Cloud TPU"),
        ("v5ee-8", "did you mean v5e"),
        ("h100-16", "one host of a100, h100, h200, with at most 8 GPUs"),
        ("l4-1", "one host of a100, h100, h200"),
        ("cpu-800", "as many"),
    ],
)
def test_a_name_that_is_no_slice_is_refused_with_those_that_are(name, reason):
    with pytest.raises(UserError, match=reason):
        open_slice(name)


def test_a_compiler_that_is_missing_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for name, extra in (("v5e-16", r'"\.\[tpu\]"'), ("h100-8", r'"\.\[gpu\]"')):
        with pytest.raises(UserError, match=extra):
            open_slice(name)


def test_cpus_of_this_process_are_a_slice_without_known_peaks():
    found = open_slice("cpu-4")
    assert list(found.devices) == jax.devices()[:4] and found.chips == 4
    assert found.accelerator is None


@pytest.mark.parametrize(
    ("kind", "peak"),
    [("TPU v5 lite", 197e12), ("TPU v5", 459e12), ("NVIDIA H100 80GB HBM3", 989e12), ("cpu", None)],
)
def test_the_accelerator_of_a_device_is_found_by_what_its_kind_begins_with(kind, peak):
    known = accelerator_of(kind)
    assert (known and known.peak_flops) == peak
