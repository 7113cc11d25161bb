"""A run that is killed again and again ends as one that was left in peace, byte for byte."""

from pathlib import Path

import pytest
from tests.trajectory import kill_test


def test_two_kills_leave_no_trace(tmp_path: Path) -> None:
    assert kill_test.survive(tmp_path, kills=2, epochs=4) == []


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_ten_kills_leave_no_trace(tmp_path: Path) -> None:
    assert kill_test.survive(tmp_path, kills=10, epochs=20, seed=1) == []
