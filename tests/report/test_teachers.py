"""How the teacher ran stands on the page, once for all arms that it is of."""

import json
from pathlib import Path
from types import SimpleNamespace

from congener.report import write_report


def test_each_line_once_and_escaped(tmp_path: Path, make: SimpleNamespace) -> None:
    folder = make.run(tmp_path / "run", make.metrics())
    plain = write_report(folder).read_text("utf-8")
    lines = {"kd/0": "bf16: <b>", "kd/1": "bf16: <b>", "sp/0": "bf16: <b>", "kd+sp/0": "int8"}
    with (folder / "events.jsonl").open("a") as file:
        for fit, line in lines.items():
            file.write(json.dumps({"event": "teacher_error", "fit": fit, "line": line}) + "\n")
        file.write(json.dumps({"event": "teacher_error", "fit": "kd+sp/0", "line": "int8, 2"}))
    page = write_report(folder).read_text("utf-8")
    assert page.count('<p class="facts">kd, sp: bf16: &lt;b&gt;</p>') == 1
    assert page.count('<p class="facts">kd+sp: int8, 2</p>') == 1  # a resumed fit: the later one
    assert page.count('<p class="facts">') == plain.count('<p class="facts">') + 2
