# SPDX-License-Identifier: Apache-2.0
"""What is trained of a chat: the answers and their end marks, found by rendering, never by searching."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oumi.core.data.checks.supervision import draw
from oumi.core.data.tokenize.chat_template import Template
from oumi.core.data.tokenize.encoder import Encoder, RowTokenizer
from oumi.core.data.tokenize.loss_mask import MARKS, Rendered, TokenizeSpec
from oumi.core.errors import ConfigError
from oumi.core.types.conversation import Conversation, Message, Role
from oumi.core.types.example import Completion, Encoded, RejectedRow, Row, Source
from tests.tiny import CHATML, byte_tokenizer

SOURCE = Source("set", "x.jsonl", 1)
SINGLE_TURN = (("user", "Hi?"), ("assistant", "Yo."))

# Writes the thoughts of the last answer only, as reasoning models do.
FORGETFUL = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and not loop.last %}{{ m.content.split('</think>')[-1] }}"
    "{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Opens a thought in the prompt of inference that the finished chat does not hold.
OPENING = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")


def chat(turns: tuple[tuple[str, str], ...]) -> Conversation:
    return Conversation(messages=[Message(role=Role(role), content=text) for role, text in turns])


def rendered(value: Any, template: str = CHATML, train_on: str = "all_assistant_turns", **kwargs: Any) -> Any:
    tokenizer = kwargs.get("tokenizer") or byte_tokenizer()
    row_tokenizer = RowTokenizer(
        tokenizer, Template(tokenizer, template), TokenizeSpec(train_on, kwargs.get("max_length"))
    )
    return row_tokenizer, row_tokenizer.renderer.render(Row(value, SOURCE))


def encode(
    value: Any, template: str = CHATML, train_on: str = "all_assistant_turns", **kwargs: Any
) -> Encoded | RejectedRow:
    row_tokenizer, row = rendered(value, template, train_on, **kwargs)
    assert isinstance(row, Rendered), row
    (cut,) = row_tokenizer.encoder.encode([row])
    return cut


def drawn(*arguments: Any, **kwargs: Any) -> str:
    """Returns a chat with the tokens that are trained in brackets."""
    cut = encode(*arguments, **kwargs)
    assert isinstance(cut, Encoded), cut
    return draw(cut.examples[0], kwargs.get("tokenizer") or byte_tokenizer())


def test_where_a_template_forgets_thoughts_each_turn_is_trained_as_it_is_said() -> None:
    turns = (("user", "Hi?"), ("assistant", "<think>hm</think>Yo."), ("user", "B?"), ("assistant", "<think>x</think>C"))
    result = encode(chat(turns), FORGETFUL)
    assert isinstance(result, Encoded)
    (example,) = result.examples
    assert [draw(document, byte_tokenizer()) for document in example.documents()] == [
        "<|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\n[<think>hm</think>Yo.<|im_end|>]\n",
        "<|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\nYo.<|im_end|>\n"
        "<|im_start|>user\nB?<|im_end|>\n<|im_start|>assistant\n[<think>x</think>C<|im_end|>]\n",
    ]
    assert drawn(chat(turns), FORGETFUL, "final_assistant_turn") == (
        "<|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\nYo.<|im_end|>\n"
        "<|im_start|>user\nB?<|im_end|>\n<|im_start|>assistant\n[<think>x</think>C<|im_end|>]\n"
    )


def test_an_answer_begins_where_prompt_and_chat_part() -> None:
    assert drawn(chat(SINGLE_TURN), OPENING).endswith("<|im_start|>assistant\n[Yo.<|im_end|>]\n")
    thought = (("user", "Hi?"), ("assistant", "<think>\nhm</think>Yo."))
    assert drawn(chat(thought), OPENING).endswith("assistant\n<think>\n[hm</think>Yo.<|im_end|>]\n")


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (CHATML.replace("message['content']", "message['content'][:2]"), "changes or drops the text of the user"),
        ("{{ raise_exception('no system message') }}", "the chat template refuses it: no system message"),
        ("{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}?{% endif %}", None),
    ],
)
def test_a_template_that_cannot_tell_the_answer_is_refused(template: str, reason: str | None) -> None:
    _, row = rendered(chat((("user", "Hi?"), ("assistant", "A long answer."))), template)
    assert (reason is None) == isinstance(row, Rendered)
    if reason is not None:
        assert isinstance(row, RejectedRow)
        assert reason in row.reason


def test_padding_with_the_end_token_leaves_the_end_trained() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    assert drawn(chat(SINGLE_TURN), tokenizer=tokenizer).endswith("[Yo.<|im_end|>]\n")


@pytest.mark.parametrize(("max_length", "cut", "cut_targets"), [(None, 0, 0), (27, 0, 0), (26, 1, 0), (24, 3, 2)])
def test_what_is_cut_off_is_counted(max_length: int | None, cut: int, cut_targets: int) -> None:
    result = encode(chat(SINGLE_TURN), max_length=max_length)
    assert isinstance(result, Encoded)
    assert len(result.examples[0].tokens) == 27 - cut
    assert (result.cut_tokens, result.cut_targets) == (cut, cut_targets)


def test_a_row_of_which_only_the_prompt_fits_is_refused() -> None:
    result = encode(chat(SINGLE_TURN), max_length=20)
    assert isinstance(result, RejectedRow)
    assert result.reason == "every trained token lies beyond model_max_length 20"


def test_a_completion_is_trained_with_the_end_token() -> None:
    assert drawn(Completion("Hi? ", "Yo.")) == "Hi? [Yo.<|im_end|>]"


def test_a_token_across_the_border_is_trained_and_the_ids_are_those_of_the_whole_text() -> None:
    tokenizer = merging_tokenizer()
    result = encode(Completion("ab", "cd"), tokenizer=tokenizer)
    assert isinstance(result, Encoded)
    tokens = tokenizer.convert_ids_to_tokens(result.examples[0].tokens)
    assert tokens == ["a", "bc", "d", "<end>"]
    assert result.examples[0].is_target.tolist() == [False, True, True, True]
    assert result.examples[0].tokens.tolist() == tokenizer("abcd<end>")["input_ids"]


def test_a_slow_tokenizer_is_refused() -> None:
    class Slow:
        is_fast, name_or_path = False, "slow/one"

    with pytest.raises(ConfigError, match="slow/one: only fast tokenizers"):
        Encoder(Slow(), TokenizeSpec("all"))


def merging_tokenizer() -> Any:
    """Returns a tokenizer that joins `b` and `c`."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: i for i, token in enumerate(["a", "b", "c", "d", "bc", "<end>"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[("b", "c")]))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")


# No lone surrogates, and no marks of the template itself: those are the matter of special tokens in texts.
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters=MARKS), min_size=1, max_size=30).filter(
    lambda text: text.strip() and "<|" not in text
)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=4), st.booleans())
def test_of_any_chat_the_answers_are_trained_and_nothing_else(pairs: list[tuple[str, str]], final: bool) -> None:
    turns = tuple(turn for question, answer in pairs for turn in (("user", question), ("assistant", answer)))
    row_tokenizer, row = rendered(chat(turns), CHATML, "final_assistant_turn" if final else "all_assistant_turns")
    (cut,) = row_tokenizer.encoder.encode([row])
    example, tokenizer = cut.examples[0], byte_tokenizer()
    answers = [answer for _, answer in pairs][-1 if final else 0 :]
    assert tokenizer.decode(example.tokens[example.is_target]) == "".join(f"{answer}<|im_end|>" for answer in answers)
    prompt = row_tokenizer.renderer.template.render(chat(turns).messages[:-1], add_generation_prompt=True)
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    assert example.tokens[: len(ids)].tolist() == ids
    assert not example.is_target[len(ids) - 1]
    assert example.is_target[len(ids)]
