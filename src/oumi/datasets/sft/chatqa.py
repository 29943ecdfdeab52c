# SPDX-License-Identifier: Apache-2.0
"""ChatQA: conversations about a document, and its benchmark."""

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

# Instructions for each subset, as the page of the data set recommends.
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
    """Conversations that end with a question, its answer, and optionally the document that they are about."""

    default_dataset = "nvidia/ChatQA-Training-Data"
    default_subset = "sft"

    def __init__(self, **named: Any) -> None:
        super().__init__(**named)
        if self.subset not in _INSTRUCTIONS:
            hint = did_you_mean(str(self.subset), _INSTRUCTIONS) or f"; there are {', '.join(_INSTRUCTIONS)}"
            raise ConfigError(f"{self.default_dataset}: unknown subset '{self.subset}'{hint}")

    def transform_conversation(self, example: Mapping[str, Any]) -> Conversation:
        """Returns the conversation with the first of its answers."""
        answers = field_of(example, "answers")
        answer = answers[0] if isinstance(answers, list) and answers else answers
        if not isinstance(answer, str) or not answer:
            raise UnusableValue("'answers' must hold a text, and not an empty one")
        turns = [*list_of(example, "messages"), {"role": "assistant", "content": answer}]
        document = example.get("document") or ""
        return taught(chat_of(about(document, turns, _INSTRUCTIONS[str(self.subset)]), {}))


class ChatqaTatqaDataset(ChatqaDataset):
    """One half of the subset `tatqa`, which is a file of its own in the repository of the data set."""

    default_subset = "tatqa-arithmetic"

    def _read(self) -> RowSource:
        if self.split not in (None, "train"):
            raise ConfigError(f"{self.default_dataset}: subset '{self.subset}' has only the split 'train'")
        path = self.dataset_path
        if path is None:
            from huggingface_hub import hf_hub_download

            filename = f"tatqa/train_{str(self.subset).removeprefix('tatqa-')}.json"
            with hub_errors("data set", self.dataset_name):
                path = Path(hf_hub_download(self.dataset_name, filename, repo_type="dataset"))
        return open_source(self.dataset_name, path)


class ChatRagBenchDataset(BaseSftDataset):
    """Conversations that end with a question, and passages that a search returned for it; there is no answer."""

    default_dataset = "nvidia/ChatRAG-Bench"
    default_subset = "doc2dial"

    def __init__(self, *, split: str | None = "test", num_context_docs: int = 5, **named: Any) -> None:
        """Sets how many of the passages, best first, precede the question."""
        if split != "test":
            raise ConfigError(f"{self.default_dataset}: got split '{split}'; there is only 'test'")
        super().__init__(split=split, **named)
        self.num_context_docs = num_context_docs

    def transform_conversation(self, example: Mapping[str, Any]) -> Conversation:
        """Returns the conversation with the passages as its context."""
        passages = []
        for passage in list_of(example, "ctxs")[: self.num_context_docs]:
            if not isinstance(passage, Mapping):
                raise UnusableValue("a passage of 'ctxs' must be an object with 'text'")
            title, text = passage.get("title"), field_of(passage, "text")
            passages.append(f"{title}\n{text}" if title else str(text))
        return chat_of(about("\n\n".join(passages), list_of(example, "messages"), None), {})


def about(context: str, turns: Sequence[Any], instruction: str | None) -> list[Any]:
    """Returns turns with a context before the first question, and a system turn with instructions.

    Args:
        context: Text that the questions are about; may be empty.
        turns: Turns of a row.
        instruction: How to answer, added to the system turn.

    Raises:
        UnusableValue: There is a context, but no question.
    """
    system = " ".join(filter(None, [_ONLY_FROM_CONTEXT if context else None, instruction]))
    # Copies, since the row itself may be read again.
    turns = [dict(turn) if isinstance(turn, Mapping) else turn for turn in turns]
    if context:
        first = next((turn for turn in turns if isinstance(turn, dict) and turn.get("role") == "user"), None)
        if first is None:
            raise UnusableValue("no user turn, so there is no question about the document")
        first["content"] = f"<context>\n{context}\n</context>\n\n{first.get('content')}"
    # A chat has only one system turn, so the instructions join one that the row has.
    if system and turns and isinstance(turns[0], dict) and turns[0].get("role") == "system":
        turns[0]["content"] = f"{turns[0].get('content')} {system}"
        return turns
    return [{"role": "system", "content": system}, *turns] if system else turns
