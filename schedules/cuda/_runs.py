"""How a row lies in registers while a chain (`fused_producers.py`) is computed.

A warp holds runs of `SPAN` inputs of a row, a lane the inputs l, 32 + l .. of a run: a run is as long as
the blocks of the Hadamard transform at most, whose short distances then are between lanes, and long
ones between a lane's own numbers. All runs have one block of threads, or each has one of a single warp.
"""

from dataclasses import dataclass

SPAN = 256  # inputs of a run
HELD = SPAN // 32  # of these, a lane's
WARPS, TURNS = 32, 4  # of a block at most: more runs need more registers than a thread has


@dataclass(frozen=True)
class Row:
    """A row of so many inputs in the registers of a block of threads, or, `apart`, of a block for each
    run."""

    inputs: int
    apart: bool = False

    @property
    def runs(self) -> int:
        """Runs of a row."""
        return -(-self.inputs // SPAN)

    @property
    def turns(self) -> int:
        """Runs of a warp."""
        return 1 if self.apart else -(-self.runs // WARPS)

    @property
    def warps(self) -> int:
        """Warps of the row."""
        return -(-self.runs // self.turns)

    @property
    def held(self) -> int:
        """Numbers of a lane."""
        return self.turns * HELD

    @property
    def block(self) -> int:
        """Warps of a block."""
        return 1 if self.apart else self.warps

    @property
    def shared(self) -> int:
        """Inputs of a block, and those behind the row that its last runs have."""
        return self.block * self.held * 32

    def fits(self) -> bool:
        """Tell whether the registers are enough."""
        return self.turns <= TURNS

    def place(self, warp):
        """Return which warp of its block a warp of the row is."""
        return 0 if self.apart else warp

    def first(self, warp):
        """Return the first run of the block of a warp of the row."""
        return warp if self.apart else 0

    def input(self, n, warp, lane):
        """Return which input number n of a lane is."""
        run = n // HELD * self.warps + warp
        return run * SPAN + n % HELD * 32 + lane
