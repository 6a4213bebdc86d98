"""A block of LLaMA-2-7B's widths, from shards to an artifact: memory is that of a layer."""

import subprocess
import sys
from pathlib import Path

from shiftadd_tvm.artifact import Artifact
from shiftadd_tvm.checkpoint import open_checkpoint

SCRIPT = Path(__file__).parent.parent / "examples" / "big_model.py"
# GB. Layer by layer it is 1.3 to 1.4; to hold what was read takes 0.8 more, for one block.
LIMIT = "1.8"


def test_memory_of_a_block_of_7b(tmp_path: Path) -> None:
    command = [sys.executable, SCRIPT, "--layers", "1", "--bits", "1", "--limit", LIMIT]
    command += ["--shard-bytes", "300000000", "-o", tmp_path]
    child = subprocess.run(command, capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stdout + child.stderr
    assert "compile: peak memory" in child.stdout
    source = open_checkpoint(tmp_path / "checkpoint")
    assert source.stored_as() == "safetensors, 4 shards"
    assert source.shape("model.layers.0.mlp.down_proj.weight") == (4096, 11008)
    assert Artifact(tmp_path / "artifact").manifest["verified"] is True
