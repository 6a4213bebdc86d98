"""The verb `compile`: parse, plan, quantize where that comes first, compile, print."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shiftadd_tvm import options
from shiftadd_tvm.console import Console
from shiftadd_tvm.interruption import leaving

if TYPE_CHECKING:
    from shiftadd_tvm.workflow import CompilePlan

STAGES = 5  # of a compilation that is verified
PACKAGING = 2  # more, of one that makes a bundle or a single library


def compile(
    source: options.CompileSource,
    output: options.Output = None,
    target: options.Target = None,
    bits: options.CheckpointBits = None,
    effort: options.Effort = "normal",
    calib: options.Examples = None,
    outputs: options.Outputs = None,
    context: options.Context = None,
    sequences: options.Sequences = 4,
    activations: options.Activations = None,
    cache: options.Cache = "float32",
    load: options.Load = "map",
    launches: options.Launches = "ordered",
    verify: options.Verify = True,
    bundle: options.Bundle = False,
    single_library: options.SingleLibrary = False,
    embed_parameters: options.EmbedParameters = False,
    tuning_log: options.TuningLog = None,
    dump_ir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write the module after each phase there.")
    ] = None,
    force: options.Force = False,
    config: options.Config = None,
    json: options.Json = False,
    verbose: options.Verbose = False,
    quiet: options.Quiet = False,
) -> None:
    """Compile a model into an artifact for one target.

    A plain checkpoint is quantized first, into a packed model beside it.
    """
    from shiftadd_tvm import presentation, workflow

    console = Console(json=json, quiet=quiet, verbose=verbose)
    with leaving("nothing was written"):
        plan = workflow.plan_compile(
            source,
            output,
            target=target,
            bits=None if bits is None else options.parse_bits(bits),
            effort=effort,
            calib=calib,
            outputs=options.parse_names(outputs),
            config=config,
            force=force,
            context=context,
            sequences=sequences,
            activations=activations or "",
            cache=cache,
            load=load,
            launches=launches,
            verify=verify,
            dump_ir=dump_ir,
            tuning_log=tuning_log,
            package=options.package(bundle, single_library),
            embed_parameters=embed_parameters,
        )
    console.table("plan", presentation.compile_plan(source, plan))
    _carry_out(plan, console, force)


def _carry_out(plan: "CompilePlan", console: Console, force: bool) -> None:
    from shiftadd_tvm import presentation, workflow

    if plan.quantize is not None:
        note = presentation.resumable(plan.quantize)
        with leaving(note), console.progress("quantizing") as progress:
            workflow.run_quantize(plan.quantize, progress=progress)
    count = STAGES - (not plan.settings.verify or not plan.backend.runs_here())
    count += PACKAGING if plan.settings.package else 0
    note = "no artifact was written"
    with leaving(note), console.stages("compiling", count) as stage:
        report = workflow.run_compile(plan, force=force, progress=stage)
    fields = {**presentation.compile_fields(report), "output": str(plan.output)}
    console.result(fields, presentation.compile_summary(plan, report))
