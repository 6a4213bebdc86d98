"""The compile gate: an artifact must reproduce its packed model's golden logits.

Every golden sequence runs twice, through `prefill` + `logits` and token by token through `decode_b1`,
its first tokens through every larger `decode_b*` too, and is compared with the logits that the
dequantized model gave in transformers (float32). Both sides round differently (order of sums,
exponentials), and a decoder amplifies that by its depth; measured on SmolLM2-135M the largest difference
is 7e-4 where logits reach 33, on random two-layer models 2e-5 where they reach 9. Whole-number
activations add their own rounding (`--activations`), in both phases alike. The tolerance is `RELATIVE`
of the largest golden logit, far below what any wrong kernel, page or scale causes (an off-by-one page
gives errors above 10 %).
Tokens are compared by the margin rule: where the reference's best logit leads by more than twice
`LEAD`, the artifact must choose the same token. Of all logits of a large vocabulary one may be off by
more than the best two are.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from shiftadd_tvm.artifact import GOLDEN, Artifact, read_golden
from shiftadd_tvm.errors import BadFileError, GateError

# Of the largest |golden logit|, by the format of the look-ups' activations. Whole numbers round what
# the golden logits do not: with int16 the largest difference is 0.29 % on SmolLM2-135M at 4 bits and
# 0.13 % on Gemma-3-270M at 3. A model that expects a BOS and got none, since its checkpoint has no
# tokenizer, amplifies it: Gemma-3-270M to 1.4 %, with the perplexity of float32 to five digits. With
# fixed16 and bytes16 prefill rounds to float16: 0.24 % on a random two-layer model.
RELATIVE = {
    "float32": 5e-4,
    "int16": 3e-2,
    "int8": 0.3,
    "fixed16": 1e-2,
    "fixed24": 5e-4,
    "shuffle16": 2e-3,
    "bytes16": 1e-2,
}
LEAD = RELATIVE | {"int16": 1e-2}
# Added to both for rounded keys and values: on SmolLM2-135M the largest difference is 4.5 % with them,
# while perplexity changes by less than a thousandth.
ROUNDED_CACHE = {"float32": 0.0, "int8": 0.1}
# Of a function's outputs that are no floats, such as the index of the largest logit: so many of the
# elements must agree, since rounding decides where two logits are close.
OTHER = 0.9

BATCHED = 4  # tokens of a golden sequence that go through the functions of larger batches

Array = np.ndarray

if TYPE_CHECKING:  # the libraries of an artifact are loaded where it runs, in a child
    from shiftadd_tvm.runtime.engine import Engine


@dataclass(frozen=True)
class Verification:
    """What the gate found: errors in logits, and whether every decided token agrees."""

    max_logit_error: float
    tolerance: float
    tokens_equal: bool
    tokens_compared: int

    @property
    def passed(self) -> bool:
        """Tell whether the artifact may be published (a NaN fails)."""
        return self.max_logit_error <= self.tolerance and self.tokens_equal


def compare(
    golden: Array, found: Array, relative: float, lead: float | None = None
) -> Verification:
    """Compare logits float32 (..., V) of one model with the golden ones; the tolerance is
    `relative` to the largest of these, and a token is decided by twice the `lead` (None: as much)."""
    largest = float(np.abs(golden).max())
    tolerance = largest * relative
    ordered = np.partition(golden, -2, axis=-1)
    least = 2 * largest * (relative if lead is None else lead)
    decided = ordered[..., -1] - ordered[..., -2] > least
    same = golden.argmax(axis=-1) == found.argmax(axis=-1)
    error = float(np.abs(golden - found).max()) if np.isfinite(found).all() else float("inf")
    return Verification(error, tolerance, bool(same[decided].all()), int(decided.sum()))


def run_golden(engine: "Engine", ids: Array) -> tuple[Array, Array]:
    """Return the artifact's logits (P, T, V) for ids (P, T): by prefill, and token by token."""
    by_prefill, by_decode = [], []
    for sequence in ids.tolist():
        session = engine.session()
        by_prefill.append(session.logits_of(sequence))
        session.close()
        by_decode.append(np.concatenate([session.decode(token) for token in sequence]))
        session.close()
    return np.stack(by_prefill), np.stack(by_decode)


def run_batches(engine: "Engine", ids: Array, logits: Array) -> list[Array]:
    """Return logits (P, T, V) for ids (P, T) whose first `BATCHED` tokens are by functions that decode
    several sequences, the rest being `logits`; several arrays for batches larger than P."""
    from shiftadd_tvm.runtime.engine import decode

    found = []
    for batch in engine.batches[1:]:
        rows = np.arange(batch) % len(ids)
        sessions = [engine.session() for _ in rows]
        steps = [decode(sessions, column.tolist()) for column in ids[rows, :BATCHED].T]
        for session in sessions:
            session.close()
        by_batch = np.stack(steps, axis=1)
        for start in range(0, batch, len(ids)):
            part = by_batch[start : start + len(ids)]
            run = logits.copy()
            run[: len(part), : part.shape[1]] = part
            found.append(run)
    return found


def read_prompts(artifact: Artifact, golden: Path | None = None) -> tuple[Array, Array]:
    """Return the token ids (P, T) and logits (P, T, V) that an artifact is held to.

    `golden` is another file than its own. Raises `BadFileError`.
    """
    ids, logits = read_golden(golden) if golden else artifact.golden()
    vocabulary = artifact.number("model", "vocabulary")
    if logits.shape[-1] != vocabulary or ids.min(initial=0) < 0 or ids.max() >= vocabulary:
        raise BadFileError(
            f"{golden or artifact.path} has golden logits over {logits.shape[-1]} tokens, the artifact "
            f"has a vocabulary of {vocabulary}; use the golden file of the same model."
        )
    return ids, logits


def judge(artifact: Artifact, logits: Array, runs: Sequence[Array]) -> Verification:
    """Return the worst of what several runs' logits (P, T, V) are, compared with the golden ones."""
    more = ROUNDED_CACHE[artifact.cache()]
    relative, lead = (kind[artifact.activations()] + more for kind in (RELATIVE, LEAD))
    worst = [compare(logits, found, relative, lead) for found in runs]
    return Verification(
        max(v.max_logit_error for v in worst),
        worst[0].tolerance,
        all(v.tokens_equal for v in worst),
        worst[0].tokens_compared,
    )


def _verify_function(artifact: Artifact, golden: Path | None) -> Verification:
    """Run the function on the golden inputs: floats agree within `RELATIVE` of each output's largest,
    the most wrong output counting; other outputs within `OTHER` of their elements."""
    from shiftadd_tvm.onnx_packed import read_golden as read_tensors
    from shiftadd_tvm.runtime.function import FunctionModel

    inputs, expected = read_tensors(golden or artifact.path / GOLDEN)
    found = FunctionModel(artifact)(inputs)
    if {n: a.shape for n, a in found.items()} != {n: a.shape for n, a in expected.items()}:
        raise BadFileError(
            f"{golden or artifact.path} has golden outputs {', '.join(expected)}, the artifact gives "
            f"{', '.join(found)}; use the golden file of the same model."
        )
    relative = RELATIVE[artifact.activations()]
    worst, equal, compared = (0.0, relative), True, 0
    for name, golden_values in expected.items():
        values = found[name]
        if np.issubdtype(golden_values.dtype, np.floating):
            size = float(np.abs(golden_values).max())
            error = float(np.abs(golden_values.astype(np.float64) - values).max())
            error = error if np.isfinite(values).all() else float("inf")
            limit = size * relative
            worst = max(worst, (error, limit), key=lambda pair: pair[0] / max(pair[1], 1e-30))
        else:
            compared += values.size
            equal = equal and float((values == golden_values).mean()) >= OTHER
    return Verification(*worst, equal, compared)


def verify_here(path: Path, golden: Path | None = None) -> Verification:
    """Run the gate in this process."""
    artifact = Artifact(path)
    if artifact.manifest["kind"] == "function":
        return _verify_function(artifact, golden)
    ids, logits = read_prompts(artifact, golden)
    return judge(artifact, logits, _runs(artifact, ids, logits))


def _runs(artifact: Artifact, ids: Array, logits: Array) -> list[Array]:
    from shiftadd_tvm.runtime.engine import Engine

    limit = lambda name: artifact.number("limits", name)
    pages = -(-limit("context") // limit("page"))
    # a page for each sequence of a batch is all that it takes
    largest = max(artifact.numbers("limits", "batches"))
    engine = Engine(artifact, sequences=-(-largest // pages))
    return [*run_golden(engine, ids), *run_batches(engine, ids, logits)]


def measure(path: Path, golden: Path | None = None) -> Verification:
    """Run the gate in a child process: a kernel that crashes costs an artifact, not the caller.

    Raises `GateError` when the child dies, and the child's own errors as they are.
    """
    command = [sys.executable, "-m", "shiftadd_tvm.verification", str(path)]
    child = subprocess.run(
        command + ([str(golden)] if golden else []), capture_output=True, text=True, check=False
    )
    if child.returncode == BadFileError.exit_code and child.stderr:
        raise BadFileError(child.stderr.strip().splitlines()[-1])
    if child.returncode != 0 or not child.stdout:
        reason = (child.stderr.strip().splitlines() or ["no output"])[-1]
        raise GateError(
            f"{path} crashed on its golden prompts (exit status {child.returncode}: {reason}); "
            "please report it with the command you ran."
        )
    return Verification(**json.loads(child.stdout.splitlines()[-1]))


def require(result: Verification, path: Path, consequence: str) -> None:
    """Raise `GateError`, which ends with `consequence`, when the numbers are wrong."""
    if not result.passed:
        raise GateError(
            f"{path} does not reproduce its packed model: the largest error in a logit is "
            f"{result.max_logit_error:.3g}, expected at most {result.tolerance:.3g}, and tokens "
            f"{'agree' if result.tokens_equal else 'differ'}; {consequence}."
        )


def verify(path: Path, golden: Path | None = None) -> Verification:
    """Run the gate as `measure` does; raise `GateError` when the numbers are wrong."""
    result = measure(path, golden)
    require(result, path, "no artifact was published")
    return result


def main(arguments: list[str]) -> int:
    """Run as a child of `verify`: print the result as JSON, or an error sentence on stderr."""
    golden = Path(arguments[1]) if len(arguments) > 1 else None
    try:
        result = verify_here(Path(arguments[0]), golden)
    except BadFileError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(json.dumps(asdict(result)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
