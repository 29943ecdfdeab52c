# SPDX-License-Identifier: Apache-2.0
"""ChatQA: conversations about a document, and the bench that asks for such answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from oumi.core.data.records.conversations import chat_of, taught
from oumi.core.data.records.fields import UnusableValue, field_of, list_of
from oumi.core.data.sources.source import RowSource, open_source
from oumi.core.datasets import BaseSftDataset
from oumi.core.errors import ConfigError, did_you_mean
from oumi.core.hub import hub_errors
from oumi.core.types.conversation import Conversation

# What the data set's page says is to be put before the questions of each part.
_NUMBER = "Answer the following question with a number from context or the math arithmetic."
_SHORT = "Answer the following question with a short span."
_INSTRUCTIONS = {
    "sft": None,
    "synthetic_convqa": "Please give a full and complete answer for the question.",
    "tatqa": _NUMBER,
    "tatqa-arithmetic": _NUMBER,
    "tatqa-others": "Answer the following question with a short span, or a full and complete answer.",
    **dict.fromkeys(("drop", "narrativeqa", "quoref", "ropes", "squad1.1", "squad2.0", "newsqa"), _SHORT),
}
_ONLY_FROM_CONTEXT = "Use only what stands between <context> and </context>; say so if the answer is not there."


class ChatqaDataset(BaseSftDataset):
    """Chats that end with a question, its answer, and perhaps the document that both are about."""

    default_dataset = "nvidia/ChatQA-Training-Data"
    default_subset = "sft"

    def __init__(self, **named: Any) -> None:
        super().__init__(**named)
        if self.subset not in _INSTRUCTIONS:
            hint = did_you_mean(str(self.subset), _INSTRUCTIONS) or f"; there are {', '.join(_INSTRUCTIONS)}"
            raise ConfigError(f"{self.default_dataset}: unknown subset '{self.subset}'{hint}")

    def transform_conversation(self, example: Mapping[str, Any]) -> Conversation:
        """Returns the chat with the first of its answers."""
        answers = field_of(example, "answers")
        answer = answers[0] if isinstance(answers, list) and answers else answers
        if not isinstance(answer, str) or not answer:
            raise UnusableValue("'answers' must hold a text, and not an empty one")
        turns = [*list_of(example, "messages"), {"role": "assistant", "content": answer}]
        document = example.get("document") or ""
        return taught(chat_of(about(document, turns, _INSTRUCTIONS[str(self.subset)]), {}))


class ChatqaTatqaDataset(ChatqaDataset):
    """One half of the subset `tatqa`: a file of its own, in the repository of the data set."""

    default_subset = "tatqa-arithmetic"

    def _read(self) -> RowSource:
        if self.split not in (None, "train"):
            raise ConfigError(f"{self.default_dataset}: subset '{self.subset}' has only the split 'train'")
        return open_source(self.dataset_name, self.dataset_path or self._fetched())

    def _fetched(self) -> Path:
        from huggingface_hub import hf_hub_download

        name = f"tatqa/train_{str(self.subset).removeprefix('tatqa-')}.json"
        with hub_errors("data set", self.dataset_name):
            return Path(hf_hub_download(self.dataset_name, name, repo_type="dataset"))


class ChatRagBenchDataset(BaseSftDataset):
    """Chats that end with a question, and the passages in which a search found its answer: no answer to learn."""

    default_dataset = "nvidia/ChatRAG-Bench"
    default_subset = "doc2dial"

    def __init__(self, *, split: str | None = "test", num_context_docs: int = 5, **named: Any) -> None:
        """Takes how many of the passages, the best first, stand before the question."""
        if split != "test":
            raise ConfigError(f"{self.default_dataset}: got split '{split}'; there is only 'test', to be asked")
        super().__init__(split=split, **named)
        self.num_context_docs = num_context_docs

    def transform_conversation(self, example: Mapping[str, Any]) -> Conversation:
        """Returns the question, led by the passages."""
        passages = list_of(example, "ctxs")[: self.num_context_docs]
        context = "\n\n".join(_passage(passage) for passage in passages)
        return chat_of(about(context, list_of(example, "messages"), None), {})


def about(context: str, turns: Sequence[Any], instruction: str | None) -> list[Any]:
    """Returns turns whose first question is led by a context, after a turn of the system that says how to use it."""
    system = " ".join(filter(None, [_ONLY_FROM_CONTEXT if context else None, instruction]))
    turns = [dict(turn) if isinstance(turn, Mapping) else turn for turn in turns]
    if context:
        first = next((turn for turn in turns if isinstance(turn, dict) and turn.get("role") == "user"), None)
        if first is None:
            raise UnusableValue("no turn of the user, so nothing asks about the document")
        first["content"] = f"<context>\n{context}\n</context>\n\n{first.get('content')}"
    if system and turns and isinstance(turns[0], dict) and turns[0].get("role") == "system":
        turns[0]["content"] = f"{turns[0].get('content')} {system}"
        return turns
    return [{"role": "system", "content": system}, *turns] if system else turns


def _passage(passage: Any) -> str:
    if not isinstance(passage, Mapping):
        raise UnusableValue("a passage of 'ctxs' must be an object with 'text'")
    title, text = passage.get("title"), field_of(passage, "text")
    return f"{title}\n{text}" if title else str(text)
