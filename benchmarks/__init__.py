"""Measurements behind docs/benchmarks.md: `python -m benchmarks <name> [flags]`, one module with `main()` each."""
