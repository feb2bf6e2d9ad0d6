"""Online reinforcement-learning fine-tuning of flow-matching robot policies on ManiSkill."""

__version__ = "0.1.0"
