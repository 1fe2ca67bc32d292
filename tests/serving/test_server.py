"""A server answers as OpenAI's API does, with the texts that generate draws, and refuses the rest
with a status and a line.
"""

import json
import time

import pytest

from lm.errors import UserError
from lm.serving.row_programs import SOFTMAXES
from lm.serving.serve_command import Address
from tests.serving.served import client_of, drawn, service_of, small_run

pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")

from starlette.testclient import TestClient

from lm.serving.http.app import make_app
from lm.serving.http.limits import Limits


@pytest.fixture(scope="module")
def run(base_config):
    return small_run(base_config)


@pytest.fixture(scope="module")
def client(run):
    """Of a server whose programs are compiled when they are asked for."""
    with client_of(service_of(run), max_body_bytes=2000) as found:
        yield found


def streamed(client, path, body):
    """The events of a stream, and that it was closed."""
    response = client.post(path, json=body | {"stream": True})
    events = [line[6:] for line in response.text.split("\n\n") if line]
    assert response.status_code == 200 and events[-1] == "[DONE]"
    return [json.loads(event) for event in events[:-1]]


def test_a_completion_is_what_generate_draws_streamed_or_not(client, run):
    options = {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "seed": 5}
    body = {"model": "small", "prompt": "abc", "max_tokens": 12, "logprobs": 2, **options}
    answer = client.post("/v1/completions", json=body).json()
    expected = drawn(run, "abc", 12, **options)
    choice = answer["choices"][0]
    assert choice["text"] == expected
    assert choice["finish_reason"] in ("length", "stop")
    assert answer["usage"]["prompt_tokens"] == 3 + len(run.opens)
    assert len(choice["logprobs"]["tokens"]) == answer["usage"]["completion_tokens"]
    assert all(each <= 0 for each in choice["logprobs"]["token_logprobs"])
    events = streamed(client, "/v1/completions", body)
    assert "".join(event["choices"][0]["text"] for event in events) == expected
    stop = expected[3:5]
    stopped = client.post("/v1/completions", json=body | {"stop": stop}).json()["choices"][0]
    assert stopped["text"] == drawn(run, "abc", 12, [stop], **options)
    assert stopped["finish_reason"] == "stop"


@pytest.mark.slow
def test_several_prompts_and_choices_keep_apart(client, run):
    body = {"model": "small", "prompt": ["a", "bcdef"], "max_tokens": 6, "n": 2, "seed": 1}
    choices = client.post("/v1/completions", json=body).json()["choices"]
    assert [choice["index"] for choice in choices] == [0, 1, 2, 3]
    assert choices[0]["text"] == drawn(run, "a", 6, seed=1, temperature=1.0)
    assert choices[2]["text"] == drawn(run, "bcdef", 6, seed=1, temperature=1.0)
    assert choices[0]["text"] != choices[1]["text"]


def test_a_conversation_is_answered_streamed_or_not(client):
    messages = [{"role": "user", "content": [{"type": "text", "text": "?"}]}]
    body = {"model": "small", "messages": messages, "max_tokens": 3, "temperature": 0}
    whole = client.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]
    events = streamed(client, "/v1/chat/completions", body)
    assert events[0]["choices"][0]["delta"]["role"] == "assistant"
    said = "".join(event["choices"][0]["delta"].get("content", "") for event in events)
    assert said == whole["content"] and whole["role"] == "assistant"


@pytest.mark.slow
def test_what_an_encoder_reads_is_counted(base_config):
    settings = {"model.architecture": "encoder_decoder", "objective": "span"}
    run = small_run(base_config, **settings)
    with client_of(service_of(run)) as client:
        body = {"model": "small", "prompt": "abcdef", "max_tokens": 1}
        usage = client.post("/v1/completions", json=body).json()["usage"]
    assert usage["prompt_tokens"] == len(run.frame.encoder_input(list(b"abcdef"))) >= 6


ASKED = {"model": "small", "prompt": "x"}
TALKED = {"model": "small", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1}


@pytest.mark.parametrize(
    ("path", "body", "status", "says"),
    [
        ("completions", ASKED | {"model": "other"}, 404, "'other' is not served; use small"),
        ("completions", ASKED | {"prompt": "x" * 99}, 400, "more than the 32 positions"),
        ("completions", ASKED | {"max_tokens": 99}, 400, "ask for fewer tokens"),
        ("completions", ASKED | {"temperature": -1}, 400, "temperature"),
        ("completions", ASKED | {"temperature": "1"}, 400, "temperature"),
        ("completions", ASKED | {"prompt": [300]}, 400, "use ids from 0 to 255"),
        ("completions", ASKED | {"best_of": 2}, 400, "best_of"),
        ("completions", ASKED | {"echo": True}, 400, "echo"),
        ("completions", ASKED | {"prompt": "x" * 3000}, 413, "more than 2000 bytes"),
        ("completions", b'{"model": "small", "prompt": "\\ud800"}', 400, "unicode"),
        ("completions", ASKED | {"n": 16, "prompt": ["x"] * 64}, 400, "than the 64 that may wait"),
        ("completions", ASKED | {"prompt": ["x", 1]}, 400, "prompt.1: Input should be a valid str"),
        ("completions", b"", 400, "the body: Field required"),
        ("completions", b'{"model"', 400, "the body is not JSON: "),
        (
            "chat/completions",
            TALKED | {"top_logprobs": 2},
            400,
            "top_logprobs needs logprobs: true",
        ),
        ("chat/completions", TALKED | {"max_completion_tokens": 2}, 400, "give one of max_tokens"),
        ("completions", b"[" * 1000, 400, ""),
        ("completions", b"\xff", 400, ""),
        ("classify", {"model": "small", "inputs": ["x"]}, 404, "does not answer /v1/classify"),
        ("load_lora_adapter", {"lora_name": "x"}, 400, "--adapters=DIR"),
        ("unload_lora_adapter", {"lora_name": "x"}, 404, "is not served"),
    ],
)
def test_what_cannot_be_answered_gets_a_status_and_a_line(client, path, body, status, says):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    response = client.post(f"/v1/{path}", content=content, headers=headers)
    assert response.status_code == status, response.text
    assert says in response.json()["error"]["message"]


def test_pages_of_other_sites_and_forms_are_refused(client):
    for other in ("http://example.org", "http://[", "null", ""):
        assert client.get("/v1/models", headers={"Origin": other}).status_code == 403
    assert client.get("/v1/models", headers={"Origin": "http://localhost"}).status_code == 200
    assert client.get("/v1/models", headers={"Host": "example.org"}).status_code == 403
    assert client.post("/v1/completions", data={"prompt": "x"}).status_code == 415
    page = client.get("/")
    assert page.status_code == 200 and "http://" not in page.text and "https://" not in page.text


def test_a_server_that_still_compiles_can_be_ended(run):
    service, compiled = service_of(run), []

    def compile_for_ever():
        while len(compiled) < 1000:
            compiled.append(time.sleep(0.01))
            yield

    service.compile = compile_for_ever
    with TestClient(make_app(service, Limits()), base_url="http://localhost") as client:
        assert client.get("/healthz").status_code == 200
        assert client.get("/readyz").status_code == 503
    assert len(compiled) < 1000 and not service.engine.alive


def test_softmaxes_are_shown_in_the_order_of_their_table(client):
    body = {"model": "small", "text": "x", "top": 3}
    found = client.post("/v1/next_tokens", json=body).json()["softmaxes"]
    assert list(found) == list(SOFTMAXES) and next(iter(found)) == "softmax"
    assert len(found["sparsemax"]["tokens"]) == 3 and found["top 4"]["support"] == 4


def test_metrics_count_what_was_asked(client):
    client.get("/nothing")
    text = client.get("/metrics").text
    assert 'lab_requests_total{path="other",status="404"}' in text
    assert "lab_slots 3.0" in text


def test_who_has_no_token_is_refused_but_for_health(run):
    with client_of(service_of(run), token="secret-of-a-test") as client:
        assert client.get("/healthz").status_code == 200
        for sent in (None, "Bearer wrong", "secret-of-a-test"):
            headers = {} if sent is None else {"Authorization": sent}
            refused = client.get("/v1/models", headers=headers)
            assert refused.status_code == 401 and refused.headers["www-authenticate"] == "Bearer"
        headers = {"Authorization": "Bearer secret-of-a-test"}
        assert client.get("/v1/models", headers=headers).status_code == 200


def test_a_server_listens_for_other_machines_only_with_a_token(tmp_path):
    with pytest.raises(UserError, match=r"--host=0\.0\.0\.0 lets other machines ask; add --token"):
        Address(host="0.0.0.0")
    file = tmp_path / "token"
    file.write_text("short\n")
    with pytest.raises(UserError, match="at least 16 characters"):
        Address("0.0.0.0", 0, str(file)).read_token()
    file.write_text("0123456789abcdef\n")
    assert Address("0.0.0.0", 0, str(file)).read_token() == "0123456789abcdef"
    listening = Address(port=0).listen()
    with listening, pytest.raises(UserError, match="--port=0 for any that is free"):
        Address(port=listening.getsockname()[1]).listen()
