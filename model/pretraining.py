"""Encoder and objective as one module: what pre-training wraps, compiles and saves."""

import torch
from jaxtyping import Bool, Float, Float32, Int
from torch import Tensor, nn

from .encoder import AudioEncoder


class PretrainingModel(nn.Module):
    """An encoder and the objective that trains it, behind one ``forward``.

    ``DistributedDataParallel`` sees only calls of the module it wraps, so both
    must stand in one.

    Args:
        encoder: the part that is kept afterwards.
        objective: an objective of ``OBJECTIVES``; its own parameters are thrown away.
    """

    def __init__(self, encoder: AudioEncoder, objective: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.objective = objective
        self.register_buffer("step", torch.zeros((), dtype=torch.int64), persistent=False)

    step: Tensor

    def set_step(self, step: int) -> None:
        """Tell the objective which optimiser step comes, from 0; does not wait for the device.

        What an objective anneals is a function of this number alone, so a run that
        resumes at a step sets it and goes on as it would have.
        """
        self.step.fill_(step)

    def forward(
        self,
        logmel: Float[Tensor, "B T n_mels"],
        n_frames: Int[Tensor, " B"] | None,
        mask: Bool[Tensor, "B S"],
        distractors: Int[Tensor, "B M N"],
    ) -> dict[str, Float32[Tensor, ""]]:
        """Compute the objective's scalars by name; ``loss`` is the one to minimise.

        Args:
            logmel: float16 or float32, shape (B, T, n_mels), not normalised.
            n_frames: integer, shape (B,): valid log-mel frames. None: all.
            mask: bool, shape (B, S), True = masked; M masked steps in every row.
            distractors: int32 or int64, shape (B, M, N), values in 0..M-1.

        Returns:
            float32 scalars.
        """
        return self.objective(
            self.encoder,
            logmel=logmel,
            n_frames=n_frames,
            mask=mask,
            distractors=distractors,
            step=self.step,
        )
