"""The verb `tune`: parse, call the workflow, print."""

from pathlib import Path
from typing import Annotated

import typer

from shiftadd_tvm import options
from shiftadd_tvm.console import Console
from shiftadd_tvm.interruption import leaving

Source = Annotated[
    str | None,
    typer.Argument(
        metavar="[SRC]",
        help="Packed model (a checkpoint is quantized first); without it, the shapes that records "
        "are shipped for. With --stage measure or commit, the folder of --stage build.",
        show_default=False,
    ),
]
Trials = Annotated[
    int, typer.Option(metavar="N", help="Candidates of a task, earlier runs' included.")
]
Minutes = Annotated[
    float | None, typer.Option(metavar="M", help="Time for all tasks together; default: no limit.")
]
Synthetic = Annotated[
    str | None, typer.Option(metavar="NAME", help="The shapes of one published model.")
]
Op = Annotated[str | None, typer.Option(metavar="NAME", help="Only this operator.")]
Output = Annotated[
    Path | None,
    typer.Option("-o", "--output", metavar="DIR", help="The log; default: in the user's cache."),
]
Stage = Annotated[
    str | None,
    typer.Option(
        metavar="STAGE",
        help="GPU elsewhere: build candidates here, measure them there, commit the times here.",
    ),
]
KEPT = "finished batches are kept, and the same command goes on after them"


def tune(
    source: Source = None,
    target: options.Target = None,
    trials: Trials = 64,
    minutes: Minutes = None,
    op: Op = None,
    synthetic: Synthetic = None,
    activations: options.Activations = None,
    bits: options.CheckpointBits = None,
    threads: options.Threads = None,
    rpc: options.Rpc = None,
    stage: Stage = None,
    output: Output = None,
    config: options.Config = None,
    json: options.Json = False,
    verbose: options.Verbose = False,
    quiet: options.Quiet = False,
) -> None:
    """Search the fastest schedules for this machine; compile finds them by itself."""
    from shiftadd_tvm import presentation, tune_workflow, workflow

    console = Console(json=json, quiet=quiet, verbose=verbose)
    whole = None if bits is None else options.parse_bits(bits)
    with leaving("nothing was written"):
        plan = tune_workflow.plan_tune(
            source,
            output,
            target=target,
            trials=trials,
            minutes=minutes,
            op=op,
            synthetic=synthetic,
            activations=activations or "",
            bits=whole,
            threads=threads,
            rpc=rpc,
            stage=stage,
            config=config,
        )
    console.table("plan", presentation.tune_plan(plan))
    if plan.quantize is not None:
        note = presentation.resumable(plan.quantize)
        with leaving(note), console.progress("quantizing") as progress:
            workflow.run_quantize(plan.quantize, progress=progress)
    with leaving(KEPT), console.progress("tuning") as progress:
        report = tune_workflow.run_tune(plan, progress=progress)
    console.result(presentation.tune_fields(report), presentation.tune_summary(report))
