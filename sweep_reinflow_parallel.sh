#!/usr/bin/env bash
# The 22-configuration ablation of Stage 3 over the GPUs of this machine: ./sweep_reinflow_parallel.sh --help
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
PYTHON=$ROOT/.venv/bin/python
[ -x "$PYTHON" ] || PYTHON=python
PYTHONPATH=$ROOT${PYTHONPATH:+:$PYTHONPATH} exec "$PYTHON" -m reinflow.sweep "$@"
