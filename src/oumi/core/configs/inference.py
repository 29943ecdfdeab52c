# SPDX-License-Identifier: Apache-2.0
"""The config of inference, as `oumi infer -c` reads it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import Field, NonNegativeFloat, PositiveInt

from oumi.core.configs.base import Complaint, Params
from oumi.core.configs.loading import BaseConfig
from oumi.core.configs.model import ModelParams
from oumi.core.configs.paths import PathText

_READ = {
    "model_name", "adapter_model", "tokenizer_name", "model_max_length", "torch_dtype_str", "chat_template",
    "chat_template_kwargs", "attn_implementation", "model_revision",
}  # fmt: skip
"""Keys of `model` that inference reads."""
_NOT_READ_BY_CHAT = ("input_path", "output_path", "model.model_max_length", "model.chat_template_kwargs")
_READ_BY_CHAT = ("generation.max_new_tokens", "generation.temperature", "generation.use_sampling")


class GenerationParams(Params):
    """How answers are generated."""

    max_new_tokens: PositiveInt = 256
    """Maximum length of an answer, in tokens."""
    batch_size: PositiveInt | None = None
    """Questions that are answered at once; null takes 16. Answers do not depend on it."""
    temperature: NonNegativeFloat = 0.0
    """0 takes the most likely token each time; above 0, tokens are sampled."""
    use_sampling: bool | None = None
    """Sample tokens; null samples if temperature is above 0."""
    top_p: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Sample among the most likely tokens that have this share of the probability together."""
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Sample among tokens that are at least this share as likely as the most likely one."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    """Seed of the samples; null takes 0. A sample depends on it and on the line of its question alone."""
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    """Makes a token less likely for each time that the answer has it."""
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    """Makes tokens less likely that the answer has."""
    logit_bias: dict[int, Annotated[float, Field(ge=-100, le=100)]] = {}
    """Added to the logits of tokens, by token id."""
    stop_strings: list[str] | None = None
    """Texts that end an answer, and are left out of it."""
    stop: list[str] | None = None
    """The same as stop_strings, by an earlier name."""
    stop_token_ids: list[int] | None = None
    """Tokens that end an answer, beside those of the model."""
    num_beams: PositiveInt = 1
    """Beams of a beam search."""
    skip_special_tokens: bool = True
    """Leave special tokens out of answers."""
    exclude_prompt_from_response: bool = True
    """Must be true: an answer is stored without its question."""
    use_cache: bool = False
    """Not read: keys and values are always cached, with the same answers."""
    guided_decoding: dict[str, Any] | None = None
    """Not supported yet."""

    @property
    def samples(self) -> bool:
        """Returns True if tokens are sampled."""
        return self.temperature > 0 if self.use_sampling is None else self.use_sampling

    @property
    def sampling_temperature(self) -> float:
        """Returns the temperature, 0 if tokens are not sampled."""
        return self.temperature if self.samples else 0.0

    def complaints(self) -> Iterator[Complaint]:
        if self.use_sampling and not self.temperature:
            yield "use_sampling", "needs a temperature above 0"
        if self.num_beams > 1 and self.samples:
            yield "num_beams", "a beam search does not sample; set temperature to 0"
        if self.stop is not None and self.stop_strings is not None:
            yield "stop", "is the same as stop_strings; leave one of them out"
        if not self.exclude_prompt_from_response:
            yield "exclude_prompt_from_response", "must be true: an answer is stored without its question"
        if self.guided_decoding is not None:
            yield "guided_decoding", "not supported yet"
        for key in ("stop", "stop_strings"):
            if "" in (getattr(self, key) or ()):
                yield key, "an empty text would end every answer"


class InferenceConfig(BaseConfig):
    """The config of inference."""

    other_kind = (frozenset({"training", "data"}), "a training config; expected an inference config")

    model: ModelParams = ModelParams.model_construct(_fields_set=set(), model_name="")
    """Model and tokenizer."""
    generation: GenerationParams = GenerationParams()
    """How answers are generated."""
    input_path: PathText | None = None
    """File of questions: JSON Lines, JSON, CSV or Parquet; a row has `messages`, `prompt` or `text`."""
    output_path: PathText | None = None
    """File of answers, one JSON object a line."""
    engine: str | None = None
    """NATIVE or null: the model runs in this process."""
    remote_params: dict[str, Any] | None = None
    """Of servers; not supported."""

    def complaints(self) -> Iterator[Complaint]:
        if self.engine is not None and self.engine.upper() != "NATIVE":
            yield "engine", f"{self.engine}: not supported, only NATIVE; leave it out to run the model in this process"
        if self.remote_params is not None:
            yield "remote_params", "not supported: no server is asked; leave it out to run the model in this process"

    def not_read(self, in_chat: bool = False) -> list[str]:
        """Returns the keys that are set and that inference, or a chat, does not read, with the reason if it has one."""
        keys_set = self.keys_set()
        keys = sorted(key for key in keys_set if key.startswith("model.") and key.split(".")[1] not in _READ)
        if in_chat:
            others = [key for key in keys_set if key.startswith("generation.") and key not in _READ_BY_CHAT]
            unread = [*others, *(key for key in keys_set if key.startswith(_NOT_READ_BY_CHAT))]
            return [*keys, *(f"{key}: a chat does not read it" for key in sorted(unread))]
        if "generation.use_cache" in keys_set:
            keys.append("generation.use_cache: keys and values are always cached")
        sampled = [f"generation.{name}" for name in ("top_p", "min_p", "seed")]
        unused = [key for key in sampled if key in keys_set and not self.generation.samples]
        return [*keys, *(f"{key}: nothing is sampled, since the temperature is 0" for key in unused)]
