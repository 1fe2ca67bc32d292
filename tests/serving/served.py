"""Small models that are served in tests."""

import contextlib
import dataclasses

import jax
from etils import epath

from lm.checkpoints.restored import Restored
from lm.config import override
from lm.data import ByteTokenizer
from lm.generation import Continuation, SamplingParams, generate, prompt_ids
from lm.serving.service import Service, ServiceOptions
from lm.serving.slot_sampling import as_arrays
from lm.training.prepare import shared_program

OPTIONS = ServiceOptions(slots=3, max_model_len=32, max_queue=64)


def small_run(base_config, **settings) -> Restored:
    """A decoder of bytes at its initial weights, of which each token tells much of the next."""
    small = {"model.d_model": 16, "model.num_heads": 2, "model.max_seq_len": 32}
    config = override(base_config, small | {"model.init_std": 0.3} | settings)
    program = shared_program(config, 256, tokenizer=ByteTokenizer())
    with jax.set_mesh(program.mesh):
        params = program.init_state(jax.random.key(1)).all_params
    return Restored(config, ByteTokenizer(), program, params, 1)


def service_of(run: Restored, lazily: bool = True, **options) -> Service:
    """A service of a run; lazily: its programs are compiled when they are asked for."""
    service = Service(run, "small", dataclasses.replace(OPTIONS, **options), no_adapter)
    if lazily:
        service.compile = lambda: iter(())
        if service.slots is not None:
            service.slots.reset(service.engine.weights, as_arrays(SamplingParams()))
    return service


def no_adapter(folder: epath.Path) -> Restored:
    raise AssertionError(folder)


@contextlib.contextmanager
def client_of(service, **limits):
    """A client of an application that serves."""
    from starlette.testclient import TestClient

    from lm.serving.http.app import make_app
    from lm.serving.http.limits import Limits

    app = make_app(service, Limits(**limits))
    with TestClient(app, base_url="http://localhost", raise_server_exceptions=False) as client:
        while client.get("/readyz").status_code != 200:
            pass
        yield client


def drawn(run: Restored, prompt: str, size: int, stops=(), **options) -> str:
    """What `run.py generate` writes after a prompt."""
    ids = prompt_ids(run.tokenizer, [prompt], run.opens)
    text = Continuation(run.tokenizer, ids[0], stops)
    with jax.set_mesh(run.program.mesh):
        for (token,) in generate(
            run.program.model, run.params, ids, max_new_tokens=size, **options
        ):
            if not text.ended:
                text.add(int(token))
    return text.text
