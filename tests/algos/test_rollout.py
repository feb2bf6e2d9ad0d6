"""The rollout buffer: what it stores, what it assumes when flags are left out, and how it hands out minibatches."""

from __future__ import annotations

import math

import pytest
import torch

from reinflow.algos.rollout import RolloutBuffer

K, H, A, Z = 2, 4, 3, 5


def make_buffer(decisions: int = 3, envs: int = 2, **options: object) -> RolloutBuffer:
    return RolloutBuffer(
        decisions * envs, Z, H, A, num_inference_steps=K, **{"gamma": 0.5, "gae_lambda": 1.0, **options}
    )


def add(buffer: RolloutBuffer, index: int, envs: int = 2, **changes: object) -> None:
    row = {
        "obs": torch.full((envs, Z), float(index)),
        "actions": torch.full((envs, K + 1, H, A), float(index)),
        "reward": torch.ones(envs),
        "value": torch.zeros(envs),
        "log_prob": torch.zeros(envs),
        "done": torch.zeros(envs, dtype=torch.bool),
    }
    buffer.add(**row | changes)


def test_rewards_are_discounted_by_the_env_steps_that_were_executed():
    # last to first at gamma .5 with V = 0 and last_value 8: 1 + .25*8 = 3;  1 + .5*3 = 2.5;  1 + .125*2.5 = 1.3125
    buffer = make_buffer()
    for index, steps in enumerate((3, 1, 2)):
        add(buffer, index, executed=torch.full((2,), steps))
    buffer.compute_returns_and_advantages(torch.full((2,), 8.0), torch.zeros(2, dtype=torch.bool))
    torch.testing.assert_close(buffer.data["returns"][:, 0], torch.tensor([1.3125, 2.5, 3.0]))


def test_done_alone_means_terminated():
    # the second decision ends: no value beyond it, although V(next) = 100; the first sees 1 + .5 * 1
    buffer = make_buffer()
    for index in range(3):
        add(buffer, index, done=torch.full((2,), index == 1), value=torch.full((2,), 100.0 * (index == 2)))
    buffer.compute_returns_and_advantages(torch.zeros(2), torch.zeros(2, dtype=torch.bool))
    torch.testing.assert_close(buffer.data["returns"][:2, 0], torch.tensor([1.5, 1.0]))


def test_a_truncated_decision_bootstraps_from_its_true_last_observation_not_from_the_next_episode():
    # env 0 truncated with V(final) = 4: 1 + .5 * 4 = 3; env 1 terminated: 1; V(next episode) = 100 is never used
    buffer = make_buffer(decisions=1)
    add(
        buffer,
        0,
        done=torch.tensor([True, True]),
        terminated=torch.tensor([False, True]),
        final_value=torch.tensor([4.0, 4.0]),
    )
    buffer.compute_returns_and_advantages(torch.full((2,), 100.0), torch.tensor([True, True]))
    torch.testing.assert_close(buffer.data["returns"][0], torch.tensor([3.0, 1.0]))


def test_a_full_buffer_refuses_more_and_reset_makes_room():
    buffer = make_buffer(decisions=1)
    add(buffer, 0)
    with pytest.raises(ValueError, match="call reset"):
        add(buffer, 1)
    buffer.reset()
    add(buffer, 1)
    assert buffer.full


def test_a_buffer_that_is_not_full_computes_nothing():
    buffer = make_buffer()
    add(buffer, 0)
    with pytest.raises(ValueError, match="holds 1"):
        buffer.compute_returns_and_advantages(torch.zeros(2))


def test_a_size_that_the_envs_do_not_divide_is_refused():
    with pytest.raises(ValueError, match="not a multiple of the 4 envs"):
        add(make_buffer(decisions=3, envs=2), 0, envs=4)


def test_a_bare_chunk_is_refused_because_updates_need_the_chain():
    with pytest.raises(ValueError, match="denoising chain"):
        add(make_buffer(), 0, actions=torch.zeros(2, H, A))


def test_minibatches_cover_every_row_once_in_equal_parts_that_never_exceed_the_size():
    buffer = make_buffer(decisions=5)
    for index in range(5):
        add(buffer, index, value=torch.tensor([2.0 * index, 2.0 * index + 1]))
    batches = list(buffer.minibatches(4, torch.Generator().manual_seed(0)))
    assert sorted(len(rows["value"]) for rows in batches) == [3, 3, 4]
    assert sorted(torch.cat([rows["value"] for rows in batches]).tolist()) == list(range(10))
    for rows in batches:  # rows stay together: values 2i and 2i+1 belong to observation i
        torch.testing.assert_close(rows["obs"][:, 0], (rows["value"] / 2).floor())


def test_the_generator_alone_decides_the_order():
    buffer = make_buffer(decisions=8)
    for index in range(8):
        add(buffer, index, value=torch.tensor([2.0 * index, 2.0 * index + 1]))
    orders = [
        torch.cat([rows["value"] for rows in buffer.minibatches(4, torch.Generator().manual_seed(seed))])
        for seed in (1, 1, 2)
    ]
    assert torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[0], orders[2])


def test_stored_tensors_carry_no_graph():
    buffer = make_buffer(decisions=1)
    add(buffer, 0, value=torch.ones(2, requires_grad=True) * 2)
    buffer.compute_returns_and_advantages(torch.ones(2, requires_grad=True))
    assert not any(tensor.requires_grad for tensor in buffer.data.values())


def test_overwritten_minibatches_hold_the_same_rows_in_memory_that_stays():
    buffer = make_buffer(decisions=5)
    for index in range(5):
        add(buffer, index, value=torch.tensor([2.0 * index, 2.0 * index + 1]))
    plain = list(buffer.minibatches(4, torch.Generator().manual_seed(0)))
    places = set()
    for rows, expected in zip(
        buffer.minibatches(4, torch.Generator().manual_seed(0), overwrite=True), plain, strict=True
    ):
        assert all(torch.equal(rows[name], expected[name]) for name in expected)
        places.add(rows["actions"].data_ptr())
    assert len(places) == 1


def test_sizes_are_root_mean_squares_of_the_rewards_to_go_and_of_v_where_both_are_usable():
    # env 0 at gamma .5: to go 3 + .5 * 4 = 5 and 4, V 1 and 2; env 1 broke at its last decision: 6 and nothing, V 3:
    # returns sqrt((25 + 16 + 36) / 3), V sqrt((1 + 4 + 9) / 3)
    buffer, broken = make_buffer(decisions=2), torch.tensor([False, True])
    add(buffer, 0, reward=torch.tensor([3.0, 6.0]), value=torch.tensor([1.0, 3.0]))
    add(buffer, 1, reward=torch.tensor([4.0, math.nan]), value=torch.tensor([2.0, 50.0]), done=broken, valid=~broken)
    expected = torch.tensor([77 / 3, 14 / 3], dtype=torch.float64).sqrt()
    torch.testing.assert_close(torch.stack(buffer.sizes()), expected)


def test_a_new_v_lacks_the_constant_that_agrees_with_the_rollout_and_a_trained_one_nothing():
    # rewards 3, 5 and 4 at gamma .5, the last one terminating: V = 12 / 3 + (.5 + .5 + 0) / 3 * V gives V = 6
    for value, missing in ((0.0, 6.0), (1.0, 5.0), (2.9, 3.1), (3.1, 0.0), (6.0, 0.0), (-9.0, 0.0)):
        buffer = make_buffer(decisions=3)
        for index, reward in enumerate((3.0, 5.0, 4.0)):
            ends = torch.full((2,), index == 2)
            add(buffer, index, reward=torch.full((2,), reward), value=torch.full((2,), value), done=ends)
        torch.testing.assert_close(buffer.shortfall(), torch.tensor(missing))


def test_decisions_without_outcome_do_not_count_in_what_v_lacks():
    # env 1 broke at its second decision, whose reward and V are no numbers: 3, 3 and 3 at gamma .5 give V = 6
    buffer, broken = make_buffer(decisions=2), torch.tensor([False, True])
    add(buffer, 0, reward=torch.tensor([3.0, 3.0]))
    nothing = torch.tensor([0.0, math.nan])
    add(buffer, 1, reward=torch.tensor([3.0, math.nan]), value=nothing, done=broken, valid=~broken)
    torch.testing.assert_close(buffer.shortfall(), torch.tensor(6.0))
