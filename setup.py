"""Find the packages, those in shiftadd_tvm/ and the two that are mapped into it; build libshiftadd.

`schedules/` and `tuning_logs/` lie at the top because people edit them most; they are installed
as `shiftadd_tvm.schedules` and `shiftadd_tvm.tuning_logs` (`package-dir` in pyproject.toml).
Listing them here by search keeps "a new target is one folder" true.

A wheel holds libshiftadd (runtime/native_build.py), so that it is one platform's; an editable
installation builds it into the source tree.
"""

import importlib.util
import platform
import sys
from pathlib import Path

from setuptools import Command, Distribution, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build import build

MAPPED = ("schedules", "tuning_logs")
RUNTIME = Path("shiftadd_tvm") / "runtime"


def mapped_packages(folder: str) -> list[str]:
    """Return the installed names of the package in `folder` and of all packages below it."""
    return [f"shiftadd_tvm.{name}" for name in find_packages(include=[folder, f"{folder}.*"])]


def load_builder():
    """Return the module native_build, without importing the package, which needs what is not here yet."""
    spec = importlib.util.spec_from_file_location("native_build", RUNTIME / "native_build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def travels() -> bool:
    """Tell whether zig is here, whose libraries run on every Linux since 2018."""
    return importlib.util.find_spec("ziglang") is not None


class BuildNative(Command):
    """Build libshiftadd into the wheel, or (editable) into the source tree."""

    description = "build libshiftadd"
    user_options = []
    editable_mode = False

    def initialize_options(self):
        """Know nothing yet."""
        self.build_lib = None

    def finalize_options(self):
        """Build where Python's files go."""
        self.set_undefined_options("build_py", ("build_lib", "build_lib"))

    def run(self):
        """Build; one sentence where that cannot be."""
        builder = load_builder()
        try:
            if not self.editable_mode:
                machine = platform.machine() if travels() else None
                builder.build(Path(self.get_outputs()[0]), machine)
            elif not builder.is_current(builder.IN_TREE):
                builder.build(builder.IN_TREE)
        except builder.BuildError as error:
            sys.exit(str(error))

    def get_outputs(self):
        """Return the library's path in the wheel."""
        return [str(Path(self.build_lib) / RUNTIME / "lib" / "libshiftadd.so")]

    def get_output_mapping(self):
        """Return nothing: the library is no copy of a source."""
        return {}

    def get_source_files(self):
        """Return what the library is made of."""
        return [str(path) for path in sorted((RUNTIME / "cpp").rglob("*")) if path.is_file()]


class Build(build):
    """The usual build, and libshiftadd where an installation is made: lint needs none."""

    makes_installation = lambda self: bool(
        {"bdist_wheel", "editable_wheel"} & set(self.distribution.commands)
    )
    sub_commands = [*build.sub_commands, ("build_native", makes_installation)]


class Wheel(bdist_wheel):
    """Any Python 3, one platform."""

    def get_tag(self):
        """Return the wheel's tag."""
        machine = platform.machine()
        return "py3", "none", f"manylinux_2_28_{machine}" if travels() else f"linux_{machine}"


class PlatformDistribution(Distribution):
    """Holds machine code, though no extension module."""

    def has_ext_modules(self):
        """Return that a wheel is one platform's."""
        return True


setup(
    packages=find_packages(include=["shiftadd_tvm", "shiftadd_tvm.*"])
    + [name for folder in MAPPED for name in mapped_packages(folder)],
    cmdclass={"build": Build, "build_native": BuildNative, "bdist_wheel": Wheel},
    distclass=PlatformDistribution,
)
