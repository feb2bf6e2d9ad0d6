"""F8, F9, F10: bad demonstrations, files that try to run code, and resumes of other runs."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import json
import os
import pickle
import shutil
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from reinflow.cli import run_script
from reinflow.data.chunks import ChunkDataset
from reinflow.data.demos import load_demos
from reinflow.envs.synthetic import SyntheticEnv
from reinflow.errors import UserError
from reinflow.foreign import Config as Foreign
from reinflow.foreign import main as convert
from reinflow.policies import PolicyConfig, build_policy
from reinflow.storage.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from reinflow.storage.resumable import states
from reinflow.storage.sealed import seal, unseal
from tests.data import test_formats
from tests.data.test_pictures import written
from tests.faults.fuzz import fuzz
from tests.faults.runs import prepared
from tests.small import SCRIPTS, demo_file, flags, run_stage
from tests.test_checkpoint import without_seal


def exit_code(number: int, words: list[str]) -> tuple[int, str]:
    """What a stage's script ends with, and what it says."""
    script, said = importlib.import_module(SCRIPTS[number]), io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            run_script(script.main, script.Config, argv=words)
        except SystemExit as error:
            return (error.code if isinstance(error.code, int) else 1), said.getvalue()
    return 0, said.getvalue()


# ---- F8 ----------------------------------------------------------------------------------------------------------


def changed(**columns: Any) -> Callable[[Path], None]:
    """Replace (or with None remove) columns of the second trajectory."""

    def change(path: Path) -> None:
        with h5py.File(path, "r+") as file:
            for name, value in columns.items():
                del file["traj_1"][name]
                if value is not None:
                    file["traj_1"][name] = value

    return change


def described(**kwargs: Any) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        description = path.with_suffix(".json")
        info = json.loads(description.read_text())
        info["env_info"]["env_kwargs"] |= kwargs
        description.write_text(json.dumps(info))

    return change


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def emptied(path: Path) -> None:
    h5py.File(path, "w").close()


NAN = np.full((24, 2), np.nan, np.float32)
DEMOS: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated": (cut, "cut short"),
    "no bytes": (lambda path: path.write_bytes(b""), "cut short"),
    "empty": (emptied, "no trajectory"),
    "no actions": (changed(actions=None), "traj_1 has no actions"),
    "no observations": (changed(obs=None), "traj_1 has no obs"),
    "no rewards": (changed(rewards=None), "traj_1 has no rewards"),
    "wrong action dim": (changed(actions=np.zeros((24, 3), np.float32)), "traj_1 has other dimensions"),
    "length mismatch": (changed(obs=np.zeros((24, 3), np.float32)), "one row more"),
    "NaN": (changed(actions=NAN), "traj_1, actions holds NaN"),
    "inf": (changed(rewards=np.full(24, np.inf, np.float32)), "traj_1, rewards holds NaN or infinite"),
    "text": (changed(actions=np.full((24, 2), b"x")), "not numbers"),
    "wrong control mode": (described(control_mode="pd_joint_pos"), "control_mode pd_joint_pos"),
    "wrong observation mode": (described(obs_mode="rgb"), "obs_mode rgb"),
    "no description": (lambda path: path.with_suffix(".json").unlink(), "no demos.json"),
    "description of something else": (lambda path: path.with_suffix(".json").write_text("[]"), "not a trajectory"),
}


def demonstrations(folder: Path, full: bool) -> str:
    """F8: every bad file is named in one sentence before anything trains; then arbitrary mutations."""
    count = 2000 if full else 60
    prepared(folder)
    for name, (spoil, sentence) in DEMOS.items():
        demo_file(folder)
        spoil(folder / "demos.h5")
        code, said = exit_code(2, flags(2, folder, "bad"))
        assert code == 2, f"{name}: exit code {code}, {said}"
        assert sentence in said, f"{name}: {said}"
        assert "Traceback" not in said
        assert not (folder / "runs" / "bad").exists(), f"{name} left a run"
    path = demo_file(folder, 2)
    arrays = fuzz(path, lambda file: load_demos(file, need_rewards=True), count)
    beside = fuzz(path.with_suffix(".json"), lambda _: load_demos(path, need_rewards=True), count // 10)
    (folder / "pictures").mkdir()
    pictures = fuzz(written(folder / "pictures"), read_pictures, count)
    others = [f"{name}: {said}" for name, said in other_formats(folder, count // 4)]
    return (
        f"{len(DEMOS)} kinds: a sentence and exit code 2 each; {count} mutated files: {arrays}; "
        f"descriptions: {beside}; {count} with pictures: {pictures}; "
        f"{count // 4} of each other format: {'; '.join(others)}"
    )


def other_formats(folder: Path, count: int) -> Iterator[tuple[str, str]]:
    """Mutations of the file that holds the numbers, in every other format that can be read here."""
    for name, make in test_formats.MAKERS.items():
        if name == "lerobot" and importlib.util.find_spec("pyarrow") is None:
            continue
        (folder / name).mkdir()
        path = make(folder / name)
        files = sorted(path.rglob("*.hdf5")) + sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
        yield name, fuzz(files[0], lambda _, path=path: quietly(path), count)


def quietly(path: Path) -> None:
    """Load without the notes."""
    with contextlib.redirect_stdout(io.StringIO()):
        load_demos(path)


def read_pictures(path: Path) -> None:
    """Load demonstrations with pictures and look at every frame, held in memory and streamed."""
    demos = load_demos(path, obs_mode="rgb+depth")
    still = (None,) * demos.trajectories[0].actions.shape[1]
    for max_gb in (1.0, 0.0):
        with contextlib.redirect_stdout(io.StringIO()):
            dataset = ChunkDataset(demos, 2, 2, 4, gamma=0.97, max_picture_gb=max_gb, still=still)
        dataset.window(torch.arange(len(dataset)))


# ---- F9 ----------------------------------------------------------------------------------------------------------


class Payload:
    """What pickle would run to rebuild it."""

    def __init__(self, function: Callable[..., Any], *arguments: Any):
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


def payloads(folder: Path, flag: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    """Attempts to create the file `flag`: a name, and a load that meets the attempt."""
    shell = f"touch {flag}"
    code = f"open({str(flag)!r}, 'w').close()"
    pickled = {
        "os.system": Payload(os.system, shell),
        "exec": Payload(exec, code),
        "eval": Payload(eval, code.replace(".close()", "")),
        "pathlib": Payload(Path.touch, flag),
        "pickle in pickle": Payload(pickle.loads, pickle.dumps(Payload(os.system, shell))),
        "torch.load in pickle": Payload(torch.load, str(folder / "os.system.pt")),
        "an object in a tensor's place": {"policy_state": {"w": Payload(os.system, shell)}},
    }
    for name, payload in pickled.items():
        path = folder / f"{name}.pt"
        torch.save({"format": "reinflow-checkpoint", "model": payload}, path)
        yield f"{name}, as a checkpoint", lambda path=path: load_checkpoint(path)
        yield f"{name}, imported", lambda path=path: convert(Foreign(str(path), str(folder / "new.pt")))
        path = folder / f"{name}.pkl"
        path.write_bytes(pickle.dumps(payload))
        yield f"{name}, a bare pickle", lambda path=path: convert(Foreign(str(path), str(folder / "new.pt")))
    legacy = folder / "legacy.pt"
    torch.save({"model": Payload(os.system, shell)}, legacy, _use_new_zipfile_serialization=False)
    yield "torch's old format, imported", lambda: convert(Foreign(str(legacy), str(folder / "new.pt")))
    slip = folder / "slip.pt"
    with zipfile.ZipFile(slip, "w") as archive:
        archive.writestr(f"../../{flag.name}", "x")
        archive.writestr("archive/data.pkl", pickle.dumps(Payload(os.system, shell)))
    yield "a zip with a way out", lambda: convert(Foreign(str(slip), str(folder / "new.pt")))
    tar = folder / "tar.pt"
    with tarfile.open(tar, "w") as archive:
        archive.addfile(tarfile.TarInfo(f"../{flag.name}"))
    yield "a tar with a way out", lambda: load_checkpoint(tar)
    script = torch.jit.script(torch.nn.Linear(1, 1))
    script.save(str(folder / "script.pt"))
    yield "a TorchScript module", lambda: convert(Foreign(str(folder / "script.pt"), str(folder / "new.pt")))
    yield from configs(folder, flag, shell)


def configs(folder: Path, flag: Path, shell: str) -> Iterator[tuple[str, Callable[[], object]]]:
    """Attempts in descriptions, configs and demonstrations."""
    best = folder / "runs" / "start" / "best_model.pt"
    tensors, description = unseal(best.read_bytes())
    for field in ("net", "family"):
        path = folder / f"{field}.pt"
        spec = {**description["policy_spec"], field: f"__import__('os').system({shell!r})"}
        path.write_bytes(seal(tensors, {**without_seal(description), "policy_spec": spec}))
        words = ["--pretrained_path", str(path), "--runs_dir", str(folder / "runs"), "--no-cuda"]
        yield f"code as the name of a {field}", lambda words=words: exit_code(3, words)
    deep = folder / "deep.pt"
    deep.write_bytes(seal({}, {"format": "reinflow-checkpoint", "deep": json.loads("[" * 500 + "]" * 500)}))
    yield "a deep description", lambda: load_checkpoint(deep)
    run = folder / "runs" / "hostile"
    for name, value in {"exp_name": f"$({shell})", "env_id": f"`{shell}`", "runs_dir": "../../x;touch y"}.items():
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(folder / "runs" / "start", run, symlinks=True)
        config = json.loads((run / "config.json").read_text())
        config["flags"][name] = value
        (run / "config.json").write_text(json.dumps(config))
        yield f"a shell command as {name} of a resumed run", lambda: exit_code(1, ["--resume", str(run)])
    (run / "config.json").write_text('{"config": ' + "[" * 5000 + "]" * 5000 + "}")
    yield "a config of endless depth", lambda: exit_code(1, ["--resume", str(run)])
    demos = demo_file(folder, 2)
    with h5py.File(demos, "r+") as file:
        del file["traj_0"]["actions"]
        file["traj_0"]["actions"] = np.frombuffer(pickle.dumps(Payload(os.system, shell)), np.uint8)
        file["traj_0"].attrs["code"] = np.void(pickle.dumps(Payload(os.system, shell)))
    yield "a pickle in demonstrations", lambda: load_demos(demos)
    with h5py.File(demos, "r+") as file:
        del file["traj_0"]["actions"]
        file["traj_0"]["actions"] = h5py.ExternalLink("/etc/passwd", "/")
    yield "a link out of demonstrations", lambda: load_demos(demos)
    arrays = {name: np.zeros((1, 1)) for name in ("states", "traj_lengths")}
    np.savez(folder / "pickled.npz", actions=np.array([Payload(os.system, shell)], dtype=object), **arrays)
    yield "a pickle in an npz", lambda: load_demos(folder / "pickled.npz")


def malice(folder: Path, full: bool) -> str:
    """F9: nothing that is loaded runs."""
    prepared(folder)
    flag, count, refused = folder / "executed", 0, 0
    for name, attempt in payloads(folder, flag):
        count += 1
        try:
            with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch comments on some of them
                attempt()
        except UserError:
            refused += 1
        assert not flag.exists(), f"{name} ran"
    pickle.loads(pickle.dumps(Payload(os.system, f"touch {flag}")))
    assert flag.exists(), "the payloads don't work, so this test shows nothing"
    return f"{count} payloads, 0 executions ({refused} refused by the loader, the others by the script or harmless)"


# ---- F10 ---------------------------------------------------------------------------------------------------------

OTHERS: dict[str, tuple[list[str], str]] = {
    "K": (["--num_inference_steps", "3"], "--num_inference_steps"),
    "horizon of an episode": (["--max_episode_steps", "11"], "--max_episode_steps"),
    "env": (["--env_id", "SyntheticChunk-v0"], "--env_id"),
    "control mode": (["--control_mode", "pd_joint_pos"], "--control_mode"),
    "discount": (["--gamma", "0.5"], "--gamma"),
    "number of envs": (["--num_envs", "8"], "--num_envs"),
}
NETS: dict[str, tuple[list[str], str]] = {
    "chunk H": (["--pred_horizon", "12"], "--pred_horizon"),
    "executed steps": (["--act_horizon", "2"], "--act_horizon"),
    "history": (["--obs_horizon", "1"], "--obs_horizon"),
    "network": (["--mlp_hidden_dim", "32"], "--mlp_hidden_dim"),
}


def resumes(folder: Path, full: bool) -> str:
    """F10: a run is resumed as itself or not at all."""
    prepared(folder)
    run_stage(3, folder, "tuned")
    tuned, cloned = folder / "runs" / "tuned", folder / "runs" / "start"
    count = 0
    for number, run, cases in ((3, tuned, OTHERS), (1, cloned, NETS)):
        for name, (words, flag) in cases.items():
            refused(number, ["--resume", str(run), *words], flag, name)
            count += 1
    # the checkpoint that Stage 3 started from is another one now: other observation and action dims
    words = ["--resume", str(tuned), "--pretrained_path", str(other_dims(folder)), "--env_id", "SyntheticChunk-v0"]
    refused(3, [*words, "--control_mode", "synthetic", "--allow_changes"], "state_dim", "dims")
    state = states(tuned)[0] / "state.json"
    state.write_text(state.read_text().replace('"version": 2', '"version": 1'))
    for path in states(tuned)[1:]:
        shutil.rmtree(path)
    refused(3, ["--resume", str(tuned)], "state.json", "schema")
    return f"{count + 2} changes (K, H, horizons, history, net, env, control mode, dims, schema): each refused by name"


def refused(number: int, words: list[str], named: str, case: str) -> None:
    code, said = exit_code(number, words)
    assert code == 2, f"{case}: exit code {code}, {said}"
    assert named in said, f"{case} is not named: {said}"
    assert "Traceback" not in said


def other_dims(folder: Path) -> Path:
    """A checkpoint for an env with 42 state and 7 action numbers."""
    net: dict[str, Any] = {"net": "mlp", "mlp_hidden_dim": 16, "mlp_depth": 1, "diffusion_step_embed_dim": 8}
    spec = PolicyConfig.of(**net, act_horizon=4, pred_horizon=8).for_env(SyntheticEnv(1).spec, 4)
    policy = build_policy(spec)
    save_checkpoint(folder / "other.pt", Checkpoint(spec, SyntheticEnv(1).spec, policy.state_dict()))
    return folder / "other.pt"
