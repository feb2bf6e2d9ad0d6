"""Options of the algorithms: plain values, without torch, so that a command line is quick."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Literal

from reinflow.errors import UserError
from reinflow.flags import Flat
from reinflow.specs import Objective


@dataclass(frozen=True)
class DispersiveConfig:
    """Dispersion of hidden features while a policy is cloned or weighted."""

    dispersive: Literal["none", "infonce_l2", "infonce_cosine", "hinge", "covariance"] = "none"
    """what pushes the features of a batch apart"""
    dispersive_weight: float = 0.5
    """weight beside the family's own loss"""
    dispersive_temperature: float = 0.5
    """temperature of the two InfoNCE losses"""
    dispersive_margin: float = 1.0
    """squared distance per feature from which `hinge` pushes no more"""
    dispersive_layer: Literal["early", "mid", "late", "all"] = "mid"
    """hidden layer of the network: its first, middle or last block, or the mean over all of them"""

    def __post_init__(self) -> None:
        if self.dispersive_weight < 0:
            raise UserError(f"--dispersive_weight {self.dispersive_weight} must not be negative: it would contract")
        if min(self.dispersive_temperature, self.dispersive_margin) <= 0:
            raise UserError("--dispersive_temperature and --dispersive_margin must be positive")


@dataclass(frozen=True)
class BCConfig:
    """Optimisation of a cloned policy."""

    lr: float = 1e-4
    """peak learning rate"""
    lr_warmup: int = 500
    """iterations until the peak, at most a tenth of the run"""
    weight_decay: float = 1e-6
    """AdamW's decay"""
    max_grad_norm: float = 1.0
    """gradient norm limit"""
    ema_decay: float = 0.999
    """decay of the moving average of the weights"""
    use_ema_teacher: bool = True
    """shortcut bootstrap targets come from the moving average instead of the weights themselves"""
    draws: int = 1
    """noises and times drawn per row: several for one encoding, where encoding pictures costs more than the flow"""
    bf16: bool = False
    """evaluate encoder and network in bfloat16; weights and the loss itself stay float32"""
    random_shift: int = 4
    """pixels by which the pictures of a row are moved at random; 0 is off"""
    dispersion: Flat[DispersiveConfig] = field(default_factory=DispersiveConfig)


@dataclass(frozen=True)
class AWRConfig:
    """How strongly the advantage weights the regression."""

    beta: float = 3.0
    """inverse temperature, per std of the advantage; 0 is behaviour cloning, 10 nearly picks the better rows"""
    weight_clip: float = 20.0
    """largest weight before the weights are divided by their mean; an average advantage weighs 1"""


@dataclass(frozen=True)
class CriticConfig:
    """Q and V of an offline algorithm."""

    gamma: float = 0.97
    """discount per env step; Stage 3 must use the same to start from this V"""
    tau: float = 0.005
    """step of the target Qs towards the Qs, per iteration"""
    num_qs: int = 10
    """members of the Q ensemble"""
    num_min_qs: int = 2
    """random target members whose minimum is bootstrapped"""
    expectile: float = 0.7
    """V is this expectile of Q; 0.5 is the mean"""
    lr_critic: float = 3e-4
    """learning rate of Q and V"""
    reward_scale: float = 1.0
    """multiplies rewards while Q and V train; the V that is saved predicts unscaled returns"""
    q_hidden_dim: int = 256
    """width of the Qs"""


@dataclass(frozen=True)
class PPOFlags:
    """Proximal policy optimisation; what is None comes from the checkpoint or has the default named here."""

    gamma: float | None = None
    """discount per env step; default is that of the checkpoint's V, else 0.97"""
    gae_lambda: float = 0.9
    """decay of the advantage estimate per decision"""
    ppo_epochs: int = 4
    """passes over each rollout"""
    minibatch_size: int = 512
    """decisions per gradient step"""
    micro_batch_size: int | None = None
    """decisions evaluated at a time: less memory, the same gradient; None takes a minibatch at once"""
    lr: float = 8e-5
    """learning rate of the velocity network"""
    lr_noise: float = 3e-5
    """learning rate of the exploration noise"""
    lr_critic: float = 1e-3
    """learning rate of the value network"""
    clip_ratio: float = 0.15
    """clip range of the scaled ratio"""
    logprob_reduction: Literal["sum", "sqrt", "mean"] = "sqrt"
    """the log-ratio of D scored Gaussians is divided by 1, sqrt(D) or D"""
    scored: Literal["feeds", "executed", "all"] = "feeds"
    """numbers in the log-probability: `feeds` all that reach the env, directly or through the network"""
    ratio_of: Literal["chain", "step"] = "chain"
    """what is compared and clipped: a whole chain, or each of its steps by itself as in DPPO"""
    clip_ratio_base: float | None = None
    """clip range of the first step, from which it grows to --clip_ratio at the last; None is the same for all. With
    --ratio_of step"""
    denoising_discount: float = 1.0
    """factor of the advantage for every step that a step comes before the last. With --ratio_of step"""
    count_initial_noise: bool = False
    """count x_0's dimensions, whose density cancels, in the D of `logprob_reduction`"""
    normalize_advantages: bool = True
    """zero mean and unit std over each rollout"""
    entropy_coef: float = 0.0
    """weight of the noise's entropy per scored dimension"""
    w2_coef: float = 0.0
    """weight of the squared distance to the actions of the policy before fine-tuning; DMPO has 0.05, 0 is off"""
    w2_decay_steps: int = 500_000
    """env steps until that weight has fallen to 0; 0 keeps it"""
    value_coef: float = 0.5
    """weight of the value loss"""
    max_grad_norm: float = 1.0
    """gradient norm limit, of actor and critic apart"""
    target_kl: float | None = None
    """the actor skips an update's remaining epochs once an epoch's mean KL, in joint nats, exceeds this; None is off"""
    critic_warmup_steps: int = 6_000
    """env steps that train the critic alone, rounded up to whole iterations"""
    online_random_shift: int = 0
    """pixels by which the pictures of a decision may be moved before the policy sees them; 0 is off"""

    def __post_init__(self) -> None:
        if self.ratio_of == "chain" and (self.clip_ratio_base is not None or self.denoising_discount != 1):
            raise UserError(
                "--clip_ratio_base and --denoising_discount are for single steps: pass --ratio_of step, too"
            )
        if self.clip_ratio_base is not None and not 0 < self.clip_ratio_base <= self.clip_ratio:
            raise UserError(
                f"--clip_ratio_base {self.clip_ratio_base} must be above 0 and at most --clip_ratio {self.clip_ratio}"
            )
        if not 0 < self.denoising_discount <= 1:
            raise UserError(f"--denoising_discount {self.denoising_discount} must be above 0 and at most 1")

    def completed(self, objective: Objective | None = None) -> PPOConfig:
        """With the discount of `objective` where none is set."""
        values = {one.name: getattr(self, one.name) for one in fields(PPOFlags)}
        if self.gamma is None:
            values["gamma"] = objective.gamma if objective else PPOConfig.gamma
        return PPOConfig(**values)


@dataclass(frozen=True)
class PPOConfig(PPOFlags):
    """Proximal policy optimisation, with nothing left to decide."""

    gamma: float = 0.97
    """discount per env step"""

    @property
    def rows_at_a_time(self) -> int:
        """Decisions that a gradient step evaluates together."""
        return min(self.micro_batch_size or self.minibatch_size, self.minibatch_size)

    def warms_critic_up(self, env_steps: int) -> bool:
        """Whether an iteration that starts after `env_steps` trains the critic alone."""
        return env_steps < self.critic_warmup_steps
