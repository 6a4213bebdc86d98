"""Run the command line as `python -m shiftadd_tvm`."""

from shiftadd_tvm.cli import main

if __name__ == "__main__":
    main()
