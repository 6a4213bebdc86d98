"""One progress over stages of different work: each has its share of the whole."""

from collections.abc import Callable, Mapping

Progress = Callable[[int, int, str], None]  # weights done, weights in all, what is being done


class StageProgress:
    """Turns the share of a stage that is done into weights of the whole run."""

    def __init__(self, progress: Progress, weights: int, work: Mapping[str, float]) -> None:
        """`work` is the relative work of the stages, in their order."""
        self._progress, self._weights = progress, weights
        total, begin = sum(work.values()), 0.0
        self._spans: dict[str, tuple[float, float]] = {}
        for stage, amount in work.items():
            self._spans[stage] = begin / total, amount / total
            begin += amount

    def report(self, stage: str, share: float, what: str) -> None:
        """Tell that `share` (0 to 1) of `stage` is done, and what is being done."""
        begin, width = self._spans[stage]
        self._progress(round(self._weights * (begin + width * share)), self._weights, what)
