"""How much x_0 still decides in the policy that an offline run ends with."""

from __future__ import annotations

from reinflow.data.chunks import Batch
from reinflow.policies.flow import FlowPolicy
from reinflow.policies.spread import action_spread
from reinflow.training.learner import Metrics
from reinflow.training.trainer import Inspection, Trainer


def spread_at(overview: Batch) -> Inspection:
    """Measure a trained flow's spread over x_0 at windows of the demonstrations, once the run is over."""

    def inspect(trainer: Trainer, metrics: Metrics) -> Metrics:
        policy = trainer.loop.learner.evaluated
        if not trainer.loop.over or not isinstance(policy, FlowPolicy):
            return {}
        spread = action_spread(policy, overview.obs, overview.chunk)
        if sentence := spread.warning(policy.spec.initial_noise_scale):
            trainer.run.alarm(sentence)
        return spread.metrics()

    return inspect
