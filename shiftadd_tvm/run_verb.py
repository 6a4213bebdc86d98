"""The verb `run`: continue a text by a language model, or call a function with named tensors."""

from pathlib import Path
from typing import Annotated

import typer

from shiftadd_tvm import options
from shiftadd_tvm.console import Console
from shiftadd_tvm.errors import UsageError
from shiftadd_tvm.interruption import leaving

Prompt = Annotated[str | None, typer.Option(metavar="TEXT", help="The text to continue.")]
Inputs = Annotated[
    Path | None,
    typer.Option(metavar="NPZ", help="Of a function: its inputs by name, instead of --prompt."),
]
Result = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="NPZ", help="Of a function: where its outputs go."),
]


def run(
    artifact: options.Art,
    prompt: Prompt = None,
    max_new_tokens: options.NewTokens = 128,
    temperature: options.Temperature = 0.0,
    top_p: options.TopP = 1.0,
    top_k: options.TopK = 0,
    repetition_penalty: options.Penalty = 1.0,
    seed: options.Seed = 0,
    stop: options.Stop = None,
    inputs: Inputs = None,
    output: Result = None,
    force: options.Force = False,
    threads: options.Threads = None,
    json: options.Json = False,
    verbose: options.Verbose = False,
    quiet: options.Quiet = False,
) -> None:
    """Continue a text, or call a function.

    The default is greedy: the same prompt always gives the same text. Only the text goes to stdout.
    An artifact of an ONNX graph takes --inputs instead of --prompt and writes its outputs to -o.
    """
    console = Console(json=json, quiet=quiet, verbose=verbose)
    if (prompt is None) == (inputs is None):
        raise UsageError("run got no --prompt, or --inputs as well; give one of them.")
    if prompt is None:
        assert inputs is not None
        _call(console, artifact, inputs, output, force, threads)
        return
    if output is not None:
        raise UsageError("-o is for the outputs of a function; the text of a prompt goes to stdout.")
    from shiftadd_tvm.runtime.engine import Sampling
    from shiftadd_tvm.runtime.generation import TextModel

    sampling = Sampling(temperature, top_k, top_p, repetition_penalty, seed)
    with leaving("the text ends here"):
        console.log("run", f"loading {artifact}")
        model = TextModel(artifact, threads=threads)
        generation = model.generate(prompt, max_new_tokens, sampling, stop or ())
        try:
            for piece in generation:
                if not json:
                    print(piece, end="", flush=True)
        finally:
            if generation.text and not json:
                print(flush=True)
    console.result(generation.to_dict(), "")
    console.note(
        f"prefill {generation.prefill_tokens_per_second:.1f} tokens/s, "
        f"decode {generation.decode_tokens_per_second:.1f} tokens/s, "
        f"{len(generation.tokens)} tokens, ended by {generation.finish_reason}"
    )


def _call(
    console: Console,
    artifact: Path,
    inputs: Path,
    output: Path | None,
    force: bool,
    threads: int | None,
) -> None:
    """Call the function `main` with the arrays of `inputs`; write its outputs to `output`."""
    import numpy as np

    from shiftadd_tvm import npz
    from shiftadd_tvm.runtime.function import FunctionModel

    place = inputs.with_suffix(".outputs.npz") if output is None else output
    npz.refuse_existing(place, force)
    with leaving(f"{place} was not written"):
        console.log("run", f"loading {artifact}")
        given = npz.read(inputs)
        found = FunctionModel(artifact, threads=threads)(given)
        npz.write(place, found, force=force)
    shapes = {name: f"{a.dtype} {list(a.shape)}" for name, a in found.items()}
    largest = {n: float(np.abs(a).max()) for n, a in found.items() if a.dtype.kind == "f"}
    console.result(
        {"output": str(place), "outputs": shapes, "largest": largest},
        "\n".join(f"{place}: {name} {shape}" for name, shape in shapes.items()),
    )
