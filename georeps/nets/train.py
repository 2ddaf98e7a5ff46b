"""One training loop for every chapter.

`fit(step, batches, recipe)`: `step` is a module that maps a batch to its loss; `batches(epoch)` yields the batches of an
epoch. Both order and augmentation depend on (seed, epoch) alone, so that a run that was killed and started again ends
with the weights of an unbroken one, bit for bit on CPU.
"""

import dataclasses
import math
import os
from collections.abc import Callable, Iterable
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm


@dataclass(frozen=True)
class Recipe:
    epochs: int
    lr: float  # at its peak
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    weight_decay: float = 0.0
    momentum: float = 0.9  # of sgd
    schedule: Literal["constant", "cosine", "step"] = "constant"
    milestones: tuple[int, ...] = ()  # epochs at which "step" multiplies the rate by 0.1
    warmup: float = 0.0  # epochs of linear warm-up
    clip: float | None = None  # largest gradient norm
    amp: Literal["off", "bf16", "fp16"] = "off"
    ema: float | None = None  # decay of the averaged weights, a step
    seed: int = 0

    def __post_init__(self):
        for name, allowed in (
            ("optimizer", ("adam", "adamw", "sgd")),
            ("schedule", ("constant", "cosine", "step")),
            ("amp", ("off", "bf16", "fp16")),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"recipe.{name}: expected one of {allowed}, found {getattr(self, name)!r}")
        if self.epochs < 1 or self.lr <= 0:
            raise ValueError(f"recipe: expected epochs >= 1 and lr > 0, found {self.epochs} and {self.lr}")


@dataclass(frozen=True)
class Fitted:
    module: nn.Module  # the averaged copy where the recipe asks for one, else `step` itself
    log: list[dict]  # one row an epoch: epoch, lr, loss, and what `evaluate` returned


def fit(
    step: nn.Module, batches: Callable[[int], Iterable[Any]], recipe: Recipe, *, evaluate: Callable[[nn.Module], dict[str, float]] | None = None,
    out: Path | str | None = None, label: str = "",
) -> Fitted:  # fmt: skip
    """Train `step` in place. With `out`, a checkpoint each epoch, from which the same call resumes.

    `batches(epoch)` must give the same batches whenever it is asked for the same epoch (`shuffled` does). `evaluate`
    sees the module that will be returned, after each epoch. Raises FloatingPointError, naming the epoch, when a loss is
    not finite (the last checkpoint stays), and ValueError when the checkpoint in `out` is of another recipe.
    """
    device = next(step.parameters()).device
    if device.type == "cpu" and recipe.amp != "off" and not half_units(recipe.amp):
        raise ValueError(f"recipe.amp: this processor has no units for {recipe.amp}, which would train tens of times slower than float32; expected 'off'")
    optimizer = _optimizer(step, recipe)
    scaler = torch.amp.GradScaler(device.type, enabled=recipe.amp == "fp16")
    average = AveragedModel(step, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema), use_buffers=True) if recipe.ema else None
    states = {"module": step, "optimizer": optimizer, "scaler": scaler} | ({"average": average} if average else {})
    log = _resume(out, recipe, states)
    final = average.module if average else step
    with tqdm(total=recipe.epochs, initial=len(log), desc=label or "fit", unit="epoch", mininterval=1.0) as bar:
        for epoch in range(len(log), recipe.epochs):
            step.train()
            with _seeded(recipe.seed, epoch, device):
                loss = _epoch(step, batches(epoch), epoch, recipe, optimizer, scaler, average)
            _check_parameters(step, epoch)
            row = {"epoch": epoch + 1, "lr": rate(recipe, epoch + 1.0), "loss": loss}
            if evaluate is not None:
                row |= {name: value if getattr(value, "ndim", 0) else float(value) for name, value in evaluate(final).items()}
            log.append(row)
            _save(out, recipe, states, log)
            bar.update()
            bar.set_postfix_str(f"loss {loss:.3f}")
    return Fitted(final, log)


def half_units(amp: Literal["bf16", "fp16"]) -> bool:
    """Whether this processor multiplies 16-bit numbers in units of its own."""
    names = {"bf16": ("_is_avx512_bf16_supported", "_is_amx_tile_supported"), "fp16": ("_is_amx_fp16_supported",)}[amp]
    return any(getattr(torch.cpu, name, bool)() for name in names)


def kept_bytes(step: nn.Module, batch: Any) -> int:
    """What one forward pass keeps in memory for the backward pass, each storage once; the same on every device."""
    seen: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        seen[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        kept.append(x)  # while it lives no other storage gets its address
        return x

    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        step(batch)
    return sum(seen.values())


def rate(recipe: Recipe, epoch: float) -> float:
    """Learning rate after `epoch` epochs (a fraction inside an epoch)."""
    if epoch < recipe.warmup:
        return recipe.lr * epoch / recipe.warmup
    if recipe.schedule == "cosine":
        return recipe.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, epoch / recipe.epochs)))
    if recipe.schedule == "step":
        return recipe.lr * 0.1 ** sum(epoch >= m for m in recipe.milestones)
    return recipe.lr


def shuffled(n: int, batch: int, *, seed: int, tiles: Tensor | None = None) -> Callable[[int], list[Tensor]]:
    """Index batches of n items in an order drawn from (seed, epoch); the last items, which fill no batch, sit out.

    With `tiles` "n t", no tile belongs to two items of a batch (VIGOR: the positive and its semi-positives): an item that
    shares one waits for a later batch.
    """
    if not 1 <= batch <= n:
        raise ValueError(f"batch: expected 1..{n} (the number of items), found {batch}")
    sets = None if tiles is None else [frozenset(row) for row in tiles.tolist()]

    def batches(epoch: int) -> list[Tensor]:
        order = torch.randperm(n, generator=torch.Generator().manual_seed(_mix(seed, epoch)))
        if sets is not None:
            found = distinct(order.tolist(), sets, batch)
            if not found:
                raise ValueError(f"batch: expected {batch} of the {n} items to share no tile, found fewer; choose a smaller batch")
            return found
        return list(order[: n - n % batch].split(batch))

    return batches


def distinct(waiting: list[int], sets: list[frozenset], batch: int) -> list[Tensor]:
    """Batches of items in the order they wait in, none of which hold two whose sets meet: an item that meets one waits for a later batch."""
    full = []
    while len(waiting) >= batch:
        chosen, used, later = [], set(), []
        for at, i in enumerate(waiting):
            if len(chosen) == batch:
                later += waiting[at:]
                break
            if used.isdisjoint(sets[i]):
                chosen.append(i)
                used |= sets[i]
            else:
                later.append(i)
        if len(chosen) < batch:
            break
        full.append(torch.tensor(chosen))
        waiting = later
    return full


def _optimizer(step: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    parameters = [p for p in step.parameters() if p.requires_grad]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(parameters, recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay)
    kind = torch.optim.Adam if recipe.optimizer == "adam" else torch.optim.AdamW
    return kind(parameters, recipe.lr, weight_decay=recipe.weight_decay)


def _epoch(step, batches, epoch, recipe, optimizer, scaler, average) -> float:
    device = next(step.parameters()).device
    dtype = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}[recipe.amp]
    batches = batches if hasattr(batches, "__len__") else list(batches)
    if len(batches) == 0:
        raise ValueError(f"batches: expected at least one batch in epoch {epoch + 1}, found none")
    total = torch.zeros((), dtype=torch.float64, device=device)
    for i, batch in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = rate(recipe, epoch + i / len(batches))
        with torch.autocast(device.type, dtype) if dtype else nullcontext():
            loss = step(batch)
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        if recipe.clip is not None:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(step.parameters(), recipe.clip)
        scaler.step(optimizer)
        scaler.update()
        if average is not None:
            average.update_parameters(step)
        total += loss.detach()
    mean = float(total) / len(batches)
    if not math.isfinite(mean):
        raise FloatingPointError(f"fit: the loss is {mean} in epoch {epoch + 1}; try a smaller lr than {recipe.lr} or clip")
    return mean


def _check_parameters(step: nn.Module, epoch: int) -> None:
    """A finite loss can still have had a gradient that is not: nothing broken is saved over a good checkpoint."""
    broken = [name for name, p in step.named_parameters() if not bool(p.isfinite().all())]
    if broken:
        raise FloatingPointError(f"fit: {len(broken)} parameters are not finite after epoch {epoch + 1}, first {broken[0]}")


@contextmanager
def _seeded(seed: int, epoch: int, device: torch.device):
    """A fork of torch's random state for one epoch, seeded by (seed, epoch): dropout and augmentation repeat."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(_mix(seed, epoch))
        yield


def _mix(seed: int, epoch: int) -> int:
    return (seed * 1_000_003 + epoch * 7_919 + 17) % 2**63


def _resume(out, recipe: Recipe, states: dict) -> list[dict]:
    path = Path(out) / "checkpoint.pt" if out is not None else None
    if path is None or not path.is_file():
        return []
    saved = torch.load(path, map_location="cpu", weights_only=True)
    if saved["recipe"] != _as_dict(recipe):
        changed = sorted(k for k, v in _as_dict(recipe).items() if saved["recipe"].get(k) != v)
        raise ValueError(f"out: {path} was trained by another recipe (different: {', '.join(changed)}); choose another out")
    for name, holder in states.items():
        holder.load_state_dict(saved[name])
    return saved["log"]


def _save(out, recipe: Recipe, states: dict, log: list) -> None:
    if out is None:
        return
    Path(out).mkdir(parents=True, exist_ok=True)
    path = Path(out) / "checkpoint.pt"
    partial = path.with_suffix(f".{os.getpid()}.part")
    saved = {name: holder.state_dict() for name, holder in states.items()}
    torch.save(saved | {"recipe": _as_dict(recipe), "log": log}, partial)
    os.replace(partial, path)  # a kill leaves the old checkpoint or the new one, never half of one


def _as_dict(recipe: Recipe) -> dict:
    return dataclasses.asdict(recipe) | {"milestones": list(recipe.milestones)}
