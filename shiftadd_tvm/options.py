"""The options that several verbs share, and how their values are read."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from shiftadd_tvm.errors import UsageError


def parse_bits(text: str) -> float:
    """Return bits per weight, whole or an average such as 2.2."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 1 <= value <= 4:
        raise UsageError(f"--bits is {text}, expected a number from 1 to 4, such as 3 or 2.2.")
    return value if value % 1 else int(value)


def parse_size(text: str) -> int:
    """Return bytes of a size such as 1.5GB, 300MB or 120000000."""
    number = text.strip().upper().removesuffix("B").removesuffix("I")
    factor = {"K": 10**3, "M": 10**6, "G": 10**9}.get(number[-1:], 1)
    try:
        value = float(number.rstrip("KMG")) * factor
    except ValueError:
        value = -1.0
    if not 0 < value < 1e18:
        raise UsageError(
            f"--target-size is {text}, expected bytes, or a size such as 1.5GB or 300MB."
        )
    return int(value)


def parse_time(text: str) -> float:
    """Return microseconds of a time such as 4.5ms or 800us."""
    number = text.strip().lower()
    unit = next((u for u in ("us", "ms", "s") if number.endswith(u)), "")
    try:
        value = float(number.removesuffix(unit)) * {"us": 1, "ms": 1e3, "s": 1e6}[unit]
    except (ValueError, KeyError):
        value = -1.0
    if not 0 < value < 1e12:
        raise UsageError(f"--target-latency is {text}, expected a time such as 4.5ms or 800us.")
    return value


def parse_whole_bits(text: str, *others: int) -> int:
    """Return whole bits per weight, or one of `others`."""
    if text in map(str, others):
        return int(text)
    value = parse_bits(text)
    if value % 1:
        raise UsageError(f"--bits is {text}, expected 1, 2, 3 or 4: this model is not calibrated.")
    return int(value)


def package(bundle: bool, single_library: bool) -> str | None:
    """Return what an artifact is packaged as, for `CompileSettings`."""
    if bundle and single_library:
        raise UsageError(
            "--bundle and --single-library were both given; a single library is a bundle already, "
            "choose one."
        )
    return "bundle" if bundle else "single-library" if single_library else None


def parse_names(text: str | None) -> tuple[str, ...]:
    """Return the names of a list with commas."""
    return tuple(name for name in (text or "").split(",") if name)


Rpc = Annotated[
    str | None,
    typer.Option(metavar="HOST:PORT:KEY", help="On boards that a tracker of TVM's RPC knows."),
]
Source = Annotated[
    str,
    typer.Argument(
        metavar="SRC",
        help="Hugging Face folder, .safetensors beside its config.json, .gguf, .onnx, or org/name.",
        show_default=False,
    ),
]
CompileSource = Annotated[
    str,
    typer.Argument(
        metavar="SRC",
        help="Packed model; or a checkpoint (folder, .safetensors, .gguf, .onnx, org/name), which is "
        "quantized first.",
        show_default=False,
    ),
]
AnyPath = Annotated[
    str,
    typer.Argument(
        metavar="PATH", help="Artifact, packed model or checkpoint.", show_default=False
    ),
]
Art = Annotated[
    Path,
    typer.Argument(metavar="ART", help="Artifact folder, made by compile.", show_default=False),
]
Target = Annotated[
    str | None,
    typer.Option(metavar="PRESET", help="Target preset (see targets); default: this machine."),
]
CheckpointBits = Annotated[
    str | None, typer.Option(metavar="B", help="Bits of a plain checkpoint: 1 to 4 (4).")
]
Outputs = Annotated[
    str | None,
    typer.Option(
        metavar="NAME[,NAME]", help="Of an ONNX graph: values that take the place of its outputs."
    ),
]
Examples = Annotated[
    Path | None,
    typer.Option(
        "--calib",
        metavar="NPZ",
        help="Of an encoder or ONNX graph: examples of its inputs, by their names.",
    ),
]
Sequences = Annotated[
    int,
    typer.Option(
        metavar="1|2|4|…|32", help="Most sequences decoded together: of fewer, the library is smaller."
    ),
]
Activations = Annotated[
    Literal["int16", "int8", "float32", "fixed16", "fixed24", "shuffle16", "bytes16"] | None,
    typer.Option(
        help="How look-ups hold activations: 13-bit whole numbers (int16), 7-bit ones, as they are; on "
        "GPUs fixed point of 16 or 24 bits (shuffle16: 16, looked up by shuffles; "
        "bytes16: 16, multiplied byte by byte with 0 and 1).",
        show_default="the target's own",
    ),
]
Cache = Annotated[
    Literal["float32", "int8"],
    typer.Option(
        "--cache",
        help="How keys and values are held: as they are, or as 8-bit whole numbers, a quarter of the "
        "memory and of what long contexts read.",
    ),
]
Verify = Annotated[
    bool, typer.Option(help="Compare the artifact with the packed model before publishing.")
]
Launches = Annotated[
    Literal["ordered", "overlapping"],
    typer.Option(
        help="How the kernels of a GPU follow one another: each after the one before; or, from sm_90 on, "
        "each beginning while the one before ends.",
    ),
]
Load = Annotated[
    Literal["map", "hugepages"],
    typer.Option(
        help="Where hosts hold the parameters: in the mapped file, shared between processes; or in a "
        "copy on huge pages, which small models read faster.",
    ),
]
Effort = Annotated[
    Literal["fast", "normal", "best"],
    typer.Option(help="How much work calibration and tuning may take."),
]
Context = Annotated[
    int | None,
    typer.Option("--context", metavar="N", help="Most tokens of a sequence; default: up to 2048."),
]
Output = Annotated[
    Path | None,
    typer.Option("-o", "--output", metavar="DIR", help="Where to write; without it, beside SRC."),
]
Config = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="config.json, if it is not beside the weights."),
]
TuningLog = Annotated[
    Path | None,
    typer.Option(
        "--tuning-log", metavar="DIR", help="A tuning log, read before those in cache and package."
    ),
]
Bundle = Annotated[
    bool,
    typer.Option(
        "--bundle", help="Add libraries, headers, CMake and pkg-config files for C and C++."
    ),
]
SingleLibrary = Annotated[
    bool,
    typer.Option("--single-library", help="The same, with everything in model.so; and an archive."),
]
EmbedParameters = Annotated[
    bool,
    typer.Option("--embed-parameters", help="Link the parameters into the single library too."),
]
Force = Annotated[bool, typer.Option("--force", help="Replace an existing output of this verb.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object as the result.")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Log what is done.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="No plan, no progress.")]
Threads = Annotated[
    int | None,
    typer.Option("--threads", metavar="N", min=1, help="Threads; without it, all processors."),
]
NewTokens = Annotated[
    int, typer.Option("--max-new-tokens", metavar="N", help="Most tokens of an answer.")
]
Temperature = Annotated[
    float, typer.Option("--temperature", metavar="T", help="0 takes the likeliest token always.")
]
TopP = Annotated[
    float, typer.Option("--top-p", metavar="P", help="Only the likeliest tokens that sum up to P.")
]
TopK = Annotated[int, typer.Option("--top-k", metavar="K", help="Only the K likeliest; 0: all.")]
Penalty = Annotated[
    float,
    typer.Option("--repetition-penalty", metavar="R", help="Above 1: repeat less; 1: off."),
]
Seed = Annotated[
    int, typer.Option("--seed", metavar="S", help="The same seed gives the same result.")
]
Stop = Annotated[
    list[str] | None,
    typer.Option("--stop", metavar="TEXT", help="End before this text; may be given repeatedly."),
]
