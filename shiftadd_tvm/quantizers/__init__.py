"""Quantizers: one method each, found by its file's name; torch room, may not import tvm."""

REQUIRED = ("quantize",)
