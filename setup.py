"""Find the packages: those in shiftadd_tvm/, and the two that are mapped into it.

`schedules/` and `tuning_logs/` lie at the top because people edit them most; they are installed
as `shiftadd_tvm.schedules` and `shiftadd_tvm.tuning_logs` (`package-dir` in pyproject.toml).
Listing them here by search keeps "a new target is one folder" true.
"""

from setuptools import find_packages, setup

MAPPED = ("schedules", "tuning_logs")


def mapped_packages(folder: str) -> list[str]:
    """Return the installed names of the package in `folder` and of all packages below it."""
    return [f"shiftadd_tvm.{name}" for name in find_packages(include=[folder, f"{folder}.*"])]


setup(
    packages=find_packages(include=["shiftadd_tvm", "shiftadd_tvm.*"])
    + [name for folder in MAPPED for name in mapped_packages(folder)]
)
