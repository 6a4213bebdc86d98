"""SmolLM3: LLaMA of which every fourth layer has no rotary embedding."""

import dataclasses

from shiftadd_tvm.config_fields import Config, field, sliding_layers, window
from shiftadd_tvm.decoder_model import Decoder
from shiftadd_tvm.errors import BadFileError
from shiftadd_tvm.families._llama_like import llama_like, tiny

TITLE = "SmolLM3 3B"


def read_config(config: Config) -> Decoder:
    """Return the decoder; raise `BadFileError` or `UnsupportedError` with the key at fault."""
    bias = field(config, "attention_bias", bool, False)
    found = llama_like(
        config,
        "smollm3",
        bias=bias,
        output_bias=bias,
        mlp_bias=field(config, "mlp_bias", bool, False),
        positions=32768,
        tied=True,
        theta=2000000.0,
    )
    turned = _turned(config, found.layers)
    size = window(config, None) if field(config, "use_sliding_window", bool, False) else 0
    names = ["full_attention" if turns or not size else "sliding_attention" for turns in turned]
    sliding = sliding_layers(config, found.layers, names)
    pairs = zip(found.ropes, turned, strict=True)
    return dataclasses.replace(
        found,
        ropes=tuple(rope if turns else None for rope, turns in pairs),
        windows=tuple(size if slides else 0 for slides in sliding),
    )


def _turned(config: Config, layers: int) -> list[bool]:
    """Return whether each layer has a rotary embedding: `no_rope_layers` holds 1 where it does."""
    every = max(field(config, "no_rope_layer_interval", int, 4), 1)
    found = config.get("no_rope_layers") or [int((i + 1) % every != 0) for i in range(layers)]
    if not isinstance(found, list) or len(found) != layers or any(v not in (0, 1) for v in found):
        raise BadFileError(
            f"config.json has no_rope_layers {str(found)[:80]}, expected {layers} of 0 and 1; "
            "use the config.json that belongs to the checkpoint."
        )
    return [value == 1 for value in found]


def tiny_config() -> Config:
    """Return a model whose second layer has no rotary embedding."""
    return tiny("smollm3", "SmolLM3ForCausalLM", no_rope_layers=[1, 0], pad_token_id=0)
