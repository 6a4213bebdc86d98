"""The verb `quantize`: parse, call the workflow, print."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shiftadd_tvm import options
from shiftadd_tvm.console import Console
from shiftadd_tvm.errors import UsageError
from shiftadd_tvm.interruption import leaving

if TYPE_CHECKING:
    from shiftadd_tvm.workflow import QuantizePlan

Bits = Annotated[
    str, typer.Option(metavar="B", help="Bits per weight, 1 to 4, or an average such as 2.2.")
]
TargetSize = Annotated[
    str | None,
    typer.Option(
        "--target-size",
        metavar="BYTES",
        help="As many bits as fit into a packed model of that size, such as 90MB; instead of --bits.",
    ),
]
TargetLatency = Annotated[
    str | None,
    typer.Option(
        "--target-latency",
        metavar="TIME",
        help="Time of all linears of a decode step, such as 4.5ms, by --latencies; instead of --bits.",
    ),
]
LatencyTable = Annotated[
    list[Path] | None,
    typer.Option(
        "--latencies",
        metavar="FILE",
        help="What bench --kernel --synthetic NAME --bits B --json wrote, once for each B.",
    ),
]
Method = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Quantizer: shiftadd (calibrated; the default for separable scales, which alone are "
        "tuned) or alternating (data-free; the default for others).",
    ),
]
Mixed = Annotated[
    bool, typer.Option("--mixed/--uniform", help="Give each linear its own bits, or all the same.")
]
Criterion = Annotated[
    str,
    typer.Option(metavar="NAME", help="How --mixed weighs linears: measured losses, or the paper's."),
]
Calib = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Calibration text, .txt or .jsonl, or the name of a data set (extra `datasets`); without "
        "it the model writes its own. Of an ONNX graph: an .npz file of its inputs by name; without "
        "it no data are used.",
    ),
]
OwnText = Annotated[
    float,
    typer.Option(
        metavar="SHARE", help="Of the tokens, those that the model writes itself beside --calib."
    ),
]
CalibTokens = Annotated[
    int | None,
    typer.Option(metavar="N", min=1, help="Tokens of calibration; default: by the effort."),
]
Scales = Annotated[
    str,
    typer.Option(metavar="FORMAT", help="Scales: separable, row-group, column-wise, block-wise."),
]
Rotation = Annotated[bool, typer.Option(help="Rotate inputs by Hadamard blocks.")]
EmbeddingBits = Annotated[
    int, typer.Option(metavar="8|16", help="Embedding and head: 8 bits, or as they are (16).")
]
Resume = Annotated[bool, typer.Option(help="Go on after an interrupted run.")]
MaxMemory = Annotated[
    float | None,
    typer.Option(metavar="GB", help="Refuse before the work if it would need more memory."),
]
Spill = Annotated[
    bool, typer.Option("--spill", help="Keep what passes between blocks on disk, not in memory.")
]
Device = Annotated[
    str,
    typer.Option(
        metavar="NAME", help="Where calibration and tuning run the model: cpu, cuda or cuda:N."
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan only.")]


def quantize(
    source: options.Source,
    output: options.Output = None,
    bits: Bits = "4",
    target_size: TargetSize = None,
    target_latency: TargetLatency = None,
    latencies: LatencyTable = None,
    method: Method = None,
    effort: options.Effort = "normal",
    mixed: Mixed = True,
    criterion: Criterion = "measured",
    calib: Calib = None,
    calib_tokens: CalibTokens = None,
    own_text: OwnText = 0.0,
    outputs: options.Outputs = None,
    scales: Scales = "separable",
    rotation: Rotation = True,
    embedding_bits: EmbeddingBits = 16,
    seed: options.Seed = 0,
    resume: Resume = True,
    max_memory: MaxMemory = None,
    spill: Spill = False,
    device: Device = "cpu",
    force: options.Force = False,
    dry_run: DryRun = False,
    config: options.Config = None,
    json: options.Json = False,
    verbose: options.Verbose = False,
    quiet: options.Quiet = False,
) -> None:
    """Quantize a checkpoint into a packed model."""
    from shiftadd_tvm import presentation, workflow

    console = Console(json=json, quiet=quiet, verbose=verbose)
    settings = workflow.make_settings(
        bits=options.parse_bits(bits),
        effort=effort,
        mixed=mixed,
        criterion=criterion,
        **_calibration(calib, calib_tokens, own_text),
        scale_format=scales,
        embedding_bits=embedding_bits,
        seed=seed,
        **_latency(target_size, target_latency, latencies or []),
        **({} if rotation else {"max_rotation": 0}),
        **({} if method is None else {"method": method}),
    )
    with leaving("nothing was written"):
        size = None if target_size is None else options.parse_size(target_size)
        names = options.parse_names(outputs)
        plan = workflow.plan_quantize(
            *(source, output, settings), config=config, target_size=size, outputs=names
        )
        needed = workflow.check_memory(plan, max_memory, spill=spill)
    console.table("plan", presentation.quantize_plan(source, plan, needed))
    if dry_run:
        console.result({**plan.fields, "output": str(plan.output)}, "")
        return
    _carry_out(plan, console, resume=resume, force=force, spill=spill, device=device)


def _calibration(text: Path | None, tokens: int | None, own: float) -> dict[str, Any]:
    """Return the settings of the calibration's data."""
    path = None if text is None else str(text)
    return {"calibration_text": path, "calibration_tokens": tokens, "own_text": own}


def _latency(size: str | None, latency: str | None, files: list[Path]) -> dict[str, Any]:
    """Return the settings of a budget of time; raise `UsageError` where it lacks its half."""
    from shiftadd_tvm import latencies

    if size is not None and latency is not None:
        raise UsageError("--target-size and --target-latency are both given, expected one of them.")
    if (latency is None) != (not files):
        raise UsageError("--target-latency and --latencies belong together; give both or neither.")
    if latency is None:
        return {}
    return {"latency": options.parse_time(latency), "latencies": latencies.read(files)}


def _carry_out(plan: "QuantizePlan", console: Console, **how: Any) -> None:
    from shiftadd_tvm import presentation, workflow

    with leaving(presentation.resumable(plan)), console.progress("quantizing") as progress:
        report = workflow.run_quantize(plan, progress=progress, **how)
    fields = {**report.to_dict(), "output": str(plan.output)}
    console.result(fields, presentation.quantize_summary(plan, report))
