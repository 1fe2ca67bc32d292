"""One process at a time works in a folder, and none that has died stands in another's way."""

import dataclasses
import json
import os
import subprocess
import sys
import threading
import time

import pytest

from lm.experiment import claim as claim_module
from lm.experiment.claim import STALE, Held, claim, holder
from lm.experiment.train import train
from tests.claims import held_elsewhere, write_claim
from tests.commands import ROOT


def only_claim(folder):
    (path,) = folder.glob(".claim-*")
    return path


def age(path, seconds):
    past = time.time() - seconds
    os.utime(path, (past, past))


def ended_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_the_second_is_told_who_holds_the_folder(tmp_path):
    folder = tmp_path / "a;b"
    told = f"held by process {os.getpid()} on .* since"
    with held_elsewhere(folder), pytest.raises(Held, match=told) as raised, claim(folder):
        raise AssertionError
    assert raised.value.finding.startswith(f"{folder} is held by process")
    assert raised.value.finding[-2:].isdecimal()  # the seconds
    with claim(folder):
        pass


def test_a_block_within_shares_the_claim_and_leaves_it_to_the_outer_one(tmp_path):
    with claim(tmp_path) as outer:
        with claim(tmp_path) as inner:
            assert inner is outer
        assert holder(tmp_path)
    assert holder(tmp_path) is None


def test_a_folder_is_let_go_after_an_error_and_removed_if_it_was_made_for_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), claim(tmp_path / "a/run"):
        raise KeyboardInterrupt
    assert not (tmp_path / "a/run").exists()
    with claim(tmp_path):
        assert holder(tmp_path)
    assert holder(tmp_path) is None
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_killed_holder_does_not_block_the_next_start(tmp_path):
    code = "import sys, time; from lm.experiment.claim import claim\nwith claim(sys.argv[1]): "
    code += "print(flush=True); time.sleep(600)"
    command = [sys.executable, "-c", code, str(tmp_path)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline()
    with pytest.raises(Held, match=f"process {process.pid} "), claim(tmp_path):
        pass
    process.kill()
    process.communicate()
    with claim(tmp_path):
        assert only_claim(tmp_path).name == ".claim-2"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("changes", [{"pid": "ended"}, {"born": "1"}])
def test_a_process_that_ended_or_whose_number_is_another_s_now_holds_nothing(tmp_path, changes):
    write_claim(tmp_path, **({"pid": ended_process()} if "pid" in changes else changes))
    assert holder(tmp_path) is None
    with claim(tmp_path):
        pass


def test_a_process_that_ended_and_that_nobody_has_waited_for_holds_nothing(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    write_claim(tmp_path, pid=process.pid, born=claim_module._born(process.pid))
    assert holder(tmp_path)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert holder(tmp_path) is None
    process.communicate()


def test_a_process_of_another_machine_holds_until_it_shows_no_sign_of_life(tmp_path):
    path = write_claim(tmp_path, machine="other", host="node7", pid=ended_process())
    assert "on node7" in str(holder(tmp_path))
    age(path, STALE - 20)
    assert holder(tmp_path)
    age(path, STALE + 20)
    assert holder(tmp_path) is None
    with claim(tmp_path):
        assert only_claim(tmp_path).name == ".claim-2"


def test_a_process_of_this_machine_that_is_stopped_still_holds(tmp_path):
    age(write_claim(tmp_path), 10 * STALE)
    assert holder(tmp_path)


def test_half_a_claim_holds_while_it_is_young(tmp_path):
    path = tmp_path / ".claim-1"
    path.write_text('{"host": "no')
    assert "just beginning" in str(holder(tmp_path))
    age(path, STALE + 20)
    assert holder(tmp_path) is None


def test_a_claim_is_refreshed_while_it_is_held(tmp_path, monkeypatch):
    monkeypatch.setattr(claim_module, "BEAT", 0.02)
    with claim(tmp_path) as held:
        path = only_claim(tmp_path)
        age(path, 1000)
        for _ in range(500):
            if time.time() - path.stat().st_mtime < 100:
                break
            time.sleep(0.01)
        assert time.time() - path.stat().st_mtime < 100
        held.check()


def test_who_was_taken_over_while_suspended_writes_nothing_more_and_takes_nothing_away(
    tmp_path, monkeypatch
):
    with claim(tmp_path) as held:
        path = only_claim(tmp_path)
        theirs = json.loads(path.read_text()) | {"token": "theirs"}
        path.write_text(json.dumps(theirs))
        held.check()  # which looks only after a gap
        later = time.time() + STALE
        monkeypatch.setattr(time, "time", lambda: later)
        with pytest.raises(Held, match="was taken over by another process"):
            held.check()
    assert json.loads(path.read_text()) == theirs


def test_of_many_that_find_a_dead_claim_one_at_a_time_holds_the_folder(tmp_path):
    write_claim(tmp_path, number=3, born="1")
    start, inside, most, done = threading.Barrier(6), [], [], []

    def contend():
        start.wait()
        while True:
            try:
                with claim(tmp_path):
                    inside.append(1)
                    most.append(len(inside))
                    time.sleep(0.01)
                    inside.pop()
                done.append(1)
                return
            except Held:
                time.sleep(0.005)

    threads = [threading.Thread(target=contend) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == 6 and max(most) == 1
    assert not list(tmp_path.iterdir())


def test_two_that_claim_at_the_same_moment_do_not_both_hold(tmp_path, monkeypatch):
    """Another's claim appears between the look and the own file, under a lower number."""
    over = write_claim(tmp_path, number=4, born="1")
    theirs = write_claim(tmp_path / "theirs", machine="other")
    create = claim_module.create_text

    def slow(path, text):
        if theirs.exists():
            theirs.rename(tmp_path / ".claim-1")
        return create(path, text)

    monkeypatch.setattr(claim_module, "create_text", slow)
    with pytest.raises(Held), claim(tmp_path):
        pass
    assert sorted(tmp_path.glob(".claim-*")) == [tmp_path / ".claim-1", over]


def test_who_waits_begins_when_the_holder_ends(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(claim_module, "POLL", 0.01)
    path = write_claim(tmp_path, machine="other", host="node7")
    threading.Timer(0.05, path.unlink).start()
    with claim(tmp_path, wait=True):
        pass
    assert capsys.readouterr().out.count("waits: ") == 1


def test_a_folder_that_its_holder_removes_does_not_hinder_those_who_wait(tmp_path, monkeypatch):
    """Each holder removes the folder that it made, at any moment of another's look at it."""
    monkeypatch.setattr(claim_module, "POLL", 0.0)
    errors, folder = [], tmp_path / "run"

    def hold_often():
        try:
            for _ in range(100):
                with claim(folder, wait=True):
                    pass
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=hold_often) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


def test_a_machine_is_told_from_another_of_the_same_name(monkeypatch):
    near = claim_module.Holder("node7", claim_module._machine(), os.getpid(), None, "now", "x")
    far = dataclasses.replace(near, machine="other")
    assert near.is_near and not far.is_near


def test_a_second_train_changes_nothing_in_a_workdir_that_is_held(small_config, tmp_path):
    with held_elsewhere(tmp_path / "run"):
        before = sorted((tmp_path / "run").iterdir())
        with pytest.raises(Held, match="run is held by process"):
            train(small_config, tmp_path / "run")
        assert sorted((tmp_path / "run").iterdir()) == before


def test_a_file_server_that_fails_for_a_while_ends_no_run_and_for_long_ends_it(
    tmp_path, monkeypatch
):
    def fail(_):
        raise OSError("the server is away")

    with claim(tmp_path) as mine:
        monkeypatch.setattr(claim_module, "_read", fail)
        mine._beaten = time.time() - 0.75 * STALE
        mine.check()
        mine._beaten = time.time() - 1.25 * STALE
        with pytest.raises(Held, match="could not be refreshed for 120 s"):
            mine.check()
