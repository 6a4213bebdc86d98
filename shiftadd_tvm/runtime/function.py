"""Run an artifact of kind `function`: named tensors in, named tensors out, by libshiftadd."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from shiftadd_tvm.artifact import Artifact, Signature, TensorSpec
from shiftadd_tvm.errors import UnsupportedError, UsageError
from shiftadd_tvm.runtime.engine import Model

Array = np.ndarray
KIND = "function"


class FunctionModel(Model):
    """A loaded artifact that is called with arrays by name.

    model = shiftadd_tvm.load("vit-artifact")
    outputs = model(input_image=images)        # {"features": array}
    """

    def __init__(self, artifact: str | Path | Artifact, *, threads: int | None = None) -> None:
        """Load an artifact; raises `BadFileError` for a damaged one, `UnsupportedError` where it cannot
        run here or is of another kind."""
        super().__init__(artifact, threads=threads)
        self.signatures = self.artifact.signatures()
        self._limits = self.artifact.size_limits()

    @staticmethod
    def check_kind(artifact: Artifact) -> None:
        """Raise `UnsupportedError` for anything but a function."""
        found = artifact.manifest["kind"]
        if found != KIND:
            raise UnsupportedError(
                f"{artifact.path} is a {found}, expected a function; give it a --prompt."
            )

    def __call__(
        self, inputs: Mapping[str, Array] | None = None, /, *, function: str = "main", **named: Array
    ) -> dict[str, Array]:
        """Return the outputs of a function by name, for arrays by the names of its inputs.

        Raises `UsageError` for a name, dtype or shape that the function does not take.
        """
        if function not in self.signatures:
            raise UsageError(
                f"{self.artifact.path} has no function {function!r}, expected one of "
                f"{', '.join(self.signatures)}."
            )
        signature = self.signatures[function]
        given = {**(inputs or {}), **named}
        check(given, signature, self._limits)
        found = self.call(function, *(given[spec.name] for spec in signature.inputs))
        return {spec.name: a for spec, a in zip(signature.outputs, found, strict=True)}


def check(given: Mapping[str, Array], signature: Signature, limits: Mapping[str, int]) -> None:
    """Raise `UsageError` unless `given` has the names, dtypes and shapes of the inputs; sizes that vary
    are equal wherever they have one name, and at most its limit, if it has one."""
    expected = {spec.name: spec for spec in signature.inputs}
    if set(given) != set(expected):
        raise UsageError(
            f"The inputs are {', '.join(map(repr, given)) or 'none'}, expected "
            f"{', '.join(map(_text, signature.inputs))}."
        )
    sizes: dict[str, int] = {}
    for name, spec in expected.items():
        array = np.asarray(given[name])
        fits = array.dtype == spec.dtype and array.ndim == len(spec.shape)
        for found, size in zip(array.shape, spec.shape, strict=False):
            wanted = size if isinstance(size, int) else sizes.setdefault(size, found)
            fits = fits and found == wanted and found > 0
        if not fits:
            raise UsageError(
                f"The input {name} is {array.dtype} {list(array.shape)}, expected {_text(spec)}"
                f"{''.join(f', {n} = {s}' for n, s in sizes.items() if n in spec.shape)}."
            )
    for name, size in sizes.items():
        if size > limits.get(name, size):
            raise UsageError(
                f"The inputs have {size} {name}, expected at most {limits[name]}; give shorter ones."
            )


def _text(spec: TensorSpec) -> str:
    return f"{spec.name} {spec.dtype} [{', '.join(map(str, spec.shape))}]"
