"""Benches: who takes part, in which order, and what is made of the times.

Every contender, ours included, is a process of its own in this process group, for three reasons: thread
pools of different libraries that share a process disturb each other (OpenMP's, ONNX Runtime's and TVM's
all spin), a library that crashes costs one line of the table, and each can be started with the thread
count and the environment that it needs. They play in turns, A B C A B C, one at a time, so that a
machine that slows down slows all of them; `turns.py` is the game, `models.py` and `kernels.py` are the
two benches, `statistics.py` makes medians of the rounds. Nothing here loads a library.
"""
