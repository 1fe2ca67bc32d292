"""A server in a process of its own: the openai client streams from it, adapters are exchanged while
it answers, and a signal ends it after the last answer.
"""

import json
import re
import signal
import threading

import pytest
from etils import epath

from lm.checkpoints.restore import restore
from lm.config import override
from lm.experiment.train import train
from tests.commands import start_fresh
from tests.serving.served import drawn

openai = pytest.importorskip("openai")
httpx = pytest.importorskip("httpx")
pytest.importorskip("fastapi")

SIZES = {"model.d_model": 16, "model.num_heads": 2, "steps": 4, "evaluation.every": 0}
SIZES |= {"checkpoint.every": 2}
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(base_config, tmp_path_factory):
    """A base, and two LoRAs on it in adapters/."""
    folder = epath.Path(tmp_path_factory.mktemp("served"))
    config = override(base_config, SIZES)
    train(config, folder / "base")
    for seed, name in enumerate(("first", "second")):
        adapter = {"init_from": str(folder / "base"), "finetuning.method": "lora", "seed": seed}
        adapter |= {"optimizer.learning_rate": 0.3, "steps": 12}
        train(override(config, adapter), folder / "adapters" / name)
    return folder


class Server:
    """A server's process, and where it answers."""

    def __init__(self, cache, workdir, *flags):
        fixed = "--port=0", "--slots=2", f"--cache_dir={cache}"
        self.process = start_fresh("serve", f"--workdir={workdir}", *fixed, *flags)
        for line in self.process.stdout:
            if found := re.search(r"listening on (\S+),", line):
                self.url = found[1]
            if line.startswith("ready"):
                return
        raise AssertionError(self.process.stderr.read())

    def post(self, path, **body):
        return httpx.post(f"{self.url}/v1/{path}", json=body, timeout=60)

    def end(self):
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


@pytest.fixture(scope="module")
def server(folder, cache):
    found = Server(cache, folder / "adapters" / "first", f"--adapters={folder / 'adapters'}")
    yield found
    assert found.end() == 0


def test_the_openai_client_streams_what_generate_draws(server, folder):
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none")
    assert [model.id for model in client.models.list()] == ["first"]
    run, options = restore(folder / "adapters" / "first"), {"temperature": 0.9, "seed": 4}
    asked = {"model": "first", "prompt": "def ", "max_tokens": 20, **options}
    expected = drawn(run, "def ", 20, **options)
    assert client.completions.create(**asked).choices[0].text == expected
    pieces = [each.choices[0].text for each in client.completions.create(**asked, stream=True)]
    assert "".join(pieces) == expected and len(pieces) > 1
    messages = [{"role": "user", "content": "hello"}]
    asked = {"model": "first", "messages": messages, "max_tokens": 5, "seed": 1}
    whole = client.chat.completions.create(**asked, logprobs=True, top_logprobs=2)
    assert len(whole.choices[0].logprobs.content) == whole.usage.completion_tokens
    parts = client.chat.completions.create(**asked, stream=True)
    said = "".join(part.choices[0].delta.content or "" for part in parts)
    assert said == whole.choices[0].message.content
    vectors = client.embeddings.create(model="first", input=["a", "bc"]).data
    assert len(vectors) == 2 and len(vectors[0].embedding) == 16
    with pytest.raises(openai.NotFoundError, match="is not served; use first"):
        client.completions.create(model="other", prompt="x")


def test_adapters_are_exchanged_while_others_answer(server, folder):
    options = {"temperature": 0.3, "seed": 2}
    asked = {"prompt": "class ", "max_tokens": 30, **options}
    runs = {name: restore(folder / "adapters" / name) for name in ("first", "second")}
    expected = {name: drawn(run, "class ", 30, **options) for name, run in runs.items()}
    assert expected["first"] != expected["second"]
    answers, going = [], threading.Event()

    def keep_asking():
        while not going.is_set():
            found = server.post("completions", model="first", **asked).json()
            answers.append(found["choices"][0]["text"])

    thread = threading.Thread(target=keep_asking)
    thread.start()
    try:
        assert server.post("completions", model="second", **asked).status_code == 404
        for _ in range(3):
            loaded = server.post("load_lora_adapter", lora_name="second")
            assert loaded.status_code == 200, loaded.text
            found = server.post("completions", model="second", **asked).json()
            assert found["choices"][0]["text"] == expected["second"]
        assert server.post("unload_lora_adapter", lora_name="second").status_code == 200
        assert server.post("load_lora_adapter", lora_name="../base").status_code == 404
    finally:
        going.set()
        thread.join()
    assert set(answers) == {expected["first"]} and len(answers) > 3


def test_a_signal_ends_the_server_after_the_last_answer(folder, cache):
    server, found = Server(cache, folder / "base"), []
    asked = {"model": "base", "prompt": "x", "max_tokens": 50, "seed": 0, "stream": True}
    begun = threading.Event()

    def ask():
        with httpx.stream("POST", f"{server.url}/v1/completions", json=asked) as answer:
            for line in answer.iter_lines():
                begun.set()
                found.append(line)

    thread = threading.Thread(target=ask)
    thread.start()
    begun.wait(60)
    assert server.end() == 0
    thread.join()
    assert found[-2] == "data: [DONE]" or found[-1] == "data: [DONE]"
    assert json.loads(found[-4][6:])["choices"][0]["finish_reason"] in ("length", "stop")


def test_what_cannot_be_served_is_one_line(folder, cache):
    def fails(*flags):
        process = start_fresh("serve", "--port=0", f"--cache_dir={cache}", *flags)
        _, error = process.communicate(timeout=120)
        assert process.returncode == 2 and "Traceback" not in error, error
        return error

    base = f"--workdir={folder / 'base'}"
    assert "--token_file=FILE" in fails(base, "--host=0.0.0.0")
    assert "--max_model_len=99 must be from 2 to 64" in fails(base, "--max_model_len=99")
    assert "has no adapters" in fails(base, f"--adapters={folder}")
    assert "--pooling=other is not one of" in fails(base, "--pooling=other")
