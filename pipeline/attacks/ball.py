"""The threat model: all images within eps of an image, in the L-infinity or the L2 norm.

Everything is done per image, in pixel space, and in place where a name ends with `_`. Each
pixel is kept in [0, 1]. Since the centre is in that box, clipping to it brings every pixel
closer to the centre's: what was inside the ball stays inside.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from pipeline import rng

__all__ = ["Ball", "Norm"]

Norm = Literal["linf", "l2"]


@dataclass(frozen=True)
class Ball:
    """What an attack may do to an image.

    Attributes
    ----------
    norm : {"linf", "l2"}
        linf: no pixel moves by more than eps; l2: the Euclidean norm over all pixels and
        channels of one image is at most eps.
    eps : float
        Radius, pixel units, not negative. In float32 it is kept to within rounding: about
        6e-8 per pixel.
    """

    norm: Norm
    eps: float

    def uniform(self, images: torch.Tensor, index: torch.Tensor, key: int) -> torch.Tensor:
        """A random point of the ball around each image, clipped to [0, 1].

        Parameters
        ----------
        images : Tensor of shape (B, C, H, W), dtype float32, in [0, 1]
            Centres.
        index : Tensor of shape (B,), dtype int64
            Sample indices; each sample's point is a pure function of (key, index).
        key : int
            From `pipeline.rng.stream_key`.

        Returns
        -------
        Tensor like images
        """
        return (images + self.eps * self._unit(images, index, key)).clamp_(0.0, 1.0)

    def _unit(self, images: torch.Tensor, index: torch.Tensor, key: int) -> torch.Tensor:
        if self.norm == "linf":
            return 2.0 * rng.uniform(key, index, tuple(images.shape[1:])) - 1.0
        # All but two coordinates of a uniform point on the sphere of two more dimensions are
        # uniform in the ball (Voelker et al. 2017), without a power of 1 / dimensions.
        size = images[0].numel()
        noise = rng.normal(key, index, (size + 2,))
        return (noise[:, :size] / _length(noise)).reshape(images.shape)

    def climb_(
        self, points: torch.Tensor, gradient: torch.Tensor, step_size: float
    ) -> torch.Tensor:
        """Move points along the steepest ascent of this norm: the sign, or the unit gradient.

        An image whose gradient is zero stays where it is; otherwise the gradient's scale does
        not matter, down to the smallest that float32 has.

        Parameters
        ----------
        points : Tensor of shape (B, C, H, W), dtype float32
            Changed in place.
        gradient : Tensor like points
            Left as it is: it may be expanded, or a tensor that the model keeps.
        step_size : float
            Length of the step in this norm, pixel units.

        Returns
        -------
        Tensor
            The points.
        """
        if self.norm == "linf":
            direction = gradient.sign()
        else:
            # Twice: the squares of a gradient of 1e-25 would be zero in float32.
            direction = gradient / _length(gradient, torch.inf)
            direction.div_(_length(direction))
        return points.add_(direction, alpha=step_size)

    def project_(self, points: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        """Bring points back into the ball around each image, and into [0, 1].

        Parameters
        ----------
        points : Tensor like images
            Changed in place.
        images : Tensor of shape (B, C, H, W), dtype float32, in [0, 1]
            Centres.

        Returns
        -------
        Tensor
            The points.
        """
        if self.norm == "linf":
            points.clamp_(images - self.eps, images + self.eps)
        else:
            points.sub_(images)
            points.mul_((self.eps / _length(points)).clamp_(max=1.0)).add_(images)
        return points.clamp_(0.0, 1.0)

    def distance(self, points: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        """How far each point is from its image in this norm: shape (B,), pixel units."""
        order = torch.inf if self.norm == "linf" else 2.0
        offset = (points - images).flatten(1)
        distance: torch.Tensor = torch.linalg.vector_norm(offset, ord=order, dim=1)
        return distance


def _length(rows: torch.Tensor, order: float = 2.0) -> torch.Tensor:
    # Of each row, in a shape that divides the rows; never zero, so that 0 / 0 is 0.
    axes = tuple(range(1, rows.dim()))
    length: torch.Tensor = torch.linalg.vector_norm(rows, ord=order, dim=axes, keepdim=True)
    return length.clamp_(min=torch.finfo(rows.dtype).tiny)
