"""Makes demonstrations: scripted experts, the motion planner, replays; `reinflow.data` reads them.

Only Stage 0 imports it. It simulates and writes; nothing in it learns.
"""
