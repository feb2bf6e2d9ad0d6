"""One side of a benchmark's `--peer`: speaks the guide's interface only, so any implementation of it can be timed.

Run by its path with PYTHONPATH at the implementation. The first line of stdin is JSON with the sizes; each further line
is `[CASE, REPEATS]`, answered with seconds per call. What is missing is answered with `error: ...`.
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any


def find(package: str, name: str) -> Any:
    """The attribute `name` of a package, or of the first of its modules that defines it."""
    module = importlib.import_module(package)
    place = Path(next(iter(module.__path__))).resolve()
    if Path.cwd().resolve() not in place.parents:
        raise LookupError(f"its {package} is no package of Python's, which took {place} instead")
    if hasattr(module, name):
        return getattr(module, name)
    for found in pkgutil.walk_packages(module.__path__, f"{package}."):
        try:
            candidate = importlib.import_module(found.name)
        except ImportError:  # of something that this machine lacks
            continue
        if hasattr(candidate, name):
            return getattr(candidate, name)
    raise LookupError(f"{package} has no {name}")


def chain_and_log_prob(drawn: Any) -> tuple[Any, Any]:
    """What `get_action` gave: an object with names, or a tuple in which the shapes tell what is what."""
    if hasattr(drawn, "states"):
        return drawn.states, drawn.log_prob
    tensors = list(drawn.values()) if isinstance(drawn, dict) else list(drawn)
    chain = next((x for x in tensors if x is not None and x.dim() == 4), None)
    log_prob = next((x for x in tensors if x is not None and x.dim() == 1), None)
    if chain is None or log_prob is None:
        raise LookupError("get_action gives no denoising chain (b k1 h a) with its log-probability (b)")
    return chain, log_prob


def cases(sizes: dict[str, int]) -> dict[str, Callable[[], object]]:
    import torch

    torch.manual_seed(0)
    torch.set_num_threads(sizes["threads"])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows, horizon, width, cond_dim = sizes["rows"], sizes["horizon"], sizes["action_dim"], sizes["cond_dim"]
    net = find("nets", "ShortCutVelocityUNet1D")(input_dim=width, global_cond_dim=cond_dim)
    agent = find("reinflow", "ReinFlowAgent")(
        velocity_net=net,
        obs_dim=cond_dim,
        act_dim=width,
        pred_horizon=horizon,
        act_horizon=horizon // 2,
        num_inference_steps=sizes["k"],
    ).to(device)
    x, cond = torch.randn(rows, horizon, width, device=device), torch.randn(rows, cond_dim, device=device)
    t = d = torch.full((rows,), 0.5, device=device)
    actions, log_probs = chain_and_log_prob(agent.get_action(cond))
    actions, log_probs = actions.detach(), log_probs.detach()
    targets = torch.randn(2, rows, device=device)

    def forward() -> Any:
        return net(sample=x, timestep=t, step_size=d, global_cond=cond)

    @torch.no_grad()
    def network() -> Any:
        return forward()

    def network_gradient() -> None:
        agent.zero_grad()
        forward().square().mean().backward()

    @torch.no_grad()
    def sample() -> Any:
        return agent.get_action(cond)

    def update() -> None:
        agent.zero_grad()
        losses = agent.compute_ppo_loss(
            obs_cond=cond, actions=actions, old_log_probs=log_probs, advantages=targets[0], returns=targets[1]
        )
        losses["loss"].backward()

    return {"network": network, "network and gradient": network_gradient, "sample": sample, "loss and gradient": update}


def answered(answer: IO[str], function: Callable[[], Any]) -> bool:
    """Write what `function` gives, or what it raises."""
    try:
        line = json.dumps(function())
    except Exception as error:  # whatever another implementation raises is its answer
        line = f"error: {type(error).__name__}: {error}".replace("\n", " ")
    print(line, file=answer, flush=True)
    return not line.startswith("error: ")


def timed(run: Callable[[], object], repeats: int) -> float:
    import torch

    start = time.perf_counter()
    for _ in range(repeats):
        run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / repeats


def main() -> None:
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # an implementation may print, which is no answer
    sys.path.pop(0)  # the folder of this file, whose names are not the implementation's
    made: dict[str, Callable[[], object]] = {}
    sizes = json.loads(sys.stdin.readline())
    if not answered(answer, lambda: made.update(cases(sizes)) or list(made)):
        return
    for line in sys.stdin:
        name, repeats = json.loads(line)
        if not answered(answer, lambda name=name, repeats=repeats: timed(made[name], repeats)):
            return


if __name__ == "__main__":
    main()
