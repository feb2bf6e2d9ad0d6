from __future__ import annotations

import json

import pytest

from reinflow import doctor
from reinflow.doctor import Check, diagnose, numpy_verdict
from reinflow.envs.headless import mesa_command


@pytest.mark.parametrize(
    ("version", "state"),
    [("1.26.4", "ok"), ("2.0.0", "info"), ("2.3.5", "info"), ("2.4.0", "blocker"), ("1.25.2", "blocker")],
)
def test_numpy_versions(version, state):
    assert numpy_verdict(version).state == state


def test_the_mesa_line_fits_the_system():
    assert "-t bookworm-backports mesa-vulkan-drivers libvulkan1" in mesa_command({"ID": "debian", "VERSION_ID": "12"})
    assert "backports" not in mesa_command({"ID": "ubuntu", "ID_LIKE": "debian", "VERSION_ID": "24.04"})
    assert "dnf" in mesa_command({"ID": "fedora"})
    assert "apt-get" in mesa_command({})


def test_a_check_that_fails_itself_is_a_blocker():
    def check_broken() -> Check:
        raise OSError("no such driver")

    (finding,) = diagnose((check_broken,))
    assert (finding.name, finding.state) == ("broken", "blocker")
    assert "no such driver" in finding.text


@pytest.mark.parametrize(("state", "code"), [("ok", 0), ("info", 0), ("blocker", 1)])
def test_only_a_blocker_sets_the_exit_code(monkeypatch, capsys, state, code):
    monkeypatch.setattr(doctor, "diagnose", lambda: [Check("disk", state, "a sentence")])
    assert doctor.main(["--json"]) == code
    report = json.loads(capsys.readouterr().out)
    assert report == {"ok": code == 0, "checks": [{"name": "disk", "state": state, "text": "a sentence"}]}
    assert doctor.main([]) == code
    assert "a sentence" in capsys.readouterr().out


def test_a_simulator_that_crashes_is_a_sentence(monkeypatch):
    monkeypatch.setattr(doctor, "SIMULATOR_TEST", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    finding = doctor.check_simulator()
    assert finding.state == "blocker"
    assert "signal 11" in finding.text


def test_an_opencv_without_its_graphics_library_is_told_from_other_failures(monkeypatch):
    monkeypatch.setattr(doctor, "SIMULATOR_TEST", "raise ImportError('libGL.so.1: cannot open shared object file')")
    assert "opencv-python-headless" in doctor.check_simulator().text


def test_the_checks_that_cost_nothing_pass_here():
    for check in (doctor.check_python, doctor.check_packages, doctor.check_numpy, doctor.check_disk):
        assert check().state != "blocker"
