"""A whole model for a GPU, without one: compiled to machine code, and run on the emulated GPU."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command import finished
from conftest import Tiny
from cuda_emulation import Emulator
from models import save_tiny, save_tokenizer, tiny_tensors, write_checkpoint

from shiftadd_tvm import backend, diagnosis, families, runtime_libraries
from shiftadd_tvm.artifact import LIBRARY, Artifact
from shiftadd_tvm.compile_settings import CompileSettings
from shiftadd_tvm.compiler import CompileReport, compile_model
from shiftadd_tvm.cuda import codegen, driver, nvrtc, reading, toolkit
from shiftadd_tvm.errors import OutputError, ShiftAddError, UnsupportedError, UsageError
from shiftadd_tvm.packed import open_packed
from shiftadd_tvm.quantization import quantize
from shiftadd_tvm.sdk import gpu
from shiftadd_tvm.settings import QuantizeSettings

GREEDY = ("--max-new-tokens", "6", "--temperature", "0")


class Built:
    """A bundle, its kernels in emulation, and what compiling it left behind."""

    def __init__(
        self, packed: Path, folder: Path, preset: str = "cuda-sm90", **settings_: Any
    ) -> None:
        self.artifact, self.dump = folder / "app", folder / "dump"
        given = {"sequences": 2, "dump_ir": self.dump, "package": "bundle", **settings_}
        settings, target = CompileSettings(**given), backend.load(preset)
        self.report: CompileReport = compile_model(
            open_packed(packed), self.artifact, target, settings, version="test"
        )
        self.source = (self.dump / "kernels.cu").read_text()
        self.emulator = Emulator(folder / "gpu")
        self.kernels = self.emulator.kernels(self.source + reading.SOURCE, "tiny")

    def run(self, *arguments: str, **gpu: object) -> subprocess.CompletedProcess[str]:
        """Run a script with the emulated GPU."""
        environment = self.emulator.environment(self.kernels, **gpu)
        command = [sys.executable, *arguments]
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False
        )


@pytest.fixture(scope="module")
def built(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Built:
    return Built(tiny.packed, tmp_path_factory.mktemp("cuda"))


@pytest.fixture
def no_driver() -> None:
    if driver.present():
        pytest.skip("this machine has a CUDA driver")


def test_it_holds_machine_code(built: Built) -> None:
    manifest = Artifact(built.artifact).manifest
    library = (built.artifact / LIBRARY).read_bytes()
    assert codegen.SOURCE_MARK not in library
    assert library.count(nvrtc.ELF) > 1  # the host's, and the GPU's inside of it
    assert manifest["target"]["device"] == "sm_90"
    assert manifest["packed_order"] == "fragments-rows32"
    assert manifest["activations"] == {"lut_query": "fixed16"}
    assert built.report.kernels["fallback"] == 0
    assert manifest["verified"] is False


def test_it_reproduces_the_packed_model_on_the_emulated_gpu(built: Built) -> None:
    """By libshiftadd, with prefill and token by token: the same rule as on processors."""
    child = built.run("-m", "shiftadd_tvm", "verify", "--json", str(built.artifact))
    assert child.returncode == 0, child.stderr
    found = json.loads(child.stdout)
    assert found["tokens_equal"] and found["max_logit_error"] > 0
    assert Artifact(built.artifact).manifest["verified"] is True


def test_scales_of_row_groups_on_the_emulated_gpu(tmp_path: Path) -> None:
    """The same, of a model whose scales one row and 128 inputs have alone; three groups in one linear."""
    save_tiny(tmp_path / "source", intermediate_size=288, num_hidden_layers=1)
    settings = QuantizeSettings(bits=2, scale_format="row-group", columns=128, max_rotation=0)
    quantize(tmp_path / "source", tmp_path / "packed", settings)
    built = Built(tmp_path / "packed", tmp_path / "cuda")
    assert built.report.kernels["fallback"] == 0 and "lut_bits_group_kernel" in built.source
    assert "lut_block" not in built.source
    assert Artifact(built.artifact).manifest["activations"] == {"lut_query": "fixed16"}
    child = built.run("-m", "shiftadd_tvm", "verify", "--json", str(built.artifact))
    assert child.returncode == 0, child.stderr
    assert json.loads(child.stdout)["tokens_equal"]


@pytest.mark.parametrize("activations", ["fixed16", "shuffle16"])
def test_it_reproduces_the_packed_model_where_launches_overlap(
    activations: str, tmp_path: Path
) -> None:
    """The same numbers; what is asked for ahead lies within the planes."""
    save_tiny(tmp_path / "source", num_hidden_layers=1)
    quantize(tmp_path / "source", tmp_path / "packed", QuantizeSettings(bits=3))
    chosen = {"activations": activations, "sequences": 1, "launches": "overlapping"}
    built = Built(tmp_path / "packed", tmp_path / "cuda", "cuda-sm90", **chosen)
    assert "shiftadd_prefetch(" in built.source and built.report.kernels["fallback"] == 0
    assert "--launches overlapping" in Artifact(built.artifact).manifest["command"]
    child = built.run("-m", "shiftadd_tvm", "verify", "--json", str(built.artifact), ARCH=90)
    assert child.returncode == 0, child.stderr
    assert json.loads(child.stdout)["tokens_equal"]


@pytest.mark.parametrize("family", ["qwen3", "gpt_neox", "gpt2"])
def test_heads_of_other_families_on_the_emulated_gpu(family: str, tmp_path: Path) -> None:
    """Normalized and turned; those of q, k and v in turn, and turned in part; as they are."""
    config = families.load({"model_type": family}).tiny_config()
    write_checkpoint(tmp_path / "source", config, tiny_tensors(config))
    save_tokenizer(tmp_path / "source", int(str(config["vocab_size"])))
    quantize(tmp_path / "source", tmp_path / "packed", QuantizeSettings(bits=3))
    built = Built(tmp_path / "packed", tmp_path / "cuda", sequences=1)
    assert built.report.kernels["fallback"] == 0 and "attend_parts_kernel" in built.source
    child = built.run("-m", "shiftadd_tvm", "verify", "--json", str(built.artifact))
    assert child.returncode == 0, child.stderr
    assert json.loads(child.stdout)["tokens_equal"]


@pytest.mark.parametrize("launches", ["ordered", "overlapping"])
def test_long_rows_on_the_emulated_gpu(launches: str, tmp_path: Path) -> None:
    """Many blocks make them, in two kernels; the sums of a step that is replayed begin at zero again."""
    save_tiny(tmp_path / "source", intermediate_size=8704)
    quantize(tmp_path / "source", tmp_path / "packed", QuantizeSettings(bits=2))
    built = Built(tmp_path / "packed", tmp_path / "cuda", sequences=1, launches=launches)
    assert built.report.kernels["fallback"] == 0 and "shiftadd_add_global(" in built.source
    child = built.run("-m", "shiftadd_tvm", "verify", "--json", str(built.artifact))
    assert child.returncode == 0, child.stderr
    assert json.loads(child.stdout)["tokens_equal"]


def test_eight_sequences_in_one_step(tmp_path: Path) -> None:
    """By products of bytes, on a GPU that has none of bits; a batch gives what each has alone."""
    save_tiny(tmp_path / "source", num_hidden_layers=1)
    quantize(tmp_path / "source", tmp_path / "packed", QuantizeSettings(bits=3))
    chosen = {"activations": "bytes16", "sequences": 8}
    built = Built(tmp_path / "packed", tmp_path / "cuda", "cuda-sm120", **chosen)
    assert built.report.kernels["fallback"] == 0
    assert "shiftadd_mma_s8(" in built.source and "shiftadd_mma_b1(" not in built.source
    assert Artifact(built.artifact).manifest["activations"] == {"lut_query": "bytes16"}
    child = built.run("-m", "shiftadd_tvm", "verify", "--json", str(built.artifact), ARCH=120)
    assert child.returncode == 0, child.stderr
    script = Path(__file__).with_name("cuda_sessions.py")
    child = built.run(str(script), str(built.artifact), "8", ARCH=120)
    assert (child.returncode, child.stdout) == (0, "equal\n"), child.stderr


def test_sequences_on_the_emulated_gpu(built: Built) -> None:
    child = built.run(str(Path(__file__).with_name("cuda_sessions.py")), str(built.artifact))
    assert (child.returncode, child.stdout) == (0, "equal\n"), child.stderr


def test_the_bench_measures_steps_up_to_the_token(built: Built) -> None:
    """The roof is the GPU's own; torch for processors is out, with its reason."""
    code = (
        "import json, sys; from pathlib import Path; from shiftadd_tvm.benchmark import models\n"
        "sizes = {'prompt_tokens': 8, 'new_tokens': 5, 'threads': 1, 'probe_bytes': 1 << 16}\n"
        "request = models.Request(**sizes, baselines=True)\n"
        "print(json.dumps(models.measure(Path(sys.argv[1]), request)))"
    )
    child = built.run("-c", code, str(built.artifact))
    assert child.returncode == 0, child.stderr
    fields = json.loads(child.stdout)
    assert fields["device"] == "emulated GPU" and fields["target"] == "cuda-sm90"
    # of the made-up clock: a graph reads the buffer four times, by blocks of 512 threads
    assert fields["dram_bandwidth_bytes_per_second"] == pytest.approx((1 << 16) / 0.512)
    assert fields["decode_tokens_per_second"] > 0 and fields["prefill_tokens_per_second"] > 0
    assert list(fields["baselines"]) == ["torch-fp16"]
    assert "finds no GPU here; install torch for CUDA" in fields["baselines"]["torch-fp16"]["error"]


def test_a_program_has_all_it_needs_beside_it_but_the_driver(
    built: Built, tmp_path: Path
) -> None:
    """A bundle that was moved, in C++: its tokens are those of Python's host; then without a library."""
    moved = shutil.copytree(built.artifact, tmp_path / "moved app")
    libraries = {path.name for path in (moved / "lib").glob("*.so*")}
    assert libraries >= {runtime_libraries.CUDA, toolkit.RUNTIME}
    assert set(Artifact(moved).manifest["bundle"]["files"]) >= {f"lib/{n}" for n in libraries}
    assert any((moved / "licenses" / gpu.PACKAGE).iterdir())
    program = tmp_path / "generate"
    folders = (f"-I{moved / 'include'}", f"-L{moved / 'lib'}", f"-Wl,-rpath,{moved / 'lib'}")
    source = Path(__file__).parent.parent / "examples" / "cpp" / "generate.cpp"
    build = ("c++", "-std=c++17", str(source), *folders, "-l:libshiftadd.so.0", "-o", str(program))
    subprocess.run(build, check=True)
    environment = built.emulator.environment(built.kernels)
    words = (str(program), str(moved), "Once upon", "6")
    found = finished(words, env=environment)
    verb = ("-m", "shiftadd_tvm", "run", "--json", str(moved), "--prompt", "Once upon", *GREEDY)
    expected = built.run(*verb)
    assert found.returncode == 0 and found.stdout == json.loads(expected.stdout)["text"], found.stderr
    (moved / "lib" / runtime_libraries.CUDA).unlink()
    lacking = finished(words, env=environment)
    assert lacking.returncode == UnsupportedError.exit_code and runtime_libraries.CUDA in lacking.stderr


def test_a_single_library_is_for_processors(tiny: Tiny, tmp_path: Path) -> None:
    settings = CompileSettings(package="single-library")
    with pytest.raises(UsageError, match=r"--single-library is for processors only.* --bundle"):
        compile_model(
            open_packed(tiny.packed), tmp_path / "app", backend.load("cuda"), settings, version="t"
        )
    assert not list(tmp_path.iterdir())


LACKS = "this machine lacks a GPU"


@pytest.mark.parametrize(
    ("gpu", "error", "sentence"),
    [
        ({"ARCH": 80}, UnsupportedError, f"{LACKS} for sm_90 (this one is sm_80)"),
        ({"GPUS": 0}, UnsupportedError, f"{LACKS} that the CUDA driver knows"),
        ({"MEMORY": 100_000}, UsageError, "out of memory; load a smaller model, or fewer sequences."),
    ],
)
def test_what_cannot_run_says_so(
    gpu: dict[str, Any], error: type[ShiftAddError], sentence: str, built: Built
) -> None:
    child = built.run("-m", "shiftadd_tvm", "run", str(built.artifact), "--prompt", "c", **gpu)
    assert child.returncode == error.exit_code
    assert sentence in " ".join(child.stderr.split()) and "Traceback" not in child.stderr


def test_a_machine_without_a_driver_says_so(built: Built, no_driver: None) -> None:
    with pytest.raises(UnsupportedError, match=r"lacks a CUDA driver \(libcuda.so.1\)"):
        Artifact(built.artifact).check_machine()


def test_the_alias_is_the_gpu_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "present", lambda: True)
    for arch, expected in ((90, "cuda-sm90"), (89, "cuda-sm89"), (75, "cuda-sm80"), (121, "cuda-sm120")):
        found = driver.Gpu("a GPU", divmod(arch, 10), 1 << 30)
        monkeypatch.setattr(driver, "gpu", lambda found=found: found)
        assert backend.load("cuda").name == expected
    monkeypatch.setattr(driver, "gpu", lambda: None)
    assert backend.load("cuda").name == "cuda-sm80"
    assert not backend.detect().device  # a GPU is used where it is asked for


def test_formats_belong_to_targets(tiny: Tiny, tmp_path: Path) -> None:
    for preset, activations in (("cuda-sm90", "int16"), ("x86-64", "fixed16")):
        target, settings = backend.load(preset), CompileSettings(activations=activations)
        with pytest.raises(UsageError, match=f"--activations is {activations}, expected one of"):
            compile_model(open_packed(tiny.packed), tmp_path / "app", target, settings, version="t")
    assert not list(tmp_path.iterdir())


def test_without_the_compiler_nothing_is_written(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(toolkit, "_roots", list)
    with pytest.raises(UnsupportedError, match=r"libnvrtc.so.13, .*pip install 'shiftadd-tvm\[cuda\]'"):
        compile_model(
            open_packed(tiny.packed),
            tmp_path / "app",
            backend.load("cuda"),
            CompileSettings(),
            version="test",
        )
    assert not list(tmp_path.iterdir())
    found = {check.name: check for check in diagnosis.examine()}["cuda compiler"]
    assert not found.ok and found.optional and "shiftadd-tvm[cuda]" in found.remedy


def test_what_doctor_says_of_the_driver() -> None:
    found = {check.name: check for check in diagnosis.examine()}
    assert found["cuda compiler"].ok and "libnvrtc" in found["cuda compiler"].detail
    gpu = found["gpu"]
    assert gpu.optional and gpu.ok == (driver.gpu() is not None)
    assert gpu.ok or "compile" in gpu.remedy


def test_the_stand_in_is_where_no_driver_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the child's environment has it, and a machine with a driver none."""
    seen: list[list[str]] = []

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        first = options["env"]["LD_LIBRARY_PATH"].split(":")[0]
        seen.append(sorted(os.listdir(first)))
        return subprocess.CompletedProcess(command, 0, "", "")

    class Link:
        command = ("c++",)

        def link(self, output: Path, objects: list[Path]) -> None:
            assert "cuLaunchKernelEx" in objects[0].read_text()
            output.touch()

    monkeypatch.setattr(codegen.subprocess, "run", run)
    for present in (False, True):
        monkeypatch.setattr(driver, "present", lambda present=present: present)
        folder = tmp_path / str(present)
        folder.mkdir()
        codegen._run_child(folder, {}, toolkit.find(), Link())
    assert driver.DRIVER in seen[0] and driver.DRIVER not in seen[1]
    assert driver.DRIVER not in os.environ.get("LD_LIBRARY_PATH", "")


def test_source_that_does_not_compile(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="do not compile for sm_90: .*error"):
        nvrtc.Nvrtc(toolkit.find()).compile("this is no CUDA", "sm_90")
