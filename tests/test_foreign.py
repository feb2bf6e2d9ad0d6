"""Files that torch.save wrote: converted by name and shape, or refused; their code never runs."""

from __future__ import annotations

from dataclasses import asdict

import pytest
import torch

from reinflow.errors import UserError
from reinflow.foreign import Config, main
from reinflow.policies import build_policy
from reinflow.storage.checkpoint import load_checkpoint, load_policy
from tests.test_checkpoint import ENV, SPEC, Stranger, saved


@pytest.mark.parametrize(
    "wrap", [lambda net: net, lambda net: {"model": {f"actor.network.{k}": v for k, v in net.items()}}]
)
def test_weights_of_other_code_are_matched_by_name_and_shape_and_reported(tmp_path, capsys, wrap):
    saved(tmp_path / "like.pt")
    other = build_policy(SPEC)
    torch.save(wrap(other.net.state_dict()), tmp_path / "old.pt")
    main(Config(str(tmp_path / "old.pt"), str(tmp_path / "new.pt"), like=str(tmp_path / "like.pt")))
    loaded, checkpoint = load_policy(tmp_path / "new.pt", "cpu")
    assert all(torch.equal(a, b) for a, b in zip(loaded.net.parameters(), other.net.parameters(), strict=True))
    assert checkpoint.env_spec == ENV
    assert capsys.readouterr().out.count(" <- ") == len(other.net.state_dict())


def test_the_first_format_is_converted_whole(tmp_path):
    policy = build_policy(SPEC)
    old = {"format": "reinflow-checkpoint", "version": 1, "policy_spec": SPEC.to_dict(), "env_spec": asdict(ENV),
           "policy_state": policy.state_dict(), "critic_state": {"w": torch.ones(2)}, "extra": {}, "meta": {},
           "training": None}  # fmt: skip
    torch.save(old, tmp_path / "old.pt")
    main(Config(str(tmp_path / "old.pt"), str(tmp_path / "new.pt")))
    checkpoint = load_checkpoint(tmp_path / "new.pt")
    assert (checkpoint.policy_spec, checkpoint.env_spec) == (SPEC, ENV)
    assert torch.equal(checkpoint.parts["critic"]["w"], torch.ones(2))


def test_what_does_not_fit_is_named_and_nothing_is_written(tmp_path):
    saved(tmp_path / "like.pt")
    state = build_policy(SPEC).net.state_dict()
    first = next(iter(state))
    state[first] = torch.zeros(1)
    torch.save(state, tmp_path / "old.pt")
    with pytest.raises(UserError, match=rf"no weights for net\.{first}"):
        main(Config(str(tmp_path / "old.pt"), str(tmp_path / "new.pt"), like=str(tmp_path / "like.pt")))
    with pytest.raises(UserError, match="--like"):
        main(Config(str(tmp_path / "old.pt"), str(tmp_path / "new.pt")))
    assert not (tmp_path / "new.pt").exists()


def test_a_file_with_code_is_not_opened(tmp_path):
    torch.save({"model": Stranger()}, tmp_path / "old.pt")
    with pytest.raises(UserError, match="more than weights"):
        main(Config(str(tmp_path / "old.pt"), str(tmp_path / "new.pt")))
