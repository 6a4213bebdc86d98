"""The command line: parse, call one verb, print.

A `ShiftAddError` becomes one line on stderr and its exit code; Ctrl-C and SIGTERM become one line and
130. Anything else that escapes is a bug: it keeps its traceback and exits with 1.
"""

import atexit
import contextlib
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from shiftadd_tvm import (
    __version__,
    bench_command,
    compile_command,
    config_command,
    interruption,
    options,
    quantize_command,
    report_command,
    run_verb,
    tune_command,
)
from shiftadd_tvm.console import Console
from shiftadd_tvm.errors import ShiftAddError, UnsupportedError, UsageError
from shiftadd_tvm.interruption import Interrupted, leaving

PROGRAM = "shiftadd-tvm"
INTERRUPTED = 130
CLICK_ERROR: Any = typer.BadParameter.mro()[2]  # ClickException, click's or typer's own copy

app = typer.Typer(
    help="Turn language models into shifts, look-ups and adds, compiled by Apache TVM.\n\n"
    "Exit codes: 0 ok, 1 bug, 2 usage, 3 unsupported model or target, 4 bad input file, "
    "5 wrong numbers, 130 interrupted.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        print(f"{PROGRAM} {__version__}")
        raise typer.Exit


app.command()(quantize_command.quantize)


app.command()(compile_command.compile)
app.command()(tune_command.tune)


app.command()(run_verb.run)


@app.command()
def chat(
    artifact: options.Art,
    system: Annotated[
        str | None, typer.Option(metavar="TEXT", help="What the model is told first.")
    ] = None,
    max_new_tokens: options.NewTokens = 512,
    temperature: options.Temperature = 0.7,
    top_p: options.TopP = 0.9,
    top_k: options.TopK = 0,
    repetition_penalty: options.Penalty = 1.0,
    seed: options.Seed = 0,
    stop: options.Stop = None,
    threads: options.Threads = None,
    verbose: options.Verbose = False,
    quiet: options.Quiet = False,
) -> None:
    """Talk with a model.

    /new forgets the conversation, /exit or Ctrl-D leaves, Ctrl-C ends an answer. The default samples
    at temperature 0.7; the same seed and the same lines give the same answers.
    """
    from shiftadd_tvm import conversation
    from shiftadd_tvm.runtime.engine import Sampling
    from shiftadd_tvm.runtime.generation import TextModel

    console = Console(quiet=quiet, verbose=verbose)
    sampling = Sampling(temperature, top_k, top_p, repetition_penalty, seed)
    with leaving("the conversation ends here"):
        console.log("chat", f"loading {artifact}")
        model = TextModel(artifact, threads=threads)
        talk = model.chat(system)
        conversation.hold(talk, console, max_new_tokens, sampling, stop or ())


@app.command("eval")
def evaluate(
    path: options.AnyPath,
    text: Annotated[
        Path, typer.Option(metavar="FILE", help="UTF-8 text to predict.", show_default=False)
    ],
    window: Annotated[int, typer.Option(metavar="W", help="Tokens scored together.")] = 512,
    max_windows: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Score the first N windows only.")
    ] = None,
    original: Annotated[
        str | None,
        typer.Option(
            metavar="SRC", help="What an artifact was made from: how far its distributions are."
        ),
    ] = None,
    threads: options.Threads = None,
    config: options.Config = None,
    json: options.Json = False,
    verbose: options.Verbose = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure perplexity on a text.

    Of an artifact by its own kernels; of a packed model or a checkpoint by transformers, in float32.
    """
    from shiftadd_tvm import presentation, scoring

    console = Console(json=json, quiet=quiet, verbose=verbose)
    request = scoring.Request(text, window, max_windows, threads, config, original)
    with leaving("nothing was measured"), console.progress("scoring") as progress:
        fields = scoring.score(
            path, request, lambda done, total: progress(done, total, f"window {done} of {total}")
        )
    console.result(fields, presentation.scored(fields))


app.command()(bench_command.bench)


@app.command()
def verify(
    artifact: options.Art,
    golden: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Golden file, if not the artifact's own.")
    ] = None,
    rpc: options.Rpc = None,
    json: options.Json = False,
    verbose: options.Verbose = False,
    quiet: options.Quiet = False,
) -> None:
    """Check an artifact against its packed model.

    Hashes every file, and compares the logits of the golden prompts. An artifact that passes is
    marked as verified.
    """
    from shiftadd_tvm import presentation, workflow

    console = Console(json=json, quiet=quiet, verbose=verbose)
    with leaving("nothing was changed"):
        console.log("verify", f"hashing {artifact} and running its golden prompts")
        fields, error = workflow.verify(artifact, golden, rpc)
    console.result(fields, "" if error else presentation.verified(artifact, fields))
    if error:
        raise error


@app.command()
def inspect(
    path: options.AnyPath,
    ops: Annotated[
        bool, typer.Option("--ops", help="Count an artifact's machine instructions by class.")
    ] = False,
    config: options.Config = None,
    json: options.Json = False,
    verbose: options.Verbose = False,
) -> None:
    """Tell what a file or folder holds."""
    from shiftadd_tvm import inspection, presentation

    console = Console(json=json, verbose=verbose)
    with leaving("nothing was changed"):
        fields = inspection.inspect(path, config, ops)
    console.result(fields, presentation.inspected(fields))


app.command()(report_command.report)


app.command()(config_command.config)


@app.command()
def doctor(json: options.Json = False, verbose: options.Verbose = False) -> None:
    """Check this machine, and name the remedies.

    Exits with 0 when everything required is there, else with 3.
    """
    from shiftadd_tvm import diagnosis, presentation

    console = Console(json=json, verbose=verbose)
    with leaving("nothing was checked"):
        console.log("doctor", "importing every library in a process of its own")
        checks = diagnosis.examine()
    fields = {"checks": [check.to_dict() for check in checks]}
    console.result(fields, presentation.checks(checks))
    bad = [check.name for check in checks if not check.ok and not check.optional]
    if bad:
        raise UnsupportedError(f"This machine lacks {', '.join(bad)}; the remedies are above.")


@app.command()
def targets(json: options.Json = False) -> None:
    """List the target presets."""
    from shiftadd_tvm import diagnosis, presentation

    presets = diagnosis.presets()
    Console(json=json).result({"presets": presets}, presentation.presets(presets))


@app.command()
def families(json: options.Json = False) -> None:
    """List the model families, by the model_type of their config.json."""
    from shiftadd_tvm import encoder_families, presentation
    from shiftadd_tvm import families as decoder_families

    found = [*decoder_families.listing(), *encoder_families.listing()]
    Console(json=json).result({"families": found}, presentation.families(found))


def run_command(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    message, status = "", INTERRUPTED
    try:
        status = int(app(arguments, prog_name=PROGRAM, standalone_mode=False) or 0)
        sys.stdout.flush()
        message = "interrupted." if status == INTERRUPTED else ""
    except ShiftAddError as error:
        message, status = f"error: {error}", error.exit_code
    except Interrupted as error:
        message = f"interrupted: {error}."
    except (KeyboardInterrupt, typer.Abort, BrokenPipeError):
        message = "interrupted."
    except CLICK_ERROR as error:
        message = f"error: {error.format_message()} ({PROGRAM} --help tells more)"
        status = UsageError.exit_code
    # only now: what the exception held alive may have had a last word too
    if message:
        with contextlib.suppress(OSError):
            print(" ".join(message.splitlines()), file=sys.stderr, flush=True)
    return status


def main() -> None:
    """Run the command line."""
    interruption.watch()
    # libraries' own progress and notices would break into ours
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        status = run_command()
    except KeyboardInterrupt:  # it came while the last word was said
        status = INTERRUPTED
    interruption.ignore()
    if status == INTERRUPTED:
        # At once: Python could turn the exit code into a signal, or fail to flush a closed pipe.
        atexit._run_exitfuncs()
        os._exit(status)
    sys.exit(status)
