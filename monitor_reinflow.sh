#!/usr/bin/env bash
# A live table of a sweep, from its status files: ./monitor_reinflow.sh --help
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
PYTHON=$ROOT/.venv/bin/python
[ -x "$PYTHON" ] || PYTHON=python
PYTHONPATH=$ROOT${PYTHONPATH:+:$PYTHONPATH} exec "$PYTHON" -m reinflow.sweep.monitor "$@"
