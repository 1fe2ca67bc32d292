"""Which cluster a process is in, by its flags or by its environment."""

import pytest

from lm.devices import hosts
from lm.devices.hosts import Cluster, find_cluster
from lm.errors import UserError

SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "node[001-004]",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "0",
}


@pytest.mark.parametrize(
    "given, told",
    [
        ((None, 2, 0), "--coordinator is missing"),
        (("a:1", None, 0), "--num_processes is missing"),
        (("a:1", 2, None), "--process_id is missing"),
        (("a", 2, 0), "--coordinator=a is not HOST:PORT"),
        (("a:99999", 2, 0), "--coordinator=a:99999 is not HOST:PORT"),
        (("a:1", 2, 2), "--process_id=2 is not below --num_processes=2"),
    ],
)
def test_flags_that_name_no_place_are_told(given, told):
    with pytest.raises(UserError, match=told):
        find_cluster(*given)


def test_flags_name_the_place_of_a_process():
    assert find_cluster("a:1", 2, 1) == Cluster("a:1", 2, 1)
    assert find_cluster("a:1", 1, 0) is None
    assert find_cluster(None, None, None) is None


def test_slurm_starts_the_processes_of_a_step_unless_one_is_asked_for(monkeypatch):
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    assert find_cluster(None, None, None) == Cluster(None, 4, 3)
    assert find_cluster(None, 1, None) is None
    monkeypatch.setenv("SLURM_NTASKS", "1")
    assert find_cluster(None, None, None) is None


def test_one_process_is_the_first_and_asks_nobody():
    assert hosts.is_main() and hosts.process_count() == 1
    assert hosts.from_main(lambda: 5) == hosts.main_first(lambda: 5) == 5
    assert hosts.any_process(True) and not hosts.any_process(False)
    hosts.check_alike({"a": "1"})
