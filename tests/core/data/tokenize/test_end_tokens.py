# SPDX-License-Identifier: Apache-2.0
"""Start and end tokens stand once, and control tokens that take the white space beside them train no header."""

from __future__ import annotations

from typing import Any

import pytest

from oumi.core.data.tokenize.chat_template import Template
from oumi.core.data.tokenize.encoder import RowTokenizer
from oumi.core.data.tokenize.loss_mask import Rendered, TokenizeSpec
from oumi.core.types.conversation import Conversation, Message, Role
from oumi.core.types.example import Completion, Encoded, Example, Row, Source, Text
from tests.tiny import byte_tokenizer

# As Phi-3's: the newline after each control token is part of the token.
HEADED = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def tokenizer(adds: str = "", eos: str | None = "</s>", strips: bool = False, bos: str = "<s>") -> Any:
    """Returns a tokenizer of bytes whose post-processor adds `<s>`, `</s>` or both."""
    from tokenizers import AddedToken
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    backend = byte_tokenizer().backend_tokenizer
    names = ["<s>", "</s>", "<|user|>", "<|assistant|>", "<|end|>"]
    backend.add_special_tokens([AddedToken(name, rstrip=strips and name[1] == "|", normalized=False) for name in names])
    if adds:
        used = [(name, backend.token_to_id(name)) for name in ("<s>", "</s>") if name in adds]
        backend.post_processor = TemplateProcessing(single=adds, special_tokens=used)
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=bos, eos_token=eos)


def encode(value: Any, fast: Any, template: str = HEADED) -> Example:
    row_tokenizer = RowTokenizer(fast, Template(fast, template), TokenizeSpec("all_assistant_turns"))
    (result,) = row_tokenizer.make([Row(value, Source("set", "x.jsonl", 1))])
    assert isinstance(result, Encoded), result
    return result.examples[0]


def trained(example: Example, fast: Any) -> str:
    return fast.decode(example.tokens[example.is_target].tolist())


@pytest.mark.parametrize("adds", ["", "<s> $A", "$A </s>", "<s> $A </s>"])
@pytest.mark.parametrize("end", ["", "</s>", "</s>\n", "</s></s>"])
@pytest.mark.parametrize("start", ["", "<s>"])
def test_start_and_end_stand_once_whoever_writes_them(adds: str, end: str, start: str) -> None:
    fast = tokenizer(adds)
    begins = "<s>" if start or adds.startswith("<s>") else ""
    completion = encode(Completion(f"{start}Q", f" A{end}"), fast)
    assert fast.decode(completion.tokens.tolist()) == f"{begins}Q A</s>"
    assert trained(completion, fast) == " A</s>"
    assert fast.decode(encode(Text(f"{start}Once.{end}"), fast).tokens.tolist()) == f"{begins}Once.</s>"
    # A part of a text does not end.
    assert fast.decode(encode(Text("Once", has_end=False), fast).tokens.tolist()).endswith("Once")


@pytest.mark.parametrize("adds", ["", "</s> $A", "</s> $A </s>"])
def test_a_token_that_begins_and_ends_texts_does_both(adds: str) -> None:
    # As OPT's.
    fast = tokenizer(adds, bos="</s>")
    begins = "</s>" if adds else ""
    completion = encode(Completion("Q", " A"), fast)
    assert fast.decode(completion.tokens.tolist()) == f"{begins}Q A</s>"
    assert trained(completion, fast) == " A</s>"
    assert fast.decode(encode(Text("Once."), fast).tokens.tolist()) == f"{begins}Once.</s>"


ENDED = HEADED.replace("<|end|>\n", "<|end|>\n{% if loop.last and not add_generation_prompt %}</s>{% endif %}")


@pytest.mark.parametrize("template", [HEADED, ENDED, HEADED.replace("<|end|>\n", "{{ eos_token }}")])
@pytest.mark.parametrize("brought", ["<|end|>", "<|end|>\n", "<|end|><|end|>", "</s>", "<|end|></s>"])
def test_an_end_that_an_answer_brings_is_not_doubled(template: str, brought: str) -> None:
    fast = tokenizer()
    if "<|end|>" not in template:
        brought = brought.replace("<|end|>", "</s>")

    def chat(end: str) -> Conversation:
        turns = [("user", "Say."), ("assistant", f"Fine.{end}"), ("user", "Again."), ("assistant", f"Done. {end}")]
        return Conversation(messages=[Message(role=Role(role), content=text) for role, text in turns])

    plain, with_ends = encode(chat(""), fast, template), encode(chat(brought), fast, template)
    assert with_ends.tokens.tolist() == plain.tokens.tolist()
    assert with_ends.is_target.tolist() == plain.is_target.tolist()


TWO_ENDS = HEADED.replace("<|end|>\n", "{% if m.role == 'assistant' %}<|stop|>{% endif %}<|end|>\n")


@pytest.mark.parametrize("brought", ["<|stop|>", "<|end|>", "<|stop|><|end|>", "</s>"])
def test_each_of_two_tokens_that_end_an_answer_stands_once(brought: str) -> None:
    fast = tokenizer()
    fast.add_special_tokens({"additional_special_tokens": ["<|user|>", "<|assistant|>", "<|end|>", "<|stop|>"]})
    texts = [
        trained(encode(Conversation(messages=[
            Message(role=Role.USER, content="Say."), Message(role=Role.ASSISTANT, content=f"Fine.{end}"),
            Message(role=Role.USER, content="Say."), Message(role=Role.ASSISTANT, content=f"Fine.{end}"),
        ]), fast, TWO_ENDS), fast)
        for end in ("", brought)
    ]  # fmt: skip
    assert texts == ["Fine.<|stop|><|end|>" * 2] * 2


@pytest.mark.parametrize("value", [Completion("Q", " A"), Text("Once.")])
def test_a_text_without_an_end_is_remarked(value: Any) -> None:
    for eos in ("</s>", None):
        fast = tokenizer(eos=eos)
        row_tokenizer = RowTokenizer(fast, Template(fast, HEADED), TokenizeSpec("all_assistant_turns"))
        (row,) = row_tokenizer.render([Row(value, Source("set", "x.jsonl", 1))])
        assert isinstance(row, Rendered)
        (result,) = row_tokenizer.encode([row])
        assert isinstance(result, Encoded)
        assert ["learn where to stop" in remark for remark in result.remarks] == [True] * (eos is None)


@pytest.mark.parametrize("answer", ["Fine.", "    x = 1", "\nFine.", "  \n "])
@pytest.mark.parametrize("question", ["say", "use <|end|> here", "  <|user|>  ", "<|assistant|>\n\n go"])
def test_white_space_beside_control_tokens_trains_no_header(answer: str, question: str) -> None:
    fast = tokenizer(strips=True)
    turns = [("user", question), ("assistant", answer), ("user", "again"), ("assistant", "Done.")]
    example = encode(Conversation(messages=[Message(role=Role(role), content=text) for role, text in turns]), fast)
    header = fast.convert_tokens_to_ids("<|assistant|>")
    assert header not in example.tokens[example.is_target].tolist()
    assert "".join(trained(example, fast).split()) == "".join(f"{answer}<|end|>Done.<|end|>".split())
    if "<|" not in question:
        fast.chat_template = HEADED
        text = fast.apply_chat_template([{"role": role, "content": text} for role, text in turns], tokenize=False)
        assert example.tokens.tolist() == fast(text, add_special_tokens=False)["input_ids"]
    else:
        # What looks like a control token in a question is text, and all around it is as without it.
        plain = encode(
            Conversation(
                messages=[
                    Message(
                        role=Role(role),
                        content=text.replace("<|", "<I").replace("|>", "I>") if role == "user" else text,
                    )
                    for role, text in turns
                ]
            ),
            fast,
        )
        assert len(plain.tokens) == len(example.tokens)
        assert int((plain.tokens != example.tokens).sum()) == 2 * question.count("<|")
