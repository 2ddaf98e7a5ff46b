"""Texts with vectors in the places of words, through a frozen text tower: learnt prompts (CoOp, ProGEO), pseudo-words (Pic2Word, SEARLE).

feature = g("A photo of a" v_1 .. v_t "street.")      v: learnt, of the width of the tower's word embeddings
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from georeps.nets import towers


class Prompt(nn.Module):
    """One text with a gap: vectors "b t w" in its place -> features "b d", not normalised; gradients pass through to the vectors.

    `before` and `after` are the embeddings of what stands around the gap, the marks of start and end among them; `most` is how many tokens the tower
    reads in all. The tower's weights are no part of this module's state and do not learn.
    """

    def __init__(self, before: Float[Tensor, "n w"], after: Float[Tensor, "m w"], encode: Callable[[Tensor], Tensor], *, most: int):
        super().__init__()
        self.register_buffer("before", before.detach())
        self.register_buffer("after", after.detach())
        self.encode, self.most = encode, most

    def forward(self, words: Float[Tensor, "b t w"]) -> Float[Tensor, "b d"]:
        if len(self.before) + words.shape[1] + len(self.after) > self.most:
            room = self.most - len(self.before) - len(self.after)
            raise ValueError(f"words: expected at most {room} vectors, with which the text has the {self.most} tokens that are read, found {words.shape[1]}")
        before, after = (x.expand(len(words), -1, -1) for x in (self.before, self.after))
        return self.encode(torch.cat([before, words, after], dim=1))


def of_minilm(tower: towers.Text, text: str, head: Callable[[Tensor], Tensor] | None = None) -> Prompt:
    """`text` with one {} for the gap, through MiniLM and a head on its unit rows."""
    before, after = (tower.tokens([part])[0] for part in _parts(text))

    def encode(x: Tensor) -> Tensor:
        rows = tower.encode(x, torch.ones(x.shape[:2], dtype=torch.long, device=x.device))
        return rows if head is None else head(rows)

    return Prompt(tower.embed(before[:, :-1])[0], tower.embed(after[:, 1:])[0], encode, most=256)


def of_open_clip(model: nn.Module, tokenize: Callable[[list[str]], Tensor], text: str) -> Prompt:
    """The same through the text tower of an open_clip CLIP, which reads no further than the end of the text: what follows is masked."""

    def encode(x: Tensor) -> Tensor:
        n = x.shape[1]
        x = model.transformer(x + model.positional_embedding[:n], attn_mask=model.attn_mask[:n, :n])
        x = model.ln_final(x)[:, -1]
        return model.text_projection(x) if isinstance(model.text_projection, nn.Module) else x @ model.text_projection

    device = model.token_embedding.weight.device
    before, after = (tokenize([part])[0].to(device) for part in _parts(text))
    before, after = before[: int(before.argmax())], after[1 : int(after.argmax()) + 1]  # the end of a text is its greatest number
    return Prompt(model.token_embedding(before), model.token_embedding(after), encode, most=model.context_length)


def _parts(text: str) -> tuple[str, str]:
    if text.count("{}") != 1:
        raise ValueError(f"text: expected one {{}} in it, found {text!r}")
    before, _, after = text.partition("{}")
    return before, after
