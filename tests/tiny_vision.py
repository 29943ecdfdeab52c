# SPDX-License-Identifier: Apache-2.0
"""Models that see images, made tiny, with their processors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from oumi.core.data.tokenize.processor import WithoutVideos
from tests.tiny import byte_tokenizer

_TEXT = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 1024, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 3,
}  # fmt: skip
_SPECIAL = {"eos_token": "<|im_end|>", "pad_token": "<|pad|>", "model_max_length": 512}
_SIGHT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


def image(seed: int, width: int = 40, height: int = 56) -> Any:
    """Returns an image of random colours."""
    from PIL import Image

    dots = np.random.default_rng(seed).integers(0, 255, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(dots).resize((width, height))


def save_tiny_llava(folder: Path) -> Path:
    """Writes a LLaVA: each image is four tokens, whatever its size."""
    import torch
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )  # fmt: skip

    tokenizer = _tokenizer("<image>")
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}),
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        image_token="<image>",
        num_additional_image_tokens=1,
        chat_template=_template("<image>"),
    )
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(image_size=28, patch_size=14, projection_dim=32, **_SIGHT),
        text_config=LlamaConfig(vocab_size=len(tokenizer), **_TEXT),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    return _saved(LlavaForConditionalGeneration(config), processor, folder)


def save_tiny_qwen2_vl(folder: Path) -> Path:
    """Writes a Qwen2-VL: a larger image is more tokens, and positions have three parts."""
    import torch
    from transformers import (
        Qwen2VLConfig,
        Qwen2VLForConditionalGeneration,
        Qwen2VLImageProcessor,
        Qwen2VLProcessor,
    )  # fmt: skip

    marks = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
    tokenizer = _tokenizer(*marks)
    template = _template("<|vision_start|><|image_pad|><|vision_end|>")
    processor = type("Qwen2VLProcessor", (WithoutVideos, Qwen2VLProcessor), {})(
        image_processor=Qwen2VLImageProcessor(patch_size=4, merge_size=2, min_pixels=64, max_pixels=1024),
        tokenizer=tokenizer,
        chat_template=template,
    )
    start, end, image, video = (tokenizer.convert_tokens_to_ids(mark) for mark in marks)
    torch.manual_seed(0)
    config = Qwen2VLConfig(
        text_config={
            **_TEXT,
            "vocab_size": len(tokenizer),
            "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10_000.0},
        },
        vision_config={"depth": 2, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "patch_size": 4, "mlp_ratio": 2},
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=start,
        vision_end_token_id=end,
    )
    return _saved(Qwen2VLForConditionalGeneration(config), processor, folder)


def save_tiny_idefics3(folder: Path) -> Path:
    """Writes an Idefics 3: an image is cut into tiles, and what stands around each is text."""
    import torch
    from transformers import (
        Idefics3Config,
        Idefics3ForConditionalGeneration,
        Idefics3ImageProcessor,
        Idefics3Processor,
        LlamaConfig,
    )  # fmt: skip

    tiles = [f"<row_{i}_col_{j}>" for i in range(1, 7) for j in range(1, 7)]
    tokenizer = _tokenizer("<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>", *tiles)
    processor = Idefics3Processor(
        image_processor=Idefics3ImageProcessor(size={"longest_edge": 32}, max_image_size={"longest_edge": 16}),
        tokenizer=tokenizer,
        image_seq_len=4,
        chat_template=_template("<image>"),
    )
    torch.manual_seed(0)
    config = Idefics3Config(
        vision_config={"image_size": 16, "patch_size": 4, **_SIGHT},
        text_config=LlamaConfig(vocab_size=len(tokenizer), **_TEXT),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        pad_token_id=3,
    )
    return _saved(Idefics3ForConditionalGeneration(config), processor, folder)


def save_tiny_gemma3(folder: Path) -> Path:
    """Writes a Gemma 3: the tokens of an image see each other in both directions."""
    import torch
    from transformers import (
        Gemma3Config,
        Gemma3ForConditionalGeneration,
        Gemma3ImageProcessor,
        Gemma3Processor,
        Gemma3TextConfig,
        SiglipVisionConfig,
    )  # fmt: skip

    marks = ("<start_of_image>", "<end_of_image>", "<image_soft_token>")
    tokenizer = _tokenizer(*marks)
    start, end, image = (tokenizer.convert_tokens_to_ids(mark) for mark in marks)
    named = zip(("boi_token", "eoi_token", "image_token"), marks, strict=True)
    tokenizer = type(tokenizer)(
        tokenizer_object=tokenizer.backend_tokenizer, **_SPECIAL, extra_special_tokens=dict(named)
    )
    processor = Gemma3Processor(
        image_processor=Gemma3ImageProcessor(size={"height": 16, "width": 16}),
        tokenizer=tokenizer,
        image_seq_length=4,
        chat_template=_template("<start_of_image>"),
    )
    torch.manual_seed(0)
    config = Gemma3Config(
        vision_config=SiglipVisionConfig(image_size=16, patch_size=4, **_SIGHT),
        text_config=Gemma3TextConfig(vocab_size=len(tokenizer), head_dim=16, sliding_window=64, **_TEXT),
        mm_tokens_per_image=4,
        boi_token_index=start,
        eoi_token_index=end,
        image_token_index=image,
    )
    return _saved(Gemma3ForConditionalGeneration(config), processor, folder)


SAVERS = {
    "llava": save_tiny_llava,
    "qwen2_vl": save_tiny_qwen2_vl,
    "idefics3": save_tiny_idefics3,
    "gemma3": save_tiny_gemma3,
}


def _tokenizer(*marks: str) -> Any:
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|endoftext|>", *marks]})
    return tokenizer


def _template(mark: str) -> str:
    return (
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
        "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
        "{% for part in message['content'] %}{% if part['type'] == 'image' %}" + mark + "{% else %}"
        "{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )


def _saved(model: Any, processor: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
