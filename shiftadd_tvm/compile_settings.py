"""What a user may choose when a model is compiled; read by every room, so it imports neither library."""

from dataclasses import dataclass
from pathlib import Path

from shiftadd_tvm.artifact import ACTIVATIONS, CACHES
from shiftadd_tvm.backend import LAUNCHES
from shiftadd_tvm.errors import UsageError

PACKAGES = ("bundle", "single-library")
LOADS = ("map", "hugepages")
BATCHES = (1, 2, 4)  # sequences that one decode function takes
MORE = (8, 16, 32)  # likewise, where so many are asked for


@dataclass(frozen=True)
class CompileSettings:
    """The choices of one compilation; `UsageError` for what no artifact can have."""

    context: int | None = None  # None: the model's own, at most compiler.DEFAULT_CONTEXT
    sequences: int = BATCHES[-1]  # decoded together at most: of fewer, the library is smaller
    activations: str = ""  # the format of look-ups; empty: the target's own
    cache: str = CACHES[0]  # the format of keys and values
    launches: str = LAUNCHES[0]  # how the kernels of a GPU follow one another
    load: str = LOADS[0]  # where hosts hold the parameters: in the mapped file, or a copy on huge pages
    verify: bool = True
    dump_ir: Path | None = None
    tuning_log: Path | None = None  # looked up before the user's cache and the shipped logs
    package: str | None = None  # one of PACKAGES: made ready to be embedded
    embed_parameters: bool = False  # into the single library

    def __post_init__(self) -> None:
        """Check what can be checked without the model."""
        if self.sequences not in (*BATCHES, *MORE):
            *first, last = map(str, (*BATCHES, *MORE))
            raise UsageError(
                f"--sequences is {self.sequences}, expected {', '.join(first)} or {last}."
            )
        if self.activations and self.activations not in ACTIVATIONS:
            raise UsageError(
                f"--activations is {self.activations}, expected one of {', '.join(ACTIVATIONS)}."
            )
        if self.cache not in CACHES:
            raise UsageError(f"--cache is {self.cache}, expected {' or '.join(CACHES)}.")
        if self.launches not in LAUNCHES:
            raise UsageError(f"--launches is {self.launches}, expected {' or '.join(LAUNCHES)}.")
        if self.load not in LOADS:
            raise UsageError(f"--load is {self.load}, expected {' or '.join(LOADS)}.")
        if self.package not in (None, *PACKAGES):
            raise UsageError(
                f"The package is {self.package}, expected one of {', '.join(PACKAGES)}."
            )
        if self.embed_parameters and self.package != PACKAGES[1]:
            raise UsageError(
                "--embed-parameters links the parameters into a single library; add --single-library, "
                "or leave it out."
            )

    @property
    def batches(self) -> tuple[int, ...]:
        """How many sequences each decode function takes."""
        return tuple(batch for batch in (*BATCHES, *MORE) if batch <= self.sequences)

    def command(self, target: str, context: object = None) -> str:
        """Return the command that compiles alike, without paths; a decoder has a context."""
        words = ["compile", "--target", target, "--activations", self.activations, "--load", self.load]
        if context is not None:
            words += ["--context", str(context), "--sequences", str(self.sequences)]
            words += ["--cache", self.cache]
        words += ["--launches", self.launches] if self.launches != LAUNCHES[0] else []
        words += [f"--{self.package}"] if self.package else []
        words += ["--embed-parameters"] if self.embed_parameters else []
        return " ".join(words)
