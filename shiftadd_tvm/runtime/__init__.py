"""Run an artifact with TVM's runtime alone: no compiler, no torch."""
