"""What the documentation shows works: its Python runs, its commands and links exist."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import soundfile
import typer
from safetensors.torch import save_file
from tests.tasks.detection.layouts import save_coco, save_voc
from tests.tasks.retrieval.emoji_files import save_emoji
from tests.tasks.text_classification.tiny import save_encoder, save_tokenizer, sentences

from congener import api
from congener.catalogue import losses_by_name
from congener.cli import app
from congener.recipe import load_recipe
from congener.shipped import shipped_recipes
from congener.tasks.image_classification import ImageClassification

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


class Block(NamedTuple):
    """Code between fences: its language, and where it is."""

    language: str
    code: str
    place: str


def blocks_of(text: str, page: str) -> Iterator[Block]:
    for match in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        line = text[: match.start()].count("\n") + 1
        yield Block(match[1], match[2], f"{page}:{line}")


def commands_of(text: str) -> list[list[str]]:
    """Calls of congener and make: in shell blocks, indented lines and inline code."""
    shells = [b.code for b in blocks_of(text, "") if b.language in ("bash", "sh", "console")]
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    lines = [line for code in shells for line in code.replace("\\\n", " ").splitlines()]
    lines += re.findall(r"^ {4,}(\S.*)$", prose, re.MULTILINE)
    lines += re.findall(r"`([^`\n]+)`", prose)
    found = []
    for line in lines:
        for part in re.split(r"&&|;|\|", line.removeprefix("$ ")):
            part = re.sub(r"^.*(python3?|launch).* -m congener", "congener", part.strip())
            if re.match(r"(congener|make) \S", part):
                found.append(shlex.split(part, comments=True))
    return found


def check(words: list[str]) -> None:
    """Raise unless a command line of ours would be understood."""
    program, verb, *rest = words
    if program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        named = [word for word in (verb, *rest) if not re.match(r"[A-Z]+=", word)]
        assert set(named) <= set(targets), f"make {verb}"
        return
    commands: Any = typer.main.get_command(app)
    assert verb in commands.commands, f"congener {verb}"
    if not rest:  # a sentence that only names the verb
        return
    given = commands.commands[verb].make_context(verb, [*rest]).params
    if verb in ("run", "validate"):
        recipe, overrides = given["recipe"], given["overrides"] or []
        shown = recipe.endswith(".yaml") or recipe.isupper()  # the reader's own file
        assert shown or recipe in shipped_recipes(), recipe
        load_recipe(shipped_recipes()["demo" if shown else recipe], overrides)
    if verb == "show" and not given["name"].isupper():
        assert given["name"] in losses_by_name()


BLOCKS = [b for page in PAGES for b in blocks_of(page.read_text("utf-8"), page.name)]


def in_language(language: str) -> list[Any]:
    return [pytest.param(b, id=b.place) for b in BLOCKS if b.language == language]


@pytest.mark.parametrize("block", in_language("python"))
def test_python_runs(block: Block, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(block.code, block.place, "exec"), {"__name__": "__main__"})


@pytest.fixture(scope="session")
def readers_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a reader of the tutorials has: emoji, clips, an encoder, reviews, boxes."""
    folder = tmp_path_factory.mktemp("reader")
    save_emoji(folder / "data" / "emoji", 1920)
    (folder / "sounds").mkdir()
    lines = ["file,split,tags"]
    for number in range(8):
        waveform = np.sin(np.arange(4000) * (0.1 + number / 20)) / 2
        soundfile.write(folder / "sounds" / f"{number}.wav", waveform, 16000)
        split, tag = ("train", "test")[number % 2], ("dog", "siren", "dog;siren")[number % 3]
        lines.append(f"{number}.wav,{split},{tag}")
    (folder / "sounds" / "annotations.csv").write_text("\n".join(lines) + "\n")
    save_encoder(save_tokenizer(folder / "encoder"), max_position_embeddings=64)
    second = ImageClassification(data="mnist1d").build_model("cnn1d")
    save_file(second.state_dict(), folder / "second.safetensors")
    save_coco(folder / "coco", 24)
    save_voc(folder / "VOCdevkit" / "VOC2007", 24)
    for name in ("reviews.csv", "reviews-test.csv"):
        rows = [f"{text},{label}" for text, label in zip(*sentences(40), strict=True)]
        (folder / name).write_text("\n".join(["text,label", *rows]) + "\n")
    return folder


@pytest.mark.parametrize("block", in_language("yaml"))
def test_a_recipe_is_valid(
    block: Block, readers_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for part in readers_files.iterdir():
        Path(part.name).symlink_to(part)
    path = tmp_path / "recipe.yaml"
    # Whether a recipe is valid does not depend on how large its scenes are; how long it takes does.
    path.write_text(re.sub(r"\bsize: \d{3}\b", "size: 96", block.code), encoding="utf-8")
    api.validate(load_recipe(path))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_exist(page: Path) -> None:
    for words in commands_of(page.read_text(encoding="utf-8")):
        check(words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
        assert "://" in link or link.startswith("mailto:") or (page.parent / link).exists(), link


def test_the_readme_shows_all_of_it() -> None:
    readme = [b for b in BLOCKS if b.place.startswith("README.md")]
    assert {"python", "yaml", "bash"} <= {b.language for b in readme}
    words = commands_of((ROOT / "README.md").read_text(encoding="utf-8"))
    assert {"run", "validate", "list", "show", "verify", "report"} <= {w[1] for w in words}
    for name in {loss.name for loss in losses_by_name().values()}:
        assert f"`{name}`" in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "line",
    [
        "congener rnu demo",
        "congener run deno",
        "congener run demo --rezume",
        "congener run demo train.rl=1",
        "congener run --out runs/x",
        "congener show spp",
        "make dmeo",
    ],
)
def test_a_wrong_command_would_be_seen(line: str) -> None:
    for text in (f"```bash\n{line}  # so\n```\n", f"Say `{line}`.\n", f"    {line}\n"):
        (words,) = commands_of(text)
        with pytest.raises(Exception):  # noqa: B017, PT011  (click's, ours, or an assertion)
            check(words)
