"""What version 0.1.0 wrote must stay readable: one packed model and one artifact, frozen as they were.

When a format moves to version 2, these move to a test of the migration; they are never written anew.
"""

from pathlib import Path

import numpy as np
import pytest

from shiftadd_tvm.artifact import Artifact
from shiftadd_tvm.dequantized import DequantizedModel
from shiftadd_tvm.errors import UnsupportedError
from shiftadd_tvm.packed import open_packed
from shiftadd_tvm.reference import ReferenceModel
from shiftadd_tvm.verification import RELATIVE, compare, verify_here

FROZEN = Path(__file__).parent / "frozen"


def test_packed_model_of_version_1() -> None:
    """It opens, and transformers still computes its golden logits from it."""
    model = open_packed(FROZEN / "packed-v1")
    golden = model.golden()
    reference = ReferenceModel(DequantizedModel(model))
    hidden = reference.hidden(golden.ids.astype(np.int64))
    logits = reference.logits(hidden.reshape(golden.ids.size, -1)).numpy()
    found = logits.reshape(golden.logits.shape)
    assert compare(golden.logits, found, RELATIVE["float32"]).passed


def test_artifact_of_version_1() -> None:
    """It opens whole, and where its preset runs it still passes the gate."""
    artifact = Artifact(FROZEN / "artifact-v1")
    assert artifact.check_hashes() == 5
    try:
        artifact.check_machine()
    except UnsupportedError as error:  # a machine that is no x86 with SSE4.2
        pytest.skip(str(error))
    assert verify_here(FROZEN / "artifact-v1").passed
