"""Every fault with small numbers; `python -m tests.faults --full` runs them with those of docs/reliability.md."""

from __future__ import annotations

import pytest

from tests.faults.table import FAULTS, Fault

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.number)
def test_a_fault_breaks_no_promise(fault: Fault, tmp_path):
    assert fault.inject(tmp_path, False)
