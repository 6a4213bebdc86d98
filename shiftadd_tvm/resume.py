"""Which shards of an interrupted `quantize` are finished, and whether they belong to this run.

A small JSON file in the staging folder says by which source and settings the shards there were made
and what was reported of each. Another source, other settings or a damaged file clear the folder.
"""

import json
import shutil
from pathlib import Path

from shiftadd_tvm.files import canonical_json

STATE = "quantize-state.json"

Report = dict[str, object]


class FinishedShards:
    """The finished shards of a staging folder, with the reports of their linears."""

    def __init__(self, folder: Path, identity: dict[str, object], resume: bool) -> None:
        """Take over what an earlier run of the same `identity` left, or clear `folder`."""
        self._folder, self._identity = folder, identity
        state = self._read() if resume else {}
        finished = state.get("finished")
        if state.get("identity") == identity and isinstance(finished, dict):
            kept = finished.items()
            self.reports: dict[str, list[Report]] = {
                s: r for s, r in kept if (folder / s).is_file()
            }
            return
        shutil.rmtree(folder)
        folder.mkdir()
        self.reports = {}
        self._write()  # at once: what is measured before the first shard is of this run too

    def __contains__(self, shard: str) -> bool:
        """Tell whether a shard is finished."""
        return shard in self.reports

    def add(self, shard: str, reports: list[Report]) -> None:
        """Record that a shard is written."""
        self.reports[shard] = reports
        self._write()

    def _write(self) -> None:
        temporary = self._folder / (STATE + ".tmp")
        temporary.write_bytes(
            canonical_json({"identity": self._identity, "finished": self.reports})
        )
        temporary.replace(self._folder / STATE)

    def remove_state(self) -> None:
        """Remove the state file: the folder is complete."""
        (self._folder / STATE).unlink()

    def _read(self) -> dict[str, object]:
        try:
            state = json.loads((self._folder / STATE).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return {}
        return state if isinstance(state, dict) else {}
