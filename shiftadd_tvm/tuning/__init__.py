"""Tuning: which values of a schedule's knobs run fastest, found by MetaSchedule and kept as records.

    tasks    which functions are worth tuning: of a model, or the shapes that we ship records for
    space    one schedule function with its knobs as a search space, mutated and ranked
    measure  a candidate is built and timed in a process of its own, on cold weights, and checked
    search   the loop: propose, measure, write down, learn; resumes where it was killed
    log      what compiling reads: pruned records of one preset, and how they came about

`shiftadd_tvm.tuner` runs `search` as a child process.
"""
