"""Mistreats a server: requests made from its own OpenAPI document by schemathesis, huge prompts,
clients that are slow or leave, wrong tokens; each must get a status of its own, and the server's
memory must stay as it is.

Command  python experiments/serving_abuse.py [--folder=DIR] [--examples=50]
         (pip install -e ".[serve-test]"; about five minutes)
Writes   experiments/results/serving.json, under "abuse"

The model is that of experiments/serving.py.
"""

import argparse
import asyncio
import contextlib
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from typing import Any

import httpx

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from experiments.serving import Server, memory, start, stop, train
from lm.experiment.provenance import commit, versions

TOKEN = "a-token-of-this-experiment"
HEADERS = {"Authorization": f"Bearer {TOKEN}"}
ASKED = {"model": "clm", "prompt": "def ", "seed": 0}
JSON = "Content-Type: application/json\r\n"


def wrong_tokens(url: str) -> dict[str, int]:
    """The status for each wrong way to send a token, and for the right one."""
    ways = {
        "none": {},
        "wrong": {"Authorization": "Bearer wrong"},
        "empty": {"Authorization": "Bearer"},
        "basic": {"Authorization": f"Basic {TOKEN}"},
        "longer": {"Authorization": f"Bearer {TOKEN}x"},
        "right": HEADERS,
    }
    return {
        name: httpx.post(f"{url}/v1/completions", json=ASKED, headers=headers).status_code
        for name, headers in ways.items()
    }


def bad_bodies(url: str) -> dict[str, int]:
    """The status for each body that cannot be answered."""
    bodies: dict[str, Any] = {
        "a prompt of 900 kB": json.dumps(ASKED | {"prompt": "x" * 900_000}),
        "a prompt of 5 MB": json.dumps(ASKED | {"prompt": "x" * 5_000_000}),
        "200,000 token ids": json.dumps(ASKED | {"prompt": [1] * 200_000}),
        "a token that there is not": json.dumps(ASKED | {"prompt": [10**6]}),
        "more tokens than positions": json.dumps(ASKED | {"max_tokens": 10**6}),
        "JSON 100,000 levels deep": "[" * 100_000,
        "no JSON": "{",
        "no UTF-8": b'{"model": "clm", "prompt": "\xff"}',
        "half a character": '{"model": "clm", "prompt": "\\ud800"}',
        "NaN": '{"model": "clm", "prompt": "x", "temperature": NaN}',
        "a number of 10,000 digits": '{"model": "clm", "prompt": "x", "seed": '
        + "9" * 10_000
        + "}",
        "another model": json.dumps(ASKED | {"model": "other"}),
        "a key that there is not": json.dumps(ASKED | {"best_of": 2}),
    }
    headers = HEADERS | {"Content-Type": "application/json"}
    found = {}
    for name, body in bodies.items():
        response = httpx.post(f"{url}/v1/completions", content=body, headers=headers, timeout=60)
        assert response.json()["error"]["message"], name
        found[name] = response.status_code
    form = httpx.post(f"{url}/v1/completions", data={"prompt": "x"}, headers=HEADERS)
    return found | {"a form": form.status_code}


async def slow_clients(host: str, port: int, count: int = 50) -> dict[str, Any]:
    """What clients get that send headers, or a body, a byte at a time."""
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {TOKEN}\r\n"

    async def drip(first: str, then: str) -> tuple[str, float]:
        begin = time.monotonic()
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(first.encode())
        answer = asyncio.create_task(reader.read(1 << 16))
        with contextlib.suppress(ConnectionError):
            for letter in then:
                writer.write(letter.encode())
                await writer.drain()
                await asyncio.wait({answer}, timeout=0.5)
                if answer.done():
                    break
        found = await asyncio.wait_for(answer, 60)
        writer.close()
        status = re.match(rb"HTTP/1.1 (\d+)", found)
        return status[1].decode() if status else "closed", time.monotonic() - begin

    ways = {
        "headers": ("", head + "X: " + "x" * 1000),
        "body": (head + JSON + "Content-Length: 2000\r\n\r\n", "{" + " " * 1000),
    }
    found = {}
    for name, way in ways.items():
        answers = await asyncio.gather(*(drip(*way) for _ in range(count)))
        statuses = Counter(status for status, _ in answers)
        found[name] = {"answers": statuses, "seconds": max(seconds for _, seconds in answers)}
    return found


async def leaving_clients(url: str, count: int = 300) -> None:
    """Clients that leave while they are answered, some by a stream, some without reading."""
    body = ASKED | {"max_tokens": 800, "temperature": 1.0}
    async with httpx.AsyncClient(base_url=url, headers=HEADERS, timeout=60) as client:

        async def leave(number: int) -> None:
            streams = number % 2 == 0
            with contextlib.suppress(httpx.HTTPError, TimeoutError):
                async with asyncio.timeout(0.2 + 0.01 * number):
                    request = body | {"stream": streams}
                    async with client.stream("POST", "/v1/completions", json=request) as answer:
                        async for _ in answer.aiter_raw():
                            if number % 3 == 0:
                                await asyncio.sleep(60)

        await asyncio.gather(*(leave(number) for number in range(count)))


def gauge(url: str, name: str) -> float:
    """A metric without labels."""
    text = httpx.get(f"{url}/metrics", headers=HEADERS).text
    found = re.search(rf"^{name} (\S+)$", text, re.MULTILINE)
    assert found is not None
    return float(found[1])


def until_idle(url: str) -> float:
    """Seconds until no slot is in use and nothing waits."""
    begin = time.monotonic()
    while gauge(url, "lab_slots_in_use") + gauge(url, "lab_waiting"):
        assert time.monotonic() < begin + 60
        time.sleep(0.1)
    return time.monotonic() - begin


def schemathesis(url: str, examples: int, folder: pathlib.Path) -> dict[str, Any]:
    """What all checks of schemathesis find with requests made from the OpenAPI document."""
    program = str(pathlib.Path(sys.executable).with_name("schemathesis"))
    # No schema says that a prompt and its continuation have to fit together, which is a 400.
    accepted = ["2xx", "400", "401", "404", "429"]
    config = folder / "schemathesis.toml"
    config.write_text(f"[checks.positive_data_acceptance]\nexpected-statuses = {accepted}\n")
    command = [program, f"--config-file={config}", "run", f"{url}/openapi.json", "--checks=all"]
    command += [f"--max-examples={examples}", "--seed=1", "--exclude-path-regex=adapter"]
    command += ["--header", f"Authorization: Bearer {TOKEN}", "--suppress-health-check=all"]
    command += ["--request-timeout=120", "--max-response-time=120"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    print(done.stdout[-30000:], done.stderr[-2000:], flush=True)
    cases = re.search(r"(\d+) generated", done.stdout)
    return {"exit_status": done.returncode, "cases": int(cases[1]) if cases else 0}


def rounds(server: Server, examples: int, folder: pathlib.Path) -> dict[str, Any]:
    """Everything once to warm up, and then once more, with the memory before and after."""
    url, found = server.url, dict[str, Any]()
    address = httpx.URL(url)
    assert address.port is not None
    before = httpx.post(f"{url}/v1/completions", json=ASKED, headers=HEADERS).json()["choices"]
    for turn in range(2):
        begin = memory(server)
        found["wrong_tokens"] = wrong_tokens(url)
        found["bad_bodies"] = bad_bodies(url)
        asyncio.run(leaving_clients(url))
        found["seconds_until_idle_after_300_left"] = until_idle(url)
        found["slow"] = asyncio.run(slow_clients(address.host, address.port))
        if turn == 0:
            found["schemathesis"] = schemathesis(url, examples, folder)
        found[f"memory_mb_round_{turn + 1}"] = {"before": begin, "after": memory(server)}
    found["cancelled"] = gauge(url, "lab_cancelled_total")
    after = httpx.post(f"{url}/v1/completions", json=ASKED, headers=HEADERS).json()["choices"]
    assert before == after
    return found


def main() -> None:
    """Mistreats a server, and writes what was found."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=pathlib.Path)
    parser.add_argument("--examples", type=int, default=50)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        workdir = train(given.folder or pathlib.Path(temporary))
        token = pathlib.Path(temporary) / "token"
        token.write_text(TOKEN)
        server = start(workdir, f"--token_file={token}")
        result = rounds(server, given.examples, token.parent)
        result["exit_status"] = stop(server)
    result |= {"commit": commit(), "cores": len(os.sched_getaffinity(0)), "versions": versions()}
    print(json.dumps(result, indent=2))
    written = ROOT / "experiments" / "results" / "serving.json"
    found = json.loads(written.read_text()) if written.exists() else {}
    written.write_text(json.dumps(found | {"abuse": result}, indent=2) + "\n")


if __name__ == "__main__":
    main()
