"""Operators: what each computes, as a tensor expression (TIR where that cannot say it) and NumPy.

One file an operator. `REFERENCES` maps every operator name that the file defines to its NumPy
reference; the reference is the specification, and every schedule on every target is tested against
it. In the Relax graph an operator is a function of its own that carries its name under `OP`, the
attribute by which passes and schedules find it. Operators know nothing of schedules or targets.
"""

REQUIRED = ("REFERENCES",)

OP = "shiftadd.op"
KEY = "shiftadd.key"  # attribute: what an operator depends on beside its operands' types, as JSON
WAITS = "shiftadd.waits"  # attribute: its kernel waits by itself (`overlapping_launches.py`)
CHAIN = "shiftadd.chain"  # attribute of operators that were made one (`fused_producers.py`)
