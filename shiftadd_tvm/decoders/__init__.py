"""One decoder of machine code a file, found by the machine's name: bytes → `Instruction`s."""

REQUIRED = ("decode",)
