"""Schedules: how operators run on a target. One folder a target family, one file a kernel.

A family folder's `__init__` holds `PRESETS` (name -> `shiftadd_tvm.backend.Backend`); each kernel
file defines `REQUIRED`: the operator names that it schedules, and the function that does it. A
kernel file knows its target, and nothing of graphs or models.

`schedule` changes the loops of the function that it is given; where loops cannot say it (which data
decide what is read, so that no rule may move them), it returns another function of the same arguments.

A kernel file that tuning may improve also defines `KNOBS` (name -> `shiftadd_tvm.backend.Knob`), which
`schedule` takes by name and which decide how its block `sums` runs, and `restore`, which registers
the intrinsic that a tuning record names.
"""

REQUIRED = ("OPS", "schedule")
