"""The peers' parts in a bench: each file is run as a process of its own, and loads one library.

They take what `benchmark/kernels.py` or `benchmark/models.py` asks for, and answer in turns
(`benchmark/turns.py`). Each gives its library what it needs to be fast: its own weight format, warm
threads, weights that are prepared before the clock runs.
"""
