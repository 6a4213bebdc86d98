"""Schedules: how operators run on a target. One folder a target family, one file a kernel.

A family folder's `__init__` holds `PRESETS` (name -> `shiftadd_tvm.backend.Backend`); each kernel
file defines `REQUIRED`: the operator names that it schedules, and the function that does it. A
kernel file knows its target, and nothing of graphs or models.
"""

REQUIRED = ("OPS", "schedule")
