"""What files are called, for who has to name one without opening it."""

BEST, MODEL = "best_model.safetensors", "model.safetensors"
"""the best policy of a run, and the policy of a state to resume from"""
FORMER_BEST = "best_model.pt"
"""the name of BEST in runs of earlier versions and in the guide; on a command line each of the two means the other"""


def under_former_name(path: str) -> str:
    """The path of a run's best policy as it was before the file got its present name."""
    return path.removesuffix(BEST) + FORMER_BEST if path.endswith(BEST) else path
