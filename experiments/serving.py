"""Loads a server: 200 clients at the same time, each answer compared with what `run.py generate`
draws for the same request; in turn with that, the same requests one at a time, to a server of one
slot.

Command  python experiments/serving.py [--clients=200] [--seconds=30] [--rounds=4] [--slots=32]
         [--folder=DIR] (pip install -e ".[serve]" httpx; about eight minutes)
Writes   experiments/results/serving.json

The model is configs/clm.py:tiny with 6 layers of 512 features, trained here for 4 steps: 19 million
parameters, which a step of one text has to read as well as a step of all.
Half of the requests are streamed; they differ in prompt, length, sampling and stop strings. Server
and clients share the machine: what the clients take is lost to the server. Tokens per second of the
server's own processor time do not depend on what else runs.
"""

import argparse
import asyncio
import itertools
import json
import os
import pathlib
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from typing import Any, NamedTuple

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from lm.experiment.provenance import commit, versions

SAMPLINGS: tuple[dict[str, Any], ...] = (
    {"temperature": 0.0},
    {"temperature": 1.0},
    {"temperature": 0.8, "top_k": 20, "top_p": 0.9},
    {"temperature": 1.2, "min_p": 0.05},
)
SIZES = ("model.d_model=512", "model.num_layers=6", "model.max_seq_len=256", "data.seq_len=128")
SIZES += (
    "steps=4",
    "schedule.warmup_steps=1",
    "batch_size=4",
    "evaluation.num_examples=8",
    "log.trackers=()",
)
STOPS = ((), ("\n",), ("(", "self"))
ALONE_SECONDS = 15
PATIENCE = 600  # seconds for an answer: on a busy machine, clients that give up leave work undone


class Server(NamedTuple):
    """A server's process, and where it answers."""

    process: subprocess.Popen
    url: str


class Task(NamedTuple):
    """A request, and the text that is to be answered."""

    body: dict[str, Any]
    expected: str


def train(folder: pathlib.Path) -> pathlib.Path:
    """A run's folder, trained where there is none yet."""
    workdir = folder / "clm"
    if not (workdir / "result.json").exists():
        command = [sys.executable, "run.py", "train", "--config=configs/clm.py:tiny"]
        command += [f"--workdir={workdir}", *(f"--config.{key}" for key in SIZES)]
        subprocess.run(command, cwd=ROOT, check=True)
    return workdir


def start(workdir: pathlib.Path, *flags: str, seconds: float = 600) -> Server:
    """Starts a server on a free port, and waits until it is ready."""
    command = [sys.executable, "run.py", "serve", f"--workdir={workdir}", "--port=0", *flags]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    found = None
    for line in process.stdout:
        print(line, end="")
        found = found or re.search(r"listening on (http://\S+),", line)
        if line.startswith("ready"):
            break
    assert found is not None, "the server has ended"
    return Server(process, found[1])


def stop(server: Server) -> int:
    """Ends a server by SIGTERM; its exit status."""
    server.process.send_signal(signal.SIGTERM)
    return server.process.wait(timeout=120)


def memory(server: Server) -> float:
    """Resident memory of the server in MB."""
    status = pathlib.Path(f"/proc/{server.process.pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) / 1024


def processor_seconds(server: Server) -> float:
    """Processor time that the server has taken, of all its threads."""
    fields = pathlib.Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def make_tasks(workdir: pathlib.Path) -> list[Task]:
    """Requests of all kinds, with the texts that `generate` draws for them, without a server."""
    import jax
    import numpy as np
    from etils import epath

    from lm.checkpoints.restore import restore
    from lm.generation import Continuation, generate, prompt_ids

    run = restore(epath.Path(workdir))
    words = ("def ", "class Point:\n    ", "import os\n\n\n", "for i in range(", "return ", "x")
    prompts = [word * repeat for word, repeat in itertools.product(words, (1, 9))]
    tasks = []
    for number, sampling in enumerate(SAMPLINGS):
        ids = prompt_ids(run.tokenizer, prompts, run.opens)
        with jax.set_mesh(run.program.mesh):
            steps = generate(
                run.program.model, run.params, ids, max_new_tokens=64, seed=number, **sampling
            )
            tokens = np.stack(list(steps), axis=1)
        for index, (prompt, drawn) in enumerate(zip(prompts, tokens, strict=True)):
            stops, size = STOPS[index % len(STOPS)], (64, 40, 17)[index % 3]
            text = Continuation(run.tokenizer, ids[index], stops)
            for token in drawn[:size].tolist():
                if not text.ended:
                    text.add(token)
            body = {"model": workdir.name, "prompt": prompt, "max_tokens": size, "seed": number}
            body |= sampling | ({"stop": list(stops)} if stops else {})
            tasks.append(Task(body, text.text))
    return tasks


class Tally:
    """What the clients have seen: times in seconds, tokens, and what went wrong."""

    def __init__(self):
        """Nothing yet."""
        self.seconds: list[float] = []
        self.first: list[float] = []
        self.tokens = 0
        self.wrong: Counter[str] = Counter()


async def ask(client: Any, task: Task, streams: bool, tally: Tally) -> None:
    """Sends one request, and compares the answer."""
    begin = time.perf_counter()
    body = task.body | {"stream": streams}
    text = ""
    try:
        if streams:
            body["stream_options"] = {"include_usage": True}
            async with client.stream("POST", "/v1/completions", json=body) as response:
                response.raise_for_status()
                async for line in response.aiter_lines():
                    if not line.startswith("data: {"):
                        continue
                    event = json.loads(line[6:])
                    if "error" in event:
                        raise RuntimeError(event["error"]["message"])
                    if not text and event["choices"]:
                        tally.first.append(time.perf_counter() - begin)
                    text += "".join(choice["text"] for choice in event["choices"])
                    tally.tokens += event.get("usage", {}).get("completion_tokens", 0)
        else:
            response = await client.post("/v1/completions", json=body)
            response.raise_for_status()
            answer = response.json()
            text = answer["choices"][0]["text"]
            tally.tokens += answer["usage"]["completion_tokens"]
    except Exception as error:
        tally.wrong[f"{type(error).__name__}: {error}"[:100]] += 1
        return
    tally.seconds.append(time.perf_counter() - begin)
    if text != task.expected:
        tally.wrong["another text"] += 1


async def load(url: str, tasks: list[Task], clients: int, seconds: float) -> Tally:
    """So many clients, each of which sends one request after the other."""
    import httpx

    tally, end = Tally(), time.perf_counter() + seconds
    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)

    async def one(number: int, client: httpx.AsyncClient) -> None:
        for turn in itertools.count():
            if time.perf_counter() > end:
                return
            task = tasks[(number * 7 + turn) % len(tasks)]
            await ask(client, task, (number + turn) % 2 == 0, tally)

    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=PATIENCE) as client:
        await asyncio.gather(*(one(number, client) for number in range(clients)))
    return tally


def quantile(values: list[float], share: float) -> float:
    """The value that a share of all values does not exceed."""
    return sorted(values)[min(int(share * len(values)), len(values) - 1)]


class Round(NamedTuple):
    """A load: what its clients saw, in how many seconds, of how much of the server's processor
    time, and the server's memory in MB after it.
    """

    tally: Tally
    seconds: float
    processor_seconds: float
    memory_mb: float

    @property
    def rates(self) -> tuple[float, float]:
        """Tokens per second, and per second of the server's processor time."""
        return self.tally.tokens / self.seconds, self.tally.tokens / self.processor_seconds


def measure(server: Server, tasks: list[Task], clients: int, seconds: float) -> Round:
    """A load of so many clients."""
    begin, used = time.perf_counter(), processor_seconds(server)
    tally = asyncio.run(load(server.url, tasks, clients, seconds))
    seconds, used = time.perf_counter() - begin, processor_seconds(server) - used
    found = Round(tally, seconds, used, memory(server))
    print(f"{clients} clients: {json.dumps(summary([found]))}", flush=True)
    return found


def summary(rounds: list[Round]) -> dict[str, Any]:
    """Rates (medians over rounds) and times of loads."""
    tallies = [each.tally for each in rounds]
    times = {
        "seconds": [each for tally in tallies for each in tally.seconds],
        "seconds_to_first_text": [each for tally in tallies for each in tally.first],
    }
    wrong = sum((tally.wrong for tally in tallies), Counter[str]())
    rates = [statistics.median(kind) for kind in zip(*(each.rates for each in rounds), strict=True)]
    return {
        "requests": len(times["seconds"]),
        "wrong": dict(wrong),
        "tokens_per_second": rates[0],
        "tokens_per_processor_second": rates[1],
        **{
            name: {"median": statistics.median(values), "p99": quantile(values, 0.99)}
            for name, values in times.items()
        },
        "memory_mb": [each.memory_mb for each in rounds],
    }


def main() -> None:
    """Measures both loads in turn, and writes what was found."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--slots", type=int, default=32)
    parser.add_argument("--folder", type=pathlib.Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        workdir = train(given.folder or pathlib.Path(temporary))
        tasks = make_tasks(workdir)
        sizes, patience = (1, given.slots), f"--request_timeout={PATIENCE}"
        servers = [start(workdir, f"--slots={size}", patience) for size in sizes]
        loads = (1, ALONE_SECONDS), (given.clients, given.seconds)
        of = commit()
        rounds: tuple[list[Round], list[Round]] = [], []
        for turn in range(given.rounds):
            print(f"round {turn + 1} of {given.rounds}", flush=True)
            for server, (clients, seconds), found in zip(servers, loads, rounds, strict=True):
                found.append(measure(server, tasks, clients, seconds))
        statuses = [stop(server) for server in servers]
    ratios = [
        [a / b for a, b in zip(together.rates, alone.rates, strict=True)]
        for alone, together in zip(*rounds, strict=True)
    ]
    by_clock, of_work = zip(*ratios, strict=True)
    result = {
        "clients": given.clients,
        "slots": given.slots,
        "one_at_a_time": summary(rounds[0]),
        "together": summary(rounds[1]),
        "ratios_of_tokens_per_second": by_clock,
        "ratios_of_tokens_per_processor_second": of_work,
        "exit_statuses": statuses,
        "load_of_the_machine": os.getloadavg(),
        "commit": of,
        "cores": len(os.sched_getaffinity(0)),
        "versions": versions(),
    }
    print(
        f"{statistics.median(by_clock):.2f} times the tokens per second of one at a time, "
        f"{statistics.median(of_work):.2f} times per processor second; memory after each round "
        f"{result['together']['memory_mb']} MB; exit statuses {statuses}"
    )
    written = ROOT / "experiments" / "results" / "serving.json"
    found = json.loads(written.read_text()) if written.exists() else {}
    written.write_text(json.dumps(found | {"load": result}, indent=2) + "\n")


if __name__ == "__main__":
    main()
