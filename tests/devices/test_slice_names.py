"""Names of machines have the chips, hosts and topology that Cloud TPU documents for them."""

import pytest

from lm.devices.slice_names import SLICES, find_slice
from lm.errors import UserError


@pytest.mark.parametrize(
    ("name", "accelerator", "chips", "hosts", "topology"),
    [
        ("v4-8", "v4", 4, 1, "2x2x1"),
        ("v4-128", "v4", 64, 16, "4x4x4"),
        ("v5e-1", "v5e", 1, 1, "1x1"),
        ("v5e-8", "v5e", 8, 1, "2x4"),
        ("v5litepod-16", "v5e", 16, 4, "4x4"),
        ("v5e-256", "v5e", 256, 64, "16x16"),
        ("v5p-128", "v5p", 64, 16, "4x4x4"),
        ("V6E-8", "v6e", 8, 1, "2x4"),
        ("v6e-16", "v6e", 16, 4, "4x4"),
        ("tpu7x-8", "tpu7x", 4, 1, "2x2x1"),
        ("h100-8", "h100", 8, 1, ""),
        ("h100-16", "h100", 16, 2, ""),
        ("cpu-8", "cpu", 8, 1, ""),
    ],
)
def test_a_name_has_its_chips_hosts_and_topology(name, accelerator, chips, hosts, topology):
    found = find_slice(name)
    assert (found.accelerator, found.chips, found.hosts) == (accelerator, chips, hosts)
    assert found.topology == topology


def test_every_host_of_a_slice_has_as_many_chips():
    for each in SLICES.values():
        assert each.chips_per_host * each.hosts == each.chips
        assert each.hosts == 1 or each.kind == "gpu" or each.chips_per_host == 4


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v5e-12", "v5e-12 is no slice of Cloud TPU; use v5e-1, v5e-4, v5e-8, v5e-16, v5e-32,"),
        ("v5e", "v5e is no slice of Cloud TPU"),
        ("h100-12", "use h100-1, 2, 4, 8, or a multiple of 8 up to 512, 8 on each host"),
        ("cpu-0", "use cpu-1 to cpu-1024"),
        ("tpux7-8", "such as v5e-16, h100-8 or cpu-8, .*; did you mean tpu7x?"),
    ],
)
def test_a_name_that_is_none_is_told_with_those_that_are(name, message):
    with pytest.raises(UserError, match=message):
        find_slice(name)
