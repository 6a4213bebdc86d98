#!/bin/sh
# From a checkpoint to a C++ program that runs it: quantize, compile, cmake, run.
#
#     examples/walkthrough.sh path/to/model [FOLDER]
#
# FOLDER (default: build/walkthrough) gets packed/, the packed model; app/, a bundle, which may be copied
# to a machine without Python; and programs/, built of examples/cpp. QUANTIZE and COMPILE are more options of
# the two verbs, such as QUANTIZE="--bits 3".
set -eu
model=${1:?"usage: walkthrough.sh MODEL [FOLDER]"}
folder=${2:-build/walkthrough}
examples=$(cd "$(dirname "$0")" && pwd)
PATH="$examples/../.venv/bin:$PATH" # what `make install` made, else what is installed

mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
set -x
# shellcheck disable=SC2086 # several options
shiftadd-tvm quantize "$model" ${QUANTIZE:-} -o "$folder/packed"
# shellcheck disable=SC2086
shiftadd-tvm compile "$folder/packed" --bundle ${COMPILE:-} -o "$folder/app"
cmake -S "$examples/cpp" -B "$folder/programs" -DCMAKE_PREFIX_PATH="$folder/app"
cmake --build "$folder/programs"
"$folder/programs/generate" "$folder/app" "Once upon a time" 32
