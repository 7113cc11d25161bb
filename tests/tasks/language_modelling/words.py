"""Tokenizers so small that their vocabulary fits in a line, saved as transformers saves them."""

from pathlib import Path

from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE, WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

WORDS = ("<pad>", "<s>", "</s>", "one", "two", "three", "<user>", "<bot>", "<unk>")
CHAT = (
    "{% for m in messages %}{% if m.role == 'user' %}<user> {{ m.content }} {% else %}"
    "<bot> {{ m.content }} </s> {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<bot>{% endif %}"
)


def save_words(folder: Path, template: str = CHAT, around: str = "<s> $A") -> Path:
    """A tokenizer of words that begins each text with ``<s>``, or has other tokens ``around``."""
    ids = {word: place for place, word in enumerate(WORDS)}
    tokenizer = Tokenizer(WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.post_processor = TemplateProcessing(
        single=around, special_tokens=[(word, ids[word]) for word in ("<s>", "</s>")]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>",
        unk_token="<unk>", chat_template=template, additional_special_tokens=["<user>", "<bot>"],
    ).save_pretrained(folder)  # fmt: skip
    return folder


def save_merging(folder: Path, eos: str | None = "</s>") -> Path:
    """A tokenizer of letters in which ``a`` and ``b`` become one token; it has no padding."""
    tokenizer = Tokenizer(BPE({"a": 0, "b": 1, "ab": 2, "</s>": 3}, [("a", "b")]))
    tokenizer.decoder = decoders.BPEDecoder()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=eos).save_pretrained(folder)
    return folder
