"""Measurements behind docs/benchmarks.md: `python -m benchmarks <name> [flags]`, one module with `main()` each.

Modules with a leading underscore hold what several of them share. Nothing that is installed imports this package.
"""
