"""The verb `bench`: parse, call the workflow, print."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from shiftadd_tvm import options
from shiftadd_tvm.console import Console
from shiftadd_tvm.errors import UsageError
from shiftadd_tvm.interruption import leaving

Artifact = Annotated[
    Path | None,
    typer.Argument(metavar="ART", help="Artifact folder, made by compile.", show_default=False),
]
Synthetic = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="A published shape with made-up weights: llama-2-7b, ..."),
]
Bits = Annotated[
    str,
    typer.Option(
        metavar="B", help="Bits of made-up weights: 1, 2, 3 or 4; of a model also 16, which is float16."
    ),
]
PromptTokens = Annotated[
    int, typer.Option("--prompt-tokens", metavar="N", help="Tokens of the prefill.")
]
NewTokens = Annotated[
    int, typer.Option("--new-tokens", metavar="N", help="Tokens that are decoded.")
]
Threads = Annotated[
    int | None,
    typer.Option(metavar="N", min=1, help="Threads; default: all processors, one for --kernel."),
]
Target = Annotated[
    str | None,
    typer.Option(metavar="PRESET", help="Target of made-up weights; default: this machine."),
]
Kernel = Annotated[
    bool, typer.Option("--kernel", help="Single linear operators, of --shape or --synthetic.")
]
Shape = Annotated[
    str | None,
    typer.Option(metavar="NxK[,NxK]", help="Outputs x inputs of single operators."),
]
Output = Annotated[
    Path | None,
    typer.Option(
        "-o", "--output", metavar="DIR", help="GPU elsewhere: write a program that measures there."
    ),
]
Baselines = Annotated[
    bool,
    typer.Option("--baselines", help="Measure torch, ONNX Runtime, llama.cpp in turns with us."),
]


def bench(
    artifact: Artifact = None,
    synthetic: Synthetic = None,
    bits: Bits = "4",
    prompt_tokens: PromptTokens = 128,
    new_tokens: NewTokens = 64,
    threads: Threads = None,
    target: Target = None,
    kernel: Kernel = False,
    shape: Shape = None,
    activations: options.Activations = None,
    scales: Annotated[
        Literal["separable", "row-group"] | None, typer.Option(help="Scales of single operators.")
    ] = None,
    cache: Annotated[
        Literal["float32", "int8"] | None, typer.Option(help="Cache of made-up models, as in compile.")
    ] = None,
    baselines: Baselines = False,
    output: Output = None,
    json: options.Json = False,
    verbose: options.Verbose = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure speed, against the memory's own and against other libraries.

    Of an artifact; of a published shape with made-up weights; or, with --kernel, of single operators.
    """
    from shiftadd_tvm import bench_workflow
    from shiftadd_tvm.benchmark import kernels, models, tables
    from shiftadd_tvm.synthetic import HALF_BITS

    console = Console(json=json, quiet=quiet, verbose=verbose)
    _check(artifact, synthetic, kernel, shape, target, output)
    _check_formats(artifact, kernel, activations, scales, cache)
    with leaving("nothing was kept"), console.progress("measuring") as progress:
        if kernel:
            fields = bench_workflow.bench_kernels(
                kernels.parse_shapes(shape) if shape else str(synthetic),
                options.parse_whole_bits(bits),
                target=target,
                threads=threads or 1,
                activations=activations or "",
                scales=scales or "separable",
                baselines=baselines,
                output=output,
                progress=progress,
            )
            console.result(fields, tables.kernels(fields))
            return
        request = models.Request(prompt_tokens, new_tokens, threads, baselines)
        if synthetic is None:
            assert artifact is not None
            fields = bench_workflow.bench(artifact, request, progress=progress)
        else:
            whole, cache = options.parse_whole_bits(bits, HALF_BITS), cache or "float32"
            fields = bench_workflow.bench_synthetic(
                synthetic, whole, request, target=target, cache=cache, progress=progress
            )
    console.result(fields, tables.model(fields))


def _check_formats(
    artifact: Path | None,
    kernel: bool,
    activations: str | None,
    scales: str | None,
    cache: str | None,
) -> None:
    """Raise `UsageError` for a format of what is not measured, or was compiled before."""
    if activations and not kernel:
        raise UsageError("--activations is for single operators; add --kernel, or compile with it.")
    if scales and not kernel:
        raise UsageError("--scales is for single operators; add --kernel.")
    if cache and (kernel or artifact):
        raise UsageError("--cache is for made-up models; leave it out, or compile with it.")


def _check(
    artifact: Path | None,
    synthetic: str | None,
    kernel: bool,
    shape: str | None,
    target: str | None,
    output: Path | None,
) -> None:
    """Raise `UsageError` for options that contradict each other."""
    if shape is not None and not kernel:
        raise UsageError("--shape is for single operators; add --kernel.")
    given = [value for value in (artifact, synthetic, shape) if value is not None]
    if len(given) != 1 or (kernel and artifact):
        expected = "--shape or --synthetic" if kernel else "ART or --synthetic"
        raise UsageError(
            f"bench{' --kernel' if kernel else ''} got {len(given) or 'nothing'} to measure, expected "
            f"one of {expected}."
        )
    if artifact and target:
        raise UsageError("--target is for made-up weights; an artifact has its own target.")
    if output and not kernel:
        raise UsageError("-o is for single operators on a GPU elsewhere; add --kernel.")
