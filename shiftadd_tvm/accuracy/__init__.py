"""Other people's quantizers in one harness: same model, same calibration, same text, same protocol.

    methods/<name>.py   one published method each: (weights, H, bits) -> dequantized weights and bits
    method.py           what such a file declares, and how it is found
    harness.py          calibrates once, replaces a model's linears, scores it, keeps every row

Nothing here is deployed: a row says what a method's *weights* do to the perplexity, computed in
float32 by the reference model. The product's own rows are those of its compiled artifacts.
"""
