"""A round of turns: ours and the peers that could take part; what fails is out, and keeps its reason."""

import contextlib
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import TypeVar

from shiftadd_tvm.benchmark.peers import Peer
from shiftadd_tvm.benchmark.turns import Contender, ContenderError, Fields

OURS = ""  # our name among the players

T = TypeVar("T")


class Game:
    """Contenders by name, in the order of their turns. Use it as a context manager."""

    def __init__(self, module: str, request: Fields) -> None:
        """Seat ours; raises what it raises."""
        self._stack = contextlib.ExitStack()
        self._players = {OURS: self._stack.enter_context(Contender(module, request))}
        self.infos = {OURS: self._players[OURS].info}
        self.absent: dict[str, Fields] = {}  # peers that cannot play, or could not go on

    def seat(self, peers: Iterable[Peer], request: Fields) -> None:
        """Seat each peer that is installed and can prepare `request`."""
        for peer in peers:
            try:
                peer.check()
                contender = Contender(peer.module, {**request, **peer.options})
            except ContenderError as error:
                self._out(peer.name, error)
                continue
            self._players[peer.name] = self._stack.enter_context(contender)
            self.infos[peer.name] = contender.info

    def ours(self) -> Contender:
        """Return our contender."""
        return self._players[OURS]

    def peers(self) -> list[str]:
        """Return the names of the peers that still play."""
        return [name for name in self._players if name != OURS]

    def round(self, play: Callable[[Contender], T]) -> dict[str, T]:
        """Return what `play` gives for each contender in turn; a peer that dies is out."""
        results = {}
        for name, player in list(self._players.items()):
            try:
                results[name] = play(player)
            except ContenderError as error:
                if name == OURS:
                    raise
                del self._players[name]
                self._out(name, error)
        return results

    def _out(self, name: str, error: ContenderError) -> None:
        self.absent[name] = {"error": str(error), "ratio": None}

    def __enter__(self) -> "Game":
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End all processes."""
        self._stack.close()
