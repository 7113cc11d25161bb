"""Instructions in JSON lines: what is prompt, what is response, and what is refused."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tasks.language_modelling.words import CHAT, WORDS, save_merging, save_words

from congener.errors import DataError, RecipeError
from congener.tasks.language_modelling import LanguageModelling, Splits
from congener.tasks.language_modelling.data import instructions
from congener.tasks.language_modelling.data.splits import TextDataset

EOS, BOS, USER, BOT = (WORDS.index(word) for word in ("</s>", "<s>", "<user>", "<bot>"))


def written(path: Path, lines: Sequence[Any]) -> Path:
    path.write_text("".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines), "utf-8")
    return path


def read(
    folder: Path, lines: Sequence[Any], tokenizer: Path | None = None, **options: Any
) -> Splits:
    tokenizer = tokenizer or save_words(folder / "words")
    train = written(folder / "train.jsonl", lines)
    fallback = {"prompt": "a", "response": "b"}
    messages = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}]
    test = written(
        folder / "test.jsonl", [{"chat": messages} if "messages" in options else fallback]
    )
    return instructions(train, test, tokenizer=str(tokenizer), **options)


def shown(texts: TextDataset) -> list[tuple[str, str]]:
    """Each prompt and response as words."""
    rows = zip(
        texts.tokens.tolist(), texts.labels.tolist(), texts.prompt, texts.length, strict=True
    )
    found = []
    for tokens, labels, prompt, length in rows:
        response = [label for label in labels if label != -100]
        assert tokens[prompt:length] == response
        found.append(
            tuple(" ".join(WORDS[t] for t in each) for each in (tokens[:prompt], response))
        )
    return found  # type: ignore[return-value]


def test_prompts_with_their_responses(tmp_path: Path) -> None:
    found = read(tmp_path, [
        {"prompt": "one two", "response": "three"},
        {"prompt": "one", "response": ""},
        {"prompt": "two", "response": None},
        {"prompt": "three"},
    ])  # fmt: skip
    assert shown(found.train) == [
        ("<s> one two", "three </s>"), ("<s> one", "</s>"), ("<s> two", ""), ("<s> three", ""),
    ]  # fmt: skip
    assert found.train.answered.tolist() == [True, True, False, False]
    assert found.vocabulary.size == len(WORDS)
    assert found.vocabulary.eos == EOS
    assert found.vocabulary.decode([3, 4]) == f"{WORDS[3]} {WORDS[4]}"
    assert not found.one_answer


def test_other_keys_and_blank_lines(tmp_path: Path) -> None:
    tokenizer = save_words(tmp_path / "words")
    path = tmp_path / "lines.jsonl"
    path.write_text('{"q": "one\u2028two", "a": "three"}\n\n  \n{"q": "two", "a": "one"}', "utf-8")
    found = instructions(
        path, path, tokenizer=str(tokenizer), prompt="q", response="a", one_answer=True
    )
    assert shown(found.train) == [("<s> one two", "three </s>"), ("<s> two", "one </s>")]
    assert found.one_answer


def test_no_token_belongs_to_both(tmp_path: Path) -> None:
    tokenizer = save_merging(tmp_path / "merging")
    found = read(tmp_path, [{"prompt": "a", "response": "b"}], tokenizer)
    # Encoded together the text would be one token, "ab".
    from transformers import AutoTokenizer

    kept = AutoTokenizer.from_pretrained(tokenizer)
    assert len(kept("ab").input_ids) == 1
    text = found.train
    assert text.tokens[0, : text.length[0]].tolist() == [
        *kept("a").input_ids, *kept("b").input_ids, kept.eos_token_id,
    ]  # fmt: skip
    assert text.prompt.tolist() == [1]


def test_the_prompt_is_no_end_where_a_tokenizer_ends_every_text(tmp_path: Path) -> None:
    tokenizer = save_words(tmp_path / "ending", around="<s> $A </s>")
    found = read(tmp_path, [{"prompt": "one", "response": "two"}], tokenizer)
    assert shown(found.train) == [("<s> one", "two </s>")]


def test_long_texts_lose_the_rest_of_their_response(tmp_path: Path) -> None:
    lines = [
        {"prompt": "one two", "response": "three one two"},
        {"prompt": "one", "response": "two"},
    ]
    found = read(tmp_path, lines, max_tokens=5)
    assert shown(found.train) == [("<s> one two", "three one"), ("<s> one", "two </s>")]
    message = r"train.jsonl, line 1: the prompt has 3 tokens, which leaves no room .* max_tokens=3"
    with pytest.raises(DataError, match=message):
        read(tmp_path, lines, max_tokens=3)


def test_conversations(tmp_path: Path) -> None:
    def said(*words: str) -> list[dict[str, str]]:
        roles = ("user", "assistant") * 3
        return [{"role": role, "content": word} for role, word in zip(roles, words, strict=False)]

    found = read(tmp_path, [
        {"chat": said("one", "two")},
        {"chat": said("one", "two", "three", "one")},
        {"chat": said("two")},
    ], messages="chat")  # fmt: skip
    assert shown(found.train) == [
        ("<user> one <bot>", "two </s>"),
        ("<user> one <bot> two </s> <user> three <bot>", "one </s>"),
        ("<user> two <bot>", ""),
    ]


def test_a_template_that_rewrites_the_prompt_is_refused(tmp_path: Path) -> None:
    template = "{{ messages | length }} {% for m in messages %}{{ m.content }} {% endfor %}"
    tokenizer = save_words(tmp_path / "words", template)
    chat = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}]
    with pytest.raises(DataError, match="line 1: the chat template writes the prompt otherwise"):
        read(tmp_path, [{"chat": chat}], tokenizer, messages="chat")


def test_a_template_that_refuses_a_conversation_names_its_line(tmp_path: Path) -> None:
    refusal = "{{ raise_exception('Roles must\\n alternate.') }}"
    template = f"{{% if messages | length > 2 %}}{refusal}{{% endif %}}{CHAT}"
    tokenizer = save_words(tmp_path / "words", template)
    chat = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}]
    lines = [{"chat": chat}, {"chat": chat}, {"chat": [chat[0], *chat]}]
    with pytest.raises(DataError, match=r"train\.jsonl, line 3: Roles must alternate\.$"):
        read(tmp_path, lines, tokenizer, messages="chat")
    broken = save_words(tmp_path / "broken", "{% for m in messages %}")
    with pytest.raises(DataError, match=r"train\.jsonl, line 1: .*'for'"):
        read(tmp_path, lines, broken, messages="chat")


@pytest.mark.parametrize("response", ["two </s> three", "two </s>", "</s>"])
def test_a_response_with_an_end_of_its_own_is_refused(tmp_path: Path, response: str) -> None:
    asked = {"role": "user", "content": "one </s> two"}
    chat = [asked, {"role": "assistant", "content": response}]
    told = r"line 2: the response contains the end token '</s>', which is added to it; take it out"
    with pytest.raises(DataError, match=told):
        read(tmp_path, [{"chat": [asked]}, {"chat": chat}], messages="chat")
    pair = {"prompt": "one </s> two"}
    with pytest.raises(DataError, match=told):
        read(tmp_path, [pair, pair | {"response": response}])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"question": "one"}, "line 2: there is no 'prompt', only 'question'"),
        ({"prompt": 3}, "line 2: 'prompt' is 3, which is no text"),
        ({"prompt": "one", "response": ["two"]}, r"'response' is \['two'\], which is no text"),
        ([1, 2], r"line 2, is no JSON object, but '\[1, 2\]'"),
    ],
)
def test_lines_that_cannot_be_used_are_named(tmp_path: Path, line: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(tmp_path, [{"prompt": "one", "response": "two"}, line])


@pytest.mark.parametrize("chat", [[], "one", [{"role": "user"}], [3]])
def test_conversations_that_are_none_are_named(tmp_path: Path, chat: Any) -> None:
    with pytest.raises(DataError, match="line 1: 'chat' is no list of messages, each with 'role'"):
        read(tmp_path, [{"chat": chat}], messages="chat")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train.jsonl has no line; expected a JSON object"):
        read(tmp_path, [])
    tokenizer = str(tmp_path / "words")
    with pytest.raises(DataError, match=r"Cannot read .*nowhere.jsonl"):
        instructions(tmp_path / "nowhere.jsonl", tmp_path / "test.jsonl", tokenizer=tokenizer)
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"prompt": "one"')
    with pytest.raises(DataError, match=r"broken.jsonl, line 1, is no JSON: "):
        instructions(broken, tmp_path / "test.jsonl", tokenizer=tokenizer)


def test_an_empty_prompt_needs_a_start(tmp_path: Path) -> None:
    found = read(tmp_path, [{"prompt": "", "response": "one"}])
    assert shown(found.train) == [("<s>", "one </s>")]
    tokenizer = save_merging(tmp_path / "merging")
    with pytest.raises(DataError, match="line 1: the prompt is empty, so nothing is there"):
        read(tmp_path, [{"prompt": "", "response": "a"}], tokenizer)


def test_a_tokenizer_without_an_end_is_refused(tmp_path: Path) -> None:
    tokenizer = save_merging(tmp_path / "endless", eos=None)
    with pytest.raises(DataError, match=r"tokenizer .*endless has no end token \(eos_token\)"):
        read(tmp_path, [{"prompt": "a", "response": "b"}], tokenizer)
    with pytest.raises(RecipeError, match="neither a folder 'nowhere' nor an installed package"):
        instructions("a", "b", tokenizer="nowhere")


def test_a_recipe_names_files(tmp_path: Path) -> None:
    lines = [{"prompt": "one", "response": "two"}] * 4
    read(tmp_path, lines)
    found = LanguageModelling({
        "name": "instructions", "train": str(tmp_path / "train.jsonl"),
        "test": str(tmp_path / "test.jsonl"), "tokenizer": str(tmp_path / "words"),
        "labelled": 1,
    })  # fmt: skip
    assert found.metric == "perplexity"
    assert found.labelled is not None
    assert found.labelled.tolist() == [0]
    assert found.max_new_tokens == 2
    assert torch.equal(found.lengths("test"), torch.tensor([4]))
