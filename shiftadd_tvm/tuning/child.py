"""The tuning process, run by `shiftadd_tvm.tuner`: a request in, lines of JSON out."""

import json
import logging
import sys
import types

from shiftadd_tvm import backend
from shiftadd_tvm.errors import ShiftAddError
from shiftadd_tvm.runtime import library
from shiftadd_tvm.tuner import TuneRequest


def spare_intrinsics() -> None:
    """Let MetaSchedule import nothing as the intrinsics of all of TVM's targets, a minute's work:
    ours are registered by the schedules that use them."""
    unused = "tvm.s_tir.tensor_intrin"
    sys.modules.setdefault(unused, types.ModuleType(unused))


def say(kind: str, value: object) -> None:
    """Tell the parent; where it has gone, the pipe breaks and there is nobody to tune for."""
    print(json.dumps({kind: value}), flush=True)


class _Said(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        say("log", [record.levelno, record.getMessage()])


def main(request: str) -> int:
    """Carry out a request in JSON; the last line is its result, or an error's class and sentence."""
    spare_intrinsics()
    with library.without_torch():
        from shiftadd_tvm.tuning import gpu, session

    logger = logging.getLogger("shiftadd_tvm")
    logger.addHandler(_Said())
    logger.setLevel(logging.INFO)
    progress = lambda done, total, what: say("progress", [done, total, what])
    asked = TuneRequest(**json.loads(request))
    on_gpu = asked.stage or backend.load(asked.preset).device
    try:
        say("result", gpu.run(asked, progress) if on_gpu else session.Tuning(asked, progress).run())
    except ShiftAddError as error:
        say("error", [type(error).__name__, str(error)])
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
