"""Target presets: what a target family is to us, and which preset fits this machine.

TVM's word for a compilation target stays `Target`; a `Backend` is our description of one preset.
The presets themselves stand in `schedules/<family>/__init__.py`: one folder a family, by name.
"""

import difflib
import importlib
import pkgutil
from dataclasses import dataclass, replace

from shiftadd_tvm import cpu
from shiftadd_tvm.cuda import driver
from shiftadd_tvm.errors import UnsupportedError, UsageError

LAUNCHES = ("ordered", "overlapping")  # how the kernels of a GPU follow one another
OVERLAPPING = 90  # the first compute capability, times 10, whose launches overlap


@dataclass(frozen=True)
class Backend:
    """One target preset."""

    name: str
    family: str  # the folder under schedules/
    target: dict[str, object]  # TVM's Target, as its JSON form
    machine: str  # architecture as the kernel names it
    features: tuple[str, ...]  # processor features that the kernels use
    isa: str  # which look-up primitives the schedules take
    lanes: int  # float32 numbers of a vector
    rows: int  # rows of a block in the packed order
    # (implementer, part) of the processors that it is for; none: of whatever has the features
    parts: tuple[tuple[int, int], ...] = ()
    model: str = ""  # the processor by whose timing llvm-mca ranks candidates, if there is one
    device: str = ""  # the GPU's architecture, such as "sm_90"; empty: kernels run on the processor
    activations: tuple[str, ...] = ("int16", "int8", "float32")  # formats of look-ups, default first
    overlap: bool = False  # kernels of a GPU begin before those before them have ended
    shared: int = 0  # bytes of a GPU's memory that the threads of a block may share

    @property
    def order(self) -> str:
        """The name of the packed order, as the manifest states it."""
        return f"{'fragments' if self.device else 'bytes'}-rows{self.rows}"

    def chosen(self, activations: str) -> str:
        """Return the format of look-ups that is meant; `UsageError` for one that it has no kernels of."""
        wanted = activations or self.activations[0]
        if wanted not in self.activations:
            raise UsageError(
                f"--activations is {wanted}, expected one of {', '.join(self.activations)} for "
                f"{self.name}."
            )
        return wanted

    def launching(self, launches: str) -> "Backend":
        """Return the preset with a way to launch kernels, one of `LAUNCHES`; `UsageError` for
        one that it has not."""
        if launches == LAUNCHES[0]:
            return self
        if not self.overlaps:
            raise UsageError(
                f"--launches {launches} is for GPUs from sm_90 on, not for {self.name}; leave it out."
            )
        return replace(self, overlap=True)

    @property
    def overlaps(self) -> bool:
        """Tell whether its kernels can begin before those before them have ended."""
        return self.device.startswith("sm_") and int(self.device[3:]) >= OVERLAPPING

    def missing_features(self) -> list[str]:
        """Return what this machine lacks to run the preset's kernels."""
        if cpu.machine() != self.machine:
            return [self.machine]
        if self.device:
            lacking = driver.lacks(self.device)
            return [lacking] if lacking else []
        return sorted(set(self.features) - cpu.features())

    def runs_here(self) -> bool:
        """Tell whether this machine can run the preset's kernels."""
        return not self.missing_features()

    def meant_for_here(self) -> bool:
        """Tell whether it runs here and is for this very processor, or for no one in particular."""
        return self.runs_here() and (not self.parts or bool(cpu.parts() & set(self.parts)))


@dataclass(frozen=True)
class Knob:
    """One decision of a schedule that tuning may change: what it may be, and the untuned value."""

    candidates: tuple[int, ...]
    default: int
    memory: bool = False  # it decides what memory does: no model of the processor alone can rank it

    @property
    def fixed(self) -> "Knob":
        """The knob with its untuned value as the only candidate."""
        return replace(self, candidates=(self.default,))


def _families() -> list[str]:
    package = importlib.import_module("shiftadd_tvm.schedules")
    return sorted(module.name for module in pkgutil.iter_modules(package.__path__) if module.ispkg)


def presets() -> dict[str, Backend]:
    """Return every preset by name, in order of preference within a family."""
    found: dict[str, Backend] = {}
    for family in _families():
        found |= importlib.import_module(f"shiftadd_tvm.schedules.{family}").PRESETS
    return found


def aliases() -> dict[str, Backend]:
    """Return, for each family that has presets by device, the preset that its name stands for here."""
    found = {}
    for family in _families():
        module = importlib.import_module(f"shiftadd_tvm.schedules.{family}")
        if alias := getattr(module, "ALIAS", ""):
            fitting = [preset for preset in module.PRESETS.values() if preset.runs_here()]
            found[alias] = fitting[-1] if fitting else module.PRESETS[module.WITHOUT_GPU]
    return found


def load(name: str) -> Backend:
    """Return the preset called `name`; raise `UnsupportedError` naming the nearest.

    A family's alias (`cuda`) is the preset that fits this machine's device, else the oldest.
    """
    known = presets()
    if name in (aliased := aliases()):
        return aliased[name]
    if name not in known:
        near = difflib.get_close_matches(name, known, 1, 0.4)
        hint = f"the nearest is {near[0]!r}; " if near else ""
        raise UnsupportedError(
            f"Target {name!r} is not known: {hint}known are {', '.join(known)} "
            "(shiftadd-tvm targets)."
        )
    return known[name]


def detect() -> Backend:
    """Return the first preset that is meant for this machine; raise `UnsupportedError` for none.

    A GPU is used where it is asked for by name.
    """
    for preset in presets().values():
        if preset.meant_for_here() and not preset.device:
            return preset
    raise UnsupportedError(
        f"No target preset runs on this machine ({cpu.machine()}); name one with --target, "
        f"known are {', '.join(presets())}."
    )
