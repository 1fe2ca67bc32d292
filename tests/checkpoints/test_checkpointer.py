"""What was saved is what is restored, or the checkpoint is named as damaged."""

import random
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl import logging
from jax.sharding import NamedSharding, PartitionSpec
from orbax.checkpoint import v1 as ocp

from lm.checkpoints.checkpointer import Checkpoints
from lm.checkpoints.checksum import checksum
from lm.checkpoints.preservation import Preservation
from lm.devices import sharding
from lm.errors import UserError
from lm.training.train_state import TrainState

ONE = jax.sharding.SingleDeviceSharding(jax.devices()[0])


def state_at(step: int) -> TrainState:
    """With random bits, which are stored as they are: no compression makes them fewer."""
    bits = jax.random.bits(jax.random.key(step), (40, 30), jnp.uint32)
    kernel = jax.random.normal(jax.random.key(step), (2, 4, 30), jnp.bfloat16)
    table = jax.lax.bitcast_convert_type(bits, jnp.float32)
    params = {"table": table, "stack": {"kernel": kernel}}
    opt_state = optax.adamw(1e-3).init(params)
    return TrainState(jnp.int32(step), params, opt_state, None, jnp.array(True))


def shapes(state: TrainState):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=ONE), state.saved)


def assert_same(found, expected) -> None:
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def flip(path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 4
    path.write_bytes(data)


def largest(folder):
    """The file that holds the arrays."""
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda path: path.stat().st_size)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A workdir with checkpoints of steps 3 and 5, to be copied."""
    workdir = tmp_path_factory.mktemp("checkpointer") / "run"
    checkpoints = Checkpoints(workdir, Preservation(2))
    for step in (3, 5):
        checkpoints.save(state_at(step))
    checkpoints.close()
    return workdir


@pytest.fixture
def workdir(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "run")


def test_a_state_comes_back_bit_for_bit(workdir):
    assert Checkpoints(workdir).steps == [3, 5]
    assert_same(Checkpoints(workdir).load(shapes(state_at(5))), state_at(5).saved)
    raw = Checkpoints(workdir).load_raw(ONE)
    assert_same(raw["params"], state_at(5).params)


def test_a_flipped_byte_anywhere_is_found_or_changes_nothing(workdir):
    """What is neither a number nor a name, such as a time, may differ."""
    places, found = random.Random(0), 0
    for path in sorted(p for p in (workdir / "checkpoints/5").rglob("*") if p.is_file()):
        place = places.randrange(path.stat().st_size)
        flip(path, place)
        state = Checkpoints(workdir).load(shapes(state_at(5)))
        found += int(state.step) == 3
        assert_same(state, state_at(int(state.step)).saved)
        flip(path, place)
    assert found


def test_a_flipped_byte_of_a_number_names_the_checkpoint_and_the_one_before_is_used(workdir, capfd):
    path = largest(workdir / "checkpoints/5")
    flip(path, path.stat().st_size // 2)
    assert_same(Checkpoints(workdir).load(shapes(state_at(5))), state_at(3).saved)
    assert_same(Checkpoints(workdir).load_raw(ONE)["params"], state_at(3).params)
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all("checkpoints/5 is damaged" in line for line in lines)
    assert all(line.endswith("; step 3 is used instead") for line in lines)
    assert (workdir / "checkpoints/5").exists()  # Who only reads moves nothing.


def test_a_damaged_step_that_was_asked_for_is_refused(workdir):
    path = largest(workdir / "checkpoints/5")
    flip(path, path.stat().st_size // 2)
    with pytest.raises(UserError, match=r"checkpoints/5 is damaged: .*; other steps there: 3$"):
        Checkpoints(workdir).load(shapes(state_at(5)), 5)
    assert_same(Checkpoints(workdir).load(shapes(state_at(3)), 3), state_at(3).saved)


@pytest.mark.parametrize("metadata", [False, True])
def test_the_run_that_owns_a_damaged_checkpoint_moves_it_away_and_goes_on(workdir, capfd, metadata):
    folder = workdir / "checkpoints/5"
    path = folder / "_CHECKPOINT_METADATA" if metadata else largest(folder)
    flip(path, 13 if metadata else path.stat().st_size // 2)
    damaged = path.read_bytes()
    checkpoints = Checkpoints(workdir, Preservation(2))
    assert int(checkpoints.load(shapes(state_at(5))).step) == 3
    assert "moved to" in capfd.readouterr().err
    checkpoints.save(state_at(5))
    checkpoints.close()
    assert checkpoints.steps == [3, 5]
    assert_same(Checkpoints(workdir).load(shapes(state_at(5))), state_at(5).saved)
    assert (workdir / "damaged" / path.relative_to(workdir / "checkpoints")).read_bytes() == damaged


def test_damaged_metadata_of_an_older_checkpoint_do_not_stop_the_run(workdir, capfd):
    flip(workdir / "checkpoints/3/_CHECKPOINT_METADATA", 13)
    checkpoints = Checkpoints(workdir, Preservation(2))
    assert int(checkpoints.load(shapes(state_at(5))).step) == 5
    checkpoints.save(state_at(7))
    checkpoints.close()
    assert checkpoints.steps == [5, 7]
    assert "checkpoints/3 cannot be read" in capfd.readouterr().err


def test_where_none_is_whole_it_is_said_and_nothing_is_moved(workdir):
    for step in (3, 5):
        path = largest(workdir / f"checkpoints/{step}")
        flip(path, path.stat().st_size // 2)
    with pytest.raises(UserError, match=r"checkpoints/5 is damaged.* no other is whole"):
        Checkpoints(workdir, Preservation(2)).load(shapes(state_at(5)))
    assert Checkpoints(workdir).steps == [3, 5]


def test_a_checkpoint_without_a_checksum_is_not_trusted(tmp_path):
    state = state_at(5)
    ocp.save(tmp_path / "run/checkpoints/5", state.saved, checkpointable_name="state")
    with pytest.raises(UserError, match="checkpoints/5 is damaged, or of an older version"):
        Checkpoints(tmp_path / "run").load(shapes(state))


def test_a_checkpoint_that_is_removed_while_it_is_read_is_not_called_damaged(
    workdir, monkeypatch, capfd
):
    load = ocp.load

    def slow(path, *arguments, **keywords):
        if path.name == "5":
            shutil.rmtree(path)
        return load(path, *arguments, **keywords)

    monkeypatch.setattr(ocp, "load", slow)
    assert int(Checkpoints(workdir).load(shapes(state_at(3))).step) == 3
    assert "damaged" not in capfd.readouterr().err


@pytest.mark.parametrize("error", [MemoryError(), PermissionError(13, "denied")])
def test_a_machine_that_cannot_read_is_not_taken_for_a_damaged_checkpoint(
    workdir, monkeypatch, error
):
    def fails(*_, **__):
        raise error

    monkeypatch.setattr(ocp, "load", fails)
    with pytest.raises(type(error)):
        Checkpoints(workdir, Preservation(2)).load(shapes(state_at(5)))
    assert Checkpoints(workdir).steps == [3, 5]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "bool"])
def test_every_bit_and_every_place_has_its_own_checksum(dtype):
    whole = np.random.default_rng(0).integers(0, 2, (4, 3, 2))
    others = [whole ^ (np.arange(24) == place).reshape(4, 3, 2) for place in range(24)]
    others += [whole.reshape(4, 6), whole.swapaxes(0, 1), whole[::-1]]
    arrays = [jnp.asarray(each, dtype) for each in (whole, *others)]
    assert len({checksum({"x": array}) for array in arrays}) == len(arrays)


@pytest.mark.parametrize("spec", [("data",), (None, "fsdp"), ("fsdp", "data"), (None, None)])
def test_the_checksum_does_not_depend_on_how_an_array_is_divided(spec):
    array = jax.random.normal(jax.random.key(0), (8, 4, 6))
    divided = jax.device_put(array, NamedSharding(sharding.make_mesh(2, 2), PartitionSpec(*spec)))
    assert checksum({"x": divided}) == checksum({"x": array})


def test_orbax_logs_nothing_and_our_own_warnings_are_still_heard(saved, tmp_path, caplog):
    checkpoints = Checkpoints(shutil.copytree(saved, tmp_path / "run"), Preservation(2))
    checkpoints.save(state_at(7))
    checkpoints.close()
    caplog.clear()
    logging.warning("the cache is damaged")
    logger = logging.get_absl_logger()
    logger.handle(logger.makeRecord("absl", 40, ocp.__file__, 1, "a thread failed", (), None))
    assert caplog.messages == ["the cache is damaged"]
