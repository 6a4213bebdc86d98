"""Continue a text by an artifact: prints the new text as it comes, and nothing else.

    python examples/generate.py ARTIFACT PROMPT [MAX_NEW_TOKENS]

What examples/cpp/generate.cpp does in C++, token for token: both are hosts of one library.
"""

import argparse
import sys

import shiftadd_tvm
from shiftadd_tvm.errors import ShiftAddError


def main() -> int:
    """Print the greedy continuation; return 0, or the command line's exit code for what is wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("artifact")
    parser.add_argument("prompt")
    parser.add_argument("max_new_tokens", type=int, nargs="?", default=128)
    asked = parser.parse_args()
    try:
        for piece in shiftadd_tvm.load(asked.artifact).generate(asked.prompt, asked.max_new_tokens):
            print(piece, end="", flush=True)
    except ShiftAddError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
