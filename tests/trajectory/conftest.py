import pytest

import congener.api


@pytest.fixture(autouse=True, scope="module")
def _no_report() -> object:
    """The page is a pure function of the folder, tested in tests/report; here it is only slow."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(congener.api, "write_report", lambda folder: folder / "report.html")
        yield
