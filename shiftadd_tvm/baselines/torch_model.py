"""torch as a peer of a whole model: transformers' LlamaForCausalLM with random weights, in bfloat16 on
processors, in float16 on a GPU, where a step ends with the next token as ours does.

A model that would be too large, or too slow to set up, is built with fewer layers and measured twice
in each turn, with all of these and with one: the layers that are missing are taken to cost what those
in between cost. The note says so.
"""

import time
from typing import Any

import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from shiftadd_tvm.benchmark.turns import ContenderError, Fields, serve

MOST_BYTES = 2_000_000_000  # of weights that are built on processors
MOST_MEMORY = 0.8  # of a GPU's memory that is free, likewise
BYTES = 2  # of a weight


def layer_weights(request: Fields) -> int:
    """Return the weights of a layer's linears."""
    attention, keys = (request[name] * request["head_dim"] for name in ("heads", "kv_heads"))
    return int(request["hidden"] * (2 * attention + 2 * keys + 3 * request["intermediate"]))


def most_bytes(device: str) -> int:
    """Return how many bytes of weights are built; raises `ContenderError` without the device."""
    if device == "cpu":
        return MOST_BYTES
    if not torch.cuda.is_available():
        raise ContenderError(f"torch {torch.__version__} finds no GPU here; install torch for CUDA")
    return int(MOST_MEMORY * torch.cuda.mem_get_info()[0])


def built_layers(request: Fields, most: int = MOST_BYTES) -> int:
    """Return how many layers are built: all where they fit, else at least two."""
    matrices = 1 if request["tied_embeddings"] else 2
    left = most - BYTES * matrices * request["vocabulary"] * request["hidden"]
    return min(int(request["layers"]), max(left // (BYTES * layer_weights(request)), 2))


def extrapolated(whole: float, single: float, built: int, layers: int) -> float:
    """Return the seconds of `layers` layers, from those of `built` layers and of a single one."""
    if built == layers:
        return whole
    return whole + (layers - built) * (whole - single) / (built - 1)


class _Torch:
    """A model, and a cache filled with the prompt for each count of layers that is measured."""

    def __init__(self, request: Fields) -> None:
        torch.set_num_threads(request["threads"])
        torch.manual_seed(0)
        self.device = request.get("device", "cpu")
        self._layers, self.built = int(request["layers"]), built_layers(request, most_bytes(self.device))
        config = LlamaConfig(
            hidden_size=request["hidden"],
            intermediate_size=request["intermediate"],
            num_hidden_layers=self.built,
            num_attention_heads=request["heads"],
            num_key_value_heads=request["kv_heads"],
            head_dim=request["head_dim"],
            vocab_size=request["vocabulary"],
            max_position_embeddings=request["context"],
            tie_word_embeddings=request["tied_embeddings"],
        )
        torch.set_default_dtype(torch.bfloat16 if self.device == "cpu" else torch.float16)
        with torch.device(self.device):
            self._model = LlamaForCausalLM(config).eval()
        self._all = self._model.model.layers
        shape = (1, request["prompt_tokens"])
        self._prompt = torch.randint(0, request["vocabulary"], shape, device=self.device)
        self._counts = [self.built] if self.built == self._layers else [self.built, 1]
        self._caches: dict[int, Any] = {}
        self.prefill()

    def _run(self, count: int, tokens: torch.Tensor) -> float:
        self._model.model.layers = self._all[:count]
        with torch.inference_mode():
            begin = time.perf_counter()
            cache = self._caches[count]
            logits = self._model(tokens, past_key_values=cache, logits_to_keep=1).logits
            if self.device != "cpu":
                logits[0, -1].argmax().item()  # waits for the GPU
            return time.perf_counter() - begin

    def _whole(self, tokens: torch.Tensor) -> float:
        times = [self._run(count, tokens) for count in self._counts]
        return extrapolated(times[0], times[-1], self.built, self._layers)

    def prefill(self) -> float:
        """Return the seconds that the prompt takes in an empty cache."""
        self._caches = {count: DynamicCache() for count in self._counts}
        return self._whole(self._prompt)

    def decode(self, tokens: int) -> list[float]:
        """Return the seconds of each of so many further tokens."""
        return [self._whole(self._prompt[:, :1]) for _ in range(tokens)]


def prepare(request: Fields) -> tuple[Fields, dict[str, Any]]:
    """Return info and the actions."""
    model = _Torch(request)
    built = model.built
    matrices = request["vocabulary"] * request["hidden"]
    info: Fields = {
        "weight_bytes": BYTES * (request["layers"] * layer_weights(request) + matrices),
        "version": torch.__version__,
    }
    if built < request["layers"]:
        info["note"] = f"extrapolated to {request['layers']} layers from {built} and from 1"
    return info, {"prefill": model.prefill, "decode": model.decode}


if __name__ == "__main__":
    serve(prepare)
