"""Pseudo-words through a linear text tower, where what they should become is known."""

import pytest
import torch
import torch.nn.functional as F

from georeps.nets import prompts
from georeps.papers import inversion

DIM = 24


@pytest.fixture
def photo() -> prompts.Prompt:
    """The mean of the tokens, one before the gap and one after it, turned by a fixed rotation."""
    turn = torch.linalg.qr(torch.randn(DIM, DIM, generator=torch.Generator().manual_seed(0))).Q
    before, after = torch.randn(2, 1, DIM, generator=torch.Generator().manual_seed(1))
    return prompts.Prompt(before, after, lambda x: x.mean(dim=1) @ turn, most=8)


def images(n: int) -> torch.Tensor:
    return F.normalize(torch.randn(n, DIM, generator=torch.Generator().manual_seed(2)), dim=1)


def test_a_pseudo_word_draws_its_text_to_its_image(photo):
    seen = images(5)
    start, words = (inversion.pseudo_words(seen, photo, lr=0.1, steps=steps, seed=3) for steps in (0, 300))
    near = [F.cosine_similarity(photo(w), seen) for w in (start, words)]
    assert (near[1] > 0.97).all() and (near[0] < 0.6).all()
    assert torch.equal(words, inversion.pseudo_words(seen, photo, lr=0.1, steps=300, seed=3)) and not words.requires_grad


def test_a_phrase_with_the_nearest_word_draws_too(photo):
    seen, meant = images(4), images(8)[4:]
    both = inversion.pseudo_words(seen, photo, lr=0.1, steps=300, phrases=[(photo, meant)], weight=1.0)
    text = photo(both)
    torch.testing.assert_close(F.cosine_similarity(text, seen), F.cosine_similarity(text, meant), atol=0.02, rtol=0)


def test_the_map_learns_to_say_images_and_nothing_else_learns(photo):
    torch.manual_seed(0)
    step = inversion.MappingStep(inversion.Mapping(DIM, DIM, dropout=0.0), images(32), photo, scale=10.0)
    optimizer = torch.optim.Adam(step.parameters(), lr=0.01)
    assert {name.split(".")[0] for name, _ in step.named_parameters()} == {"mapping"}
    first = float(step(torch.arange(32)).detach())
    for _ in range(100):
        optimizer.zero_grad()
        step(torch.arange(32)).backward()
        optimizer.step()
    assert float(step(torch.arange(32)).detach()) < 0.2 * first
    with torch.no_grad():
        texts = F.normalize(photo(step.mapping(images(32))), dim=1)
    cosine, own = 10 * texts @ images(32).T, torch.arange(32)
    expected = (F.cross_entropy(cosine, own) + F.cross_entropy(cosine.T, own)) / 2
    torch.testing.assert_close(step(own).detach(), expected)
