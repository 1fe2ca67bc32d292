"""Formats plans as the lines that `plan` prints."""

from collections.abc import Mapping

from lm.experiment.plan.mesh_search import Tried
from lm.experiment.plan.roofline import Plan

_GIB = 2**30
_ROW = "  {:24} {:>12}"


def plan_lines(plan: Plan, name: str) -> list[str]:
    """A plan: memory of a device, what a training step takes, and its roofline."""
    trained, count = plan.num_params[1], plan.num_params[0]
    model = f"{count:,} parameters" + (f", {trained:,} trained" if trained < count else "")
    lines = [f"{name} on {plan.slice.name}: {devices_of(plan)}, mesh {mesh_of(plan.mesh)}", model]
    lines += [plan.paths, *(f"assumed: {each}" for each in plan.assumed)]
    return [
        *lines,
        "",
        *_memory(plan),
        "",
        *_step(plan),
        "",
        *_collectives(plan),
        "",
        *_bound(plan),
    ]


def devices_of(plan: Plan) -> str:
    """Such as "16 devices TPU v5 lite (16 chips)"."""
    on = plan.slice
    chips = f" ({on.chips} chips)" if on.chips != len(on.devices) else ""
    return f"{len(on.devices)} x {on.devices[0].device_kind}{chips}"


def mesh_of(mesh: Mapping[str, int]) -> str:
    """Such as "data 1, fsdp 16, tensor 1"."""
    return ", ".join(f"{axis} {size}" for axis, size in mesh.items())


def _memory(plan: Plan) -> list[str]:
    of, evaluation = plan.train.memory, plan.evaluation.memory
    rows = {
        "parameters": of.parameters,
        "optimizer state": of.optimizer_state,
        "batch": of.batch,
        "counters and padding": of.other,
        "temporaries": of.temporaries,
        "results": of.results,
        "program": of.program,
        "training step": of.total,
        "evaluation step": evaluation.total,
    }
    lines = ["memory of a device"] + [_ROW.format(k, size_of(v)) for k, v in rows.items()]
    free = _ROW.format("free", size_of(plan.memory - plan.bytes))
    return [*lines, f"{free} of {size_of(plan.memory)}"]


def _step(plan: Plan) -> list[str]:
    unknown = f"  {plan.unknown_loops} loops of unknown trips are counted once"
    kernels = f", and not in {plan.opaque_kernels} calls of kernels" if plan.opaque_kernels else ""
    return [
        "a training step of a device",
        _ROW.format("model FLOPs", f"{plan.model_flops:.3g}")
        + "  3 times the products of the forward pass",
        _ROW.format("compiled FLOPs", f"{plan.product_flops:.3g}")
        + f"  products of the compiled step, with what it recomputes{kernels}",
        _ROW.format("memory traffic", size_of(plan.memory_bytes))
        + (unknown if plan.unknown_loops else ""),
    ]


def _collectives(plan: Plan) -> list[str]:
    if not plan.collectives:
        return ["no collectives"]
    lines = [f"  {'collectives':20} {'axes':18} {'count':>7} {'arrays':>12} {'sent':>12}"]
    for each in plan.collectives:
        axes = "+".join(each.axes)
        sizes = f"{size_of(each.bytes):>12} {size_of(each.sent):>12}"
        lines.append(f"  {each.kind:20} {axes:18} {each.runs:>7} {sizes}")
    return lines


def _bound(plan: Plan) -> list[str]:
    times, compiled = plan.times, f"{plan.train.seconds:.0f} s + {plan.evaluation.seconds:.0f} s"
    lines = []
    if plan.seconds is not None and plan.mfu is not None:
        parts = ", ".join(f"{name} {duration(value)}" for name, value in times.items())
        lines = [
            f"a step takes at least {duration(plan.seconds)} ({parts})",
            f"MFU at most {plan.mfu:.0%}: a bound by peak rates, not a promise",
        ]
    return [*lines, f"compiled for {plan.slice.name} in {compiled} (training, evaluation)"]


def best_mesh_line(tried: Tried) -> str:
    """The mesh to take, as flags."""
    flags = " ".join(f"--config.mesh.{axis}={size}" for axis, size in tried.mesh.items())
    return f"least: {flags}"


def tried_line(tried: Tried) -> str:
    """A mesh, the roofline of a step and the memory that it takes."""
    mesh = f"  {mesh_of(tried.mesh):28}"
    if tried.plan is None:
        return f"{mesh} {tried.refused}"
    seconds = "" if tried.plan.seconds is None else f"{duration(tried.plan.seconds):>10}"
    return f"{mesh} {seconds} {size_of(tried.plan.bytes):>12}"


def size_of(number: float) -> str:
    """Bytes in the largest unit of which there is one, such as "1.50 GiB"."""
    for unit, size in (("GiB", _GIB), ("MiB", 2**20), ("KiB", 2**10)):
        if abs(number) >= size:
            return f"{number / size:,.2f} {unit}"
    return f"{number:,.0f} B"


def duration(seconds: float) -> str:
    """Seconds in a unit that suits them, such as "12.3 ms"."""
    for unit, size in (("h", 3600.0), ("min", 60.0), ("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} us"
