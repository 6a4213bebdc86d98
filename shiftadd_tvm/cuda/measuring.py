"""Measure the candidates of an archive on the GPU of this machine: `python3 candidates.pyz`.

It needs a driver and Python 3.10 or newer, and nothing else: no package, no compiler, no other part of
CUDA. Every candidate's output is compared, bit by bit, with the numbers of the NumPy reference, which the
archive holds; those that are right are timed in turns. A task runs in a process of its own: a candidate
that crashes or hangs is left out, and the task begins again.
After each task `times.json` is written anew, and the same command goes on after the last one.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import os
import subprocess
import sys
import zipfile

from shiftadd_tvm.cuda.gpu import Fields, Gpu, MeasureError, Program, check_fits
from shiftadd_tvm.cuda.uploaded import Uploaded

TASKS, TIMES, SCHEMA = "candidates.json", "times.json", 1
ROUNDS, PERCENTILE = 40, 25
TIMEOUT = 300  # seconds, of a task


def times(gpu: Gpu, task: Uploaded, programs: list[Program]) -> list[float]:
    """Return the seconds of a call of each program, measured in turns."""
    graphs, start, end = [task.graph(program) for program in programs], gpu.event(), gpu.event()
    taken: list[list[float]] = [[] for _ in graphs]
    for _ in range(1 + ROUNDS):
        for found, graph in zip(taken, graphs, strict=True):
            found.append(gpu.seconds(graph, start, end) / task.launches)
    return [sorted(found[1:])[ROUNDS * PERCENTILE // 100] for found in taken]


def say(**fields: object) -> None:
    """Tell the parent."""
    print(json.dumps(fields), flush=True)


def run_task(path: str, index: int, left_out: list[int]) -> None:
    """Check and time the candidates of one task; the child's work."""
    with zipfile.ZipFile(path) as archive:
        fields = json.loads(archive.read(TASKS))["tasks"][index]
        gpu = Gpu()
        task, right = Uploaded(gpu, archive, fields, fields["cold"]), dict[int, Program]()
        for number, candidate in enumerate(fields["candidates"]):
            if number in left_out:
                continue
            say(begin=number)
            program = gpu.program(archive.read(candidate["image"]), candidate["launches"])
            if task.result(program) == task.expected:
                right[number] = program
            else:
                say(failed=[number, "computes other numbers than the reference"])
        say(begin=None)
        say(times=dict(zip(right, times(gpu, task, list(right.values())), strict=True)))


def measure_task(path: str, index: int, fields: Fields) -> tuple[dict[int, float], dict[int, str]]:
    """Return the seconds or the failure of each candidate of a task, by number."""
    failed: dict[int, str] = {}
    while True:
        command = [sys.executable, path, "--task", str(index), "--leave-out", json.dumps(list(failed))]
        try:
            child = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT)
            said, status = child.stdout, child.returncode
            lines = child.stderr.strip().splitlines()
            why = lines[-1] if status > 0 and lines else f"crashed (status {status})"
        except subprocess.TimeoutExpired as error:
            said, status = (error.stdout or b"").decode(), -1
            why = f"took more than {TIMEOUT} s"
        messages = [json.loads(line) for line in said.splitlines()]
        failed.update(m["failed"] for m in messages if "failed" in m)
        if status == 0:
            return {int(k): t for k, t in messages[-1]["times"].items()}, failed
        guilty = [m["begin"] for m in messages if "begin" in m]
        if not guilty or guilty[-1] is None:
            raise MeasureError(f"{fields['name']} cannot be measured: {why}")
        failed[guilty[-1]] = why


def report(fields: Fields, times: dict[int, float], failed: dict[int, str]) -> list[Fields]:
    """Return what is said of a task."""
    return [
        {"values": c["values"], "seconds": times.get(n), "failed": failed.get(n)}
        for n, c in enumerate(fields["candidates"])
    ]


def begun(path: str, output: str, device: dict[str, str]) -> Fields:
    """Return what is known already: of an earlier run on the same GPU with the same candidates."""
    with open(path, "rb") as file:
        digest = hashlib.sha256(file.read()).hexdigest()
    found: Fields = {"schema": SCHEMA, "candidates": digest, "device": device, "tasks": {}}
    found["date"] = datetime.date.today().isoformat()
    if os.path.exists(output):
        with open(output, encoding="utf-8") as before:
            earlier = json.load(before)
        if all(earlier.get(key) == found[key] for key in ("schema", "candidates", "device")):
            found["tasks"] = earlier["tasks"]
    return found


def measure(path: str, output: str) -> None:
    """Measure every task of the archive at `path` that `output` has no times of; write them there."""
    with zipfile.ZipFile(path) as archive:
        made = json.loads(archive.read(TASKS))
    device = Gpu().describe()
    check_fits(path, made["arch"], device)
    found = begun(path, output, device)
    for index, fields in enumerate(made["tasks"]):
        if fields["name"] not in found["tasks"]:
            found["tasks"][fields["name"]] = report(fields, *measure_task(path, index, fields))
            with open(output + ".partial", "w", encoding="utf-8") as file:
                json.dump(found, file, indent=1)
            os.replace(output + ".partial", output)
        print(f"{index + 1} of {len(made['tasks'])}: {fields['name']}", file=sys.stderr, flush=True)


def main(arguments: list[str]) -> int:
    """Run the program; the path of the archive is that of the program itself."""
    path = os.path.abspath(sys.argv[0])
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    beside = os.path.join(os.path.dirname(path), TIMES)
    parser.add_argument("-o", "--output", default=beside, help="default: times.json beside it")
    parser.add_argument("--task", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--leave-out", default="[]", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    try:
        if given.task is not None:
            run_task(path, given.task, json.loads(given.leave_out))
        else:
            measure(path, given.output)
    except MeasureError as error:
        print(error, file=sys.stderr)
        return 3
    return 0
