"""Ablations over many runs of Stage 3, each a process of its own script. Besides itself only the report imports it.

configs.py    the 22 configurations of the guide, each as what differs from the baseline
plan.py       configurations times seeds as jobs: a command line and an identity each
attempt.py    a job becomes a process, and its end a state
local.py      runs the jobs of a plan on the GPUs, or the cores, of this machine
ray.py        on a Ray cluster
slurm.py      on Slurm
records.py    one small JSON file per job: queued, running, done, failed or killed
monitor.py    a table of a sweep, from those files and the runs' status.json
results.py    what the runs came to, for the report
"""
