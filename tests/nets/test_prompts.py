"""Prompts: a text with vectors in its gap against the towers' own encoding of the whole text."""

import open_clip
import pytest
import torch
from torch import nn

from georeps.nets import prompts, towers

TOKENIZE = open_clip.SimpleTokenizer(context_length=32)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    vision = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16}
    text = {"context_length": 32, "vocab_size": 49408, "width": 64, "heads": 4, "layers": 2}
    return open_clip.CLIP(embed_dim=16, vision_cfg=vision, text_cfg=text).eval().requires_grad_(False)


def test_words_in_minilm_s_gap_are_the_sentence():
    tower = towers.text()
    prompt = prompts.of_minilm(tower, "A photo of a {} street.")
    ids, mask = tower.tokens(["A photo of a narrow brick street."])
    found = prompt(tower.embed(ids[:, 5:7]))
    torch.testing.assert_close(found, tower(["A photo of a narrow brick street."]), rtol=1e-4, atol=1e-5)
    head = nn.Linear(384, 8)
    torch.testing.assert_close(prompts.of_minilm(tower, "A photo of a {} street.", head)(tower.embed(ids[:, 5:7])), head(found))


def test_words_in_open_clip_s_gap_are_the_sentence(model):
    prompt = prompts.of_open_clip(model, TOKENIZE, "A photo of a {} street.")
    ids = TOKENIZE(["A photo of a narrow brick street."])
    torch.testing.assert_close(prompt(model.token_embedding(ids[:, 5:7])), model.encode_text(ids), rtol=1e-4, atol=1e-5)


def test_gradients_reach_the_vectors_and_nothing_else(model):
    for prompt, width in ((prompts.of_open_clip(model, TOKENIZE, "a {}"), 64), (prompts.of_minilm(towers.text(), "a {}"), 384)):
        words = torch.randn(2, 3, width, requires_grad=True)
        prompt(words).square().sum().backward()
        assert (words.grad.abs().sum(dim=2) > 0).all() and words.grad.isfinite().all() and not list(prompt.parameters())


def test_a_text_beyond_the_context_or_without_one_gap_is_refused(model):
    prompt = prompts.of_open_clip(model, TOKENIZE, "A photo of a {} street.")
    assert prompt(torch.zeros(1, 24, 64)).shape == (1, 16)
    with pytest.raises(ValueError, match="words: expected at most 24 vectors, with which the text has the 32 tokens that are read, found 25"):
        prompt(torch.zeros(1, 25, 64))
    for text in ("a street", "{} {}"):
        with pytest.raises(ValueError, match="text: expected one {} in it"):
            prompts.of_open_clip(model, TOKENIZE, text)
