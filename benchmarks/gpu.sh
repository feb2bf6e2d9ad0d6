#!/usr/bin/env bash
# Tests and benchmarks of a GPU in under nine minutes, most important first: bash benchmarks/gpu.sh OUT
# A step that fails or takes too long ends nothing; OUT/table.md says all. --dry runs tiny sizes anywhere.
cd "$(dirname "${BASH_SOURCE[0]}")/.." && exec "${PYTHON:-python3}" -m benchmarks gpu "$@"
