"""The peers that a bench compares with: what each is called, what it needs, and how it is asked."""

from dataclasses import dataclass, field
from pathlib import Path

from shiftadd_tvm.benchmark.turns import ContenderError, Fields, installed

# bits of ours -> llama.cpp's types of nearest size; below 2 bits it has none for CPUs but ternary ones
NEAREST = {1: ("Q2_K",), 2: ("Q2_K",), 3: ("Q3_K",), 4: ("Q4_0", "Q4_K")}
LEAST_PROBE = 1 << 16  # bytes: ours alone probes the memory


@dataclass(frozen=True)
class Peer:
    """One library in one configuration: `module` plays it, with `options` beside the common request."""

    name: str
    module: str
    packages: tuple[str, ...]  # as they are imported
    remedy: str
    options: Fields = field(default_factory=dict)

    def check(self) -> None:
        """Raise `ContenderError` with the remedy where a library is missing."""
        if not all(installed(package) for package in self.packages):
            raise ContenderError(f"not installed: {self.remedy}")


TORCH = ("torch", "transformers"), "pip install torch transformers"
ONNXRUNTIME = ("onnx", "onnxruntime"), "pip install onnx onnxruntime"
LLAMA = ("llama_cpp",), "pip install 'shiftadd-tvm[bench]' (llama-cpp-python, built from source)"
LLAMA_MODEL = ("llama_cpp", "gguf"), "pip install 'shiftadd-tvm[bench,gguf]'"


def on_gpus() -> list[Peer]:
    """Return the peers of a whole model on a GPU."""
    return [Peer("torch-fp16", "baselines.torch_model", *TORCH, {"device": "cuda"})]


def own(artifact: Path) -> list[Peer]:
    """Return an artifact of the same shape in float16 as a peer."""
    options: Fields = {"artifact": str(artifact), "probe_bytes": LEAST_PROBE}
    return [Peer("own-fp16", "runtime.measured", (), "", options)]


def models(bits: int) -> list[Peer]:
    """Return the peers of a whole model of so many bits."""
    types = NEAREST[min(max(bits, 1), 4)]
    return [
        Peer("torch-bf16", "baselines.torch_model", *TORCH),
        *(
            Peer(f"llama.cpp-{kind}", "baselines.llama_model", *LLAMA_MODEL, {"type": kind})
            for kind in types
        ),
    ]


def kernels(bits: int) -> list[Peer]:
    """Return the peers of one linear operator of so many bits."""
    return [
        Peer("torch-bf16", "baselines.torch_kernel", *TORCH),
        Peer("onnxruntime-4bit", "baselines.onnxruntime_kernel", *ONNXRUNTIME),
        *(
            Peer(
                f"llama.cpp-{kind}" + ("-repacked" if repacked else ""),
                "baselines.ggml_kernel",
                *LLAMA,
                {"type": kind, "repacked": repacked},
            )
            for kind in NEAREST[bits]
            for repacked in (False, True)
        ),
    ]
