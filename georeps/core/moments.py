"""Mean and covariance of a gallery, from which the mean and deviation of any query's scores follow without its scores.

    mean(q) = <q, m>;   var(q) = q^T C q                m, C: mean and unbiased covariance of the gallery's rows, in float64
"""  # fmt: skip

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Moments:
    mean: Float[Tensor, " d"]
    covariance: Float[Tensor, "d d"]

    def of(self, queries: Float[Tensor, "q d"], name: str) -> tuple[Float[Tensor, "q 1"], Float[Tensor, "q 1"]]:
        """Mean and standard deviation of q . x over the gallery; ValueError where all scores of a query are equal."""
        q = queries.double()
        variance = ((q @ self.covariance) * q).sum(1, keepdim=True).clamp(min=0)
        scale = self.covariance.diagonal().sum() + self.mean.square().sum()
        check_spread(variance.sqrt(), scale.sqrt(), name)
        return q @ self.mean[:, None], variance.sqrt()


def of(gallery: Float[Tensor, "g d"], *, block: int = 65536) -> Moments:
    """Mean and covariance of the gallery in float64, read once in blocks."""
    if len(gallery) < 2:
        raise ValueError(f"gallery: expected at least 2 rows to standardise over, found {len(gallery)}")
    mean = sum(part.double().sum(0) for part in gallery.split(block)) / len(gallery)
    centred = (part.double() - mean for part in gallery.split(block))
    return Moments(mean, sum(part.T @ part for part in centred) / (len(gallery) - 1))


def check_spread(deviation: Float[Tensor, "q 1"], scale: Float[Tensor, ""], name: str) -> None:
    """ValueError by `name` where the scores of a query do not vary."""
    flat = (deviation <= 1e-9 * scale).squeeze(1) | ~deviation.isfinite().squeeze(1)
    if bool(flat.any()):
        first = int(flat.nonzero()[0])
        raise ValueError(f"{name}: expected similarities that vary over the gallery, found {int(flat.sum())} queries whose do not, first {first}")
