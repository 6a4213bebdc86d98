"""How plans and results read: the texts of the command line, for people."""

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shiftadd_tvm.console import clock, size
from shiftadd_tvm.packed import kind
from shiftadd_tvm.tuner import CANDIDATES

if TYPE_CHECKING:
    from shiftadd_tvm.compiler import CompileReport
    from shiftadd_tvm.diagnosis import Check
    from shiftadd_tvm.quantization import QuantizeReport
    from shiftadd_tvm.tune_workflow import TunePlan
    from shiftadd_tvm.tuner import TuneReport
    from shiftadd_tvm.workflow import CompilePlan, QuantizePlan

Fields = dict[str, object]


def _path(path: Path) -> str:
    return shlex.quote(str(path))


def _rows(rows: Mapping[str, object]) -> str:
    width = max(len(name) for name in rows)
    return "\n".join(f"  {name:<{width}}  {value}" for name, value in rows.items())


def quantize_plan(source: str, plan: "QuantizePlan", memory: int | None = None) -> Fields:
    """Return the plan's table."""
    fields, settings = plan.fields, plan.settings
    rotation = f"Hadamard, up to {settings.max_rotation}" if settings.max_rotation else "none"
    rows: Fields = {
        "source": f"{source} ({fields['model_type']})",
        "weights": _stored(str(fields["stored_as"])),
        "output": plan.output,
        "layers": f"{len(fields['layers'])} linears",
        "bits": f"{fields['nominal_bits']:g} ({fields['effective_bits']:.2f} effective)",
        "scales": f"{settings.scale_format}, rotation {rotation}",
        "size": f"about {size(fields['estimated_bytes'])}",
    }
    if "examples" in fields:
        count = fields["examples"]
        rows["calibration"] = f"{count} examples" if count else "none: no --calib was given"
    elif settings.calibrated:
        text = settings.calibration_text or "text that the model writes itself"
        own = f", {settings.own_text:.0%} written by the model" if settings.own_text else ""
        rows["calibration"] = f"{settings.tokens} tokens of {text}{own}"
        rows["effort"] = f"{settings.effort}: {settings.steps} steps of tuning"
    return rows | ({"memory": f"about {size(memory)}"} if memory else {})


def _stored(kind: str) -> str:
    """Return how a checkpoint's weights are stored, and what follows for whole-number formats."""
    plain = kind.startswith(("safetensors", "ONNX"))
    return kind if plain else f"{kind}: dequantized, then fitted anew"


def resumable(plan: "QuantizePlan") -> str:
    """Return what an interrupted quantization leaves behind."""
    output = plan.output
    if "examples" in plan.fields:  # a graph: quick, so that nothing is kept
        return f"{output} was not written"
    return (
        f"finished layers are kept in {output}.partial, and the same command goes on after them; "
        f"{output} was not written"
    )


def quantize_summary(plan: "QuantizePlan", report: "QuantizeReport") -> str:
    """Return the result, and what to do next."""
    worst = max(report.layers, key=lambda layer: layer.weight_error)
    rows = {
        "linears": f"{size(report.linear_bytes)}, {report.effective_bits:.2f} effective bits "
        f"({report.nominal_bits:g} nominal)",
        "largest error": f"{worst.weight_error:.3f} of {worst.name}'s squared weights",
        "time": clock(report.seconds),
        "memory": size(report.peak_memory_bytes),
    }
    if report.untouched:
        rows["untouched"] = (
            f"{len(report.untouched)} linears of experts that no calibration token went through: "
            "coded by their weights alone; calibrate on more tokens"
        )
    command = f"shiftadd-tvm compile {_path(plan.output)}"
    return f"packed model {plan.output}\n{_rows(rows)}\nnext: {command}"


def compile_plan(source: str, plan: "CompilePlan") -> Fields:
    """Return the plan's table."""
    backend, first = plan.backend, plan.quantize
    runs = backend.runs_here()
    why = "" if runs else ": this machine cannot run the target; run shiftadd-tvm verify there"
    rows: Fields = {"source": source}
    if first is not None:
        kept = quantize_plan(source, first)
        rows |= {"packed model": f"{plan.packed} (made first)"}
        rows |= {name: kept[name] for name in ("weights", "layers", "bits", "size")}
    elif plan.reused:
        rows |= {"packed model": f"{plan.packed} (made earlier from the same source)"}
    if first is None:
        stored = [file.stat().st_size for file in plan.packed.glob("model*.safetensors")]
        rows |= {"size": f"about {size(sum(stored))}"}
    return rows | {
        "output": plan.output,
        "target": backend.name,
        "verify": "against the packed model" if plan.settings.verify and runs else f"no{why}",
    }


def compile_fields(report: "CompileReport") -> Fields:
    """Return the report as JSON fields."""
    return asdict(report)


def compile_summary(plan: "CompilePlan", report: "CompileReport") -> str:
    """Return the result, and what to do next."""
    counts = ", ".join(f"{count} {kind}" for kind, count in report.kernels.items() if count)
    rows = {
        "library": size(report.library_bytes),
        "parameters": size(report.parameter_bytes),
        "kernels": counts,
        "time": clock(report.seconds),
    }
    if report.verify is None:
        rows["verified"] = "no"
    else:
        rows["verified"] = f"largest error of a logit {report.verify['max_logit_error']:.2g}"
    if report.package:
        rows["package"] = (
            f"{report.package['kind']}, {size(int(str(report.package['bytes'])))} beside "
        )
        rows["package"] += "parameters and tokenizer"
    return (
        f"artifact {plan.output} for {report.target}\n{_rows(rows)}\nnext: {_after_compile(plan)}"
    )


def _after_compile(plan: "CompilePlan") -> str:
    """Return what to do with an artifact: run it, or take it to a machine that can."""
    place = _path(plan.output)
    if plan.settings.package and plan.backend.runs_here():
        return f"cmake -S YOUR_SOURCES -B build -DCMAKE_PREFIX_PATH={_path(plan.output.resolve())}"
    if plan.backend.runs_here():
        if kind(plan.packed) == "onnx":
            return f"shiftadd-tvm run {place} --inputs inputs.npz"
        return f"shiftadd-tvm run {place} --prompt 'The capital of France is'"
    return (
        f"copy {place} to a machine that can run {plan.backend.name} "
        f"({', '.join([plan.backend.machine, *plan.backend.features])}), and there: "
        f"shiftadd-tvm verify {_path(Path(plan.output.name))}"
    )


def tune_plan(plan: "TunePlan") -> Fields:
    """Return the plan's table."""
    request = plan.request
    minutes = "" if request.minutes is None else f", at most {request.minutes:g} minutes in all"
    made = " (made first)" if plan.quantize is not None else ""
    shapes = f"the shapes of {request.synthetic or 'shipped logs'}"
    source = f"{request.source}{made}" if request.source else shapes
    if request.stage in ("measure", "commit"):
        return {"stage": request.stage, "candidates": source}
    if request.stage == "build":
        rows = {"stage": request.stage, "source": source, "target": request.preset}
        return {**rows, "budget": f"{request.trials} candidates a task", "output": request.output}
    return {
        "source": source,
        "target": f"{request.preset}, {request.threads} threads",
        "budget": f"{request.trials} trials a task{minutes}",
        "output": request.output or "the user's cache",
    }


def tune_fields(report: "TuneReport") -> Fields:
    """Return the report as JSON fields."""
    return asdict(report)


def tune_summary(report: "TuneReport") -> str:
    """Return each task's times, and what to do next."""
    if report.measured == "not yet":
        return _candidates(report)
    rows: Fields = {
        task["name"]: f"{task['before_us']:.1f} us untuned, {task['after_us']:.1f} us tuned "
        f"({task['trials']} trials, {task['failed']} failed, {task['weights']} weights)"
        for task in report.tasks
    }
    if report.left:
        rows["not reached"] = f"{len(report.left)} tasks; the same command goes on with them"
    if report.lookup_rows is not None:
        rows["look-ups pay"] = f"up to {report.lookup_rows} tokens"
    rows["time"] = clock(report.seconds)
    if report.measured == "static-model":
        rows["note"] = "nothing ran: times are of a model of the processor, at 1 GHz"
    if not report.kept:
        rows["note"] = "the board is emulated: its times mean nothing, and no log was written"
    what = "times" if report.output.endswith(".json") else "tuning log"
    return f"{what} {report.output} for {report.target}\n{_rows(rows)}"


def _candidates(report: "TuneReport") -> str:
    rows: Fields = {task["name"]: f"{task['candidates']} candidates" for task in report.tasks}
    file = Path(report.output) / CANDIDATES
    rows["time"] = clock(report.seconds)
    rows["next"] = (
        f"copy {file} to the machine with the GPU, and there: python3 {file.name}; "
        f"put its times.json beside it here, and: shiftadd-tvm tune --stage commit {report.output}"
    )
    return f"candidates {report.output} for {report.target}\n{_rows(rows)}"


def scored(fields: Fields) -> str:
    """Return the sentence of an evaluation."""
    compared = (
        f"KL from the original {fields['kl']:.4f} nats a token, {fields['top1']:.1%} the same top token, "
        if "kl" in fields
        else ""
    )
    return (
        f"perplexity {fields['perplexity']:.4f}, {compared}{fields['tokens']} tokens, "
        f"{fields['effective_bits']:.2f} effective bits, {fields['seconds']:.1f} s"
    )


def verified(artifact: Path, fields: Fields) -> str:
    """Return the sentence of an artifact that passed."""
    return (
        f"{artifact} is whole and right: the largest error of a logit is "
        f"{fields['max_logit_error']:.2g} (at most {fields['tolerance']:.2g}), tokens agree"
    )


def listing(fields: Fields) -> str:
    """Return fields one a line, sizes for people, lists short."""
    rows = {}
    for name, value in fields.items():
        if name.endswith("_bytes") and isinstance(value, int):
            value = f"{size(value)} ({value})"
        elif isinstance(value, list):
            value = ", ".join(map(str, value))
        elif isinstance(value, dict):
            value = ", ".join(f"{key} {entry}" for key, entry in value.items())
        elif isinstance(value, float):
            value = f"{value:.4g}"
        rows[name.replace("_", " ")] = value
    return _rows(rows)


def inspected(fields: Fields) -> str:
    """Return what was found in a file or folder; the table of its kernels, or what it would take."""
    tables: dict[str, Callable[..., str]] = {
        "ops": operations,
        "packed": packed_sizes,
        "quantizing": quantizing,
    }
    plain = {n: value for n, value in fields.items() if n not in tables and value is not None}
    if "supported" in plain:
        plain["supported"] = "yes" if plain["supported"] else "no"
    return "\n".join(
        [listing(plain), *(table(fields[n]) for n, table in tables.items() if n in fields)]
    )


def packed_sizes(rows: Sequence[Mapping[str, float]]) -> str:
    """Return a line for each number of bits: the size of the packed model, and what it takes to run."""
    lines = ["packed model, about:"]
    for row in rows:
        effective = f" ({row['effective_bits']:.2f} effective)" if "effective_bits" in row else ""
        runs = f", {size(row['running_bytes'])} of memory to run" if "running_bytes" in row else ""
        lines.append(f"  {row['bits']} bits{effective}: {size(row['bytes'])}{runs}")
    return "\n".join(lines)


def quantizing(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a line for each method or effort: memory and time."""
    lines = ["to quantize it, about:"]
    for row in rows:
        name = (
            "--method alternating" if row["method"] == "data-free" else f"--effort {row['method']}"
        )
        lines.append(f"  {name}: {size(row['memory_bytes'])} of memory, {clock(row['seconds'])}")
    return "\n".join(lines)


OPERATIONS = ("multiply", "add", "shift", "shuffle", "load")


def operations(kernels: Mapping[str, Mapping[str, object]]) -> str:
    """Return the instructions of each kernel's busiest loop by class; alike kernels share a line."""
    lines: dict[tuple[str, ...], list[str]] = {}
    for name, counts in kernels.items():
        calls = counts["calls"]
        assert isinstance(calls, list)
        free = counts["multiplication_free"]
        verdict = "undecided" if free is None else "yes" if free else "no"
        note = f" (calls {', '.join(calls)})" if calls else ""
        note += "" if counts["loop_decided"] else " (the loop is undecided)"
        cells = [str(counts[key]) for key in (*OPERATIONS, "instructions")]
        operator = name.rstrip("0123456789")
        lines.setdefault((operator, *cells, verdict + note), []).append(name)
    rows: list[tuple[str, ...]] = [("kernel", *OPERATIONS, "all", "multiplication-free")]
    for (_, *numbers), names in lines.items():
        alike = f" and {len(names) - 1} alike" if len(names) > 1 else ""
        rows.append((names[0] + alike, *numbers))
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    head = "instructions of the loop that runs most, by class; verdict over all code of the kernel"
    return "\n".join([head, *(_aligned(row, widths) for row in rows)])


def _aligned(row: Sequence[str], widths: Sequence[int]) -> str:
    """Return cells in columns: the first and last to the left, numbers to the right."""
    first, *numbers, last = row
    middle = "  ".join(f"{cell:>{w}}" for cell, w in zip(numbers, widths[1:-1], strict=True))
    return f"  {first:<{widths[0]}}  {middle}  {last}"


def checks(found: Sequence["Check"]) -> str:
    """Return the doctor's findings, each bad one with its remedy."""
    width = max(len(check.name) for check in found)
    lines = []
    for check in found:
        mark = "ok" if check.ok else "--" if check.optional else "NO"
        lines.append(f"{mark}  {check.name:<{width}}  {check.detail}")
        if not check.ok:
            lines.append(f"    {'':<{width}}  {check.remedy}")
    return "\n".join(lines)


def families(found: Sequence[Mapping[str, str]]) -> str:
    """Return the model types and what they are, one a line."""
    width = max(len(family["name"]) for family in found)
    line = "{name:<{width}}  {kind}  {models}"
    return "\n".join(line.format(width=width, **family) for family in found)


def presets(found: Sequence[Mapping[str, object]]) -> str:
    """Return the target presets, the default marked."""
    lines = []
    for preset in found:
        missing = preset["missing"]
        assert isinstance(missing, list)
        here = "default" if preset["default"] else "runs here" if preset["runs_here"] else ""
        lines.append(f"{preset['name']:<14} {here or 'lacks ' + ', '.join(missing)}")
    return "\n".join(lines)
