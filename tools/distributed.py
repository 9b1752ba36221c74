"""The processes of one training run: who they are, and what they agree on.

``torchrun`` starts the processes and names each by environment variables; without it there
is one. Tensors on a GPU travel by NCCL, those on the CPU by gloo.

    torchrun --nproc-per-node 8 --max-restarts 3 --no-python melstream pretrain … --resume

On several machines each one's torchrun has ``--nnodes 2 --node-rank 0 --master-addr HOST``, too.
When one is lost, the processes of the others fail, are started anew and wait for it; started
again, it joins in. (``--rdzv-backend c10d`` works as well, but torch 2.11 tells an agent that
comes late no address unless all have ``TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1``.)
"""

import os
import pickle
import secrets
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from ..shards.errors import MelstreamError

T = TypeVar("T")

_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
COLLECTIVE_TIMEOUT = timedelta(minutes=60)  # one process may write a checkpoint, or compile
POLL_S = 0.05  # between looks into the store while processes find one another


@dataclass(frozen=True, slots=True)
class World:
    """One process among those of a run.

    Args:
        device: where this process trains.
        rank, size: which process this is, and of how many.
        n_restarts: how often torchrun has started the processes anew.
    """

    device: torch.device
    rank: int = 0
    size: int = 1
    n_restarts: int = 0

    @property
    def is_main(self) -> bool:
        """Say whether this process writes the files and talks to the user."""
        return self.rank == 0

    def on_main(self, work: Callable[[], T]) -> T:
        """Let the main process do something, and give its result to all.

        Args:
            work: what to do; its result travels pickled, so it has to be small.

        Raises:
            MelstreamError: whatever ``work`` raises, in every process.
        """
        if self.size == 1:
            return work()
        outcome: list[T | Exception | None] = [None]
        if self.is_main:
            try:
                outcome[0] = work()
            except Exception as error:  # it is raised below, in every process
                outcome[0] = _picklable(error)
        dist.broadcast_object_list(outcome, src=0, device=torch.device("cpu"))
        if isinstance(outcome[0], Exception):
            raise outcome[0]
        return outcome[0]  # type: ignore[return-value]

    def on_all(self, work: Callable[[], T]) -> T:
        """Do something in every process, and go on only if all of them could.

        Args:
            work: what to do; its result stays in the process.

        Raises:
            MelstreamError: what ``work`` raises in the first process that fails, in every one.
        """
        if self.size == 1:
            return work()
        done, problem = None, None
        try:
            done = work()
        except Exception as error:  # it is raised below, in every process
            problem = _picklable(error)
        problems: list[Exception | None] = [None] * self.size
        dist.all_gather_object(problems, problem)
        for found in problems:
            if found is not None:
                raise found
        return done  # type: ignore[return-value]

    def mean(self, values: Tensor) -> Tensor:
        """Average a tensor over the processes, in place."""
        if self.size > 1:
            dist.all_reduce(values)
            values /= self.size
        return values

    def gather(self, values: Tensor) -> Tensor:
        """Lay the equally shaped tensors of all processes end to end, in order of rank."""
        if self.size == 1:
            return values
        parts = [torch.empty_like(values) for _ in range(self.size)]
        dist.all_gather(parts, values.contiguous())
        return torch.cat(parts)

    def parallel(self, module: nn.Module) -> nn.Module:
        """Wrap a module so that gradients are averaged over the processes."""
        if self.size == 1 or not any(p.requires_grad for p in module.parameters()):
            return module
        # About the gradient of a depthwise kernel, whose dimensions of 1 have two right strides.
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        return DistributedDataParallel(
            module,
            device_ids=[self.device] if self.device.type == "cuda" else None,
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
        )


def _picklable(error: Exception) -> Exception:
    """Return an error that the other processes can be told of, or they would wait for ever."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # whatever an error's own constructor or state may raise
        return MelstreamError(f"{type(error).__name__}: {error}")
    return error


@contextmanager
def join_world(device: torch.device) -> Iterator[World]:
    """Join the processes that torchrun started, or be alone.

    Args:
        device: ``cuda`` without a number becomes the GPU of this process's local rank.

    Yields:
        This process among them.

    Raises:
        MelstreamError: there are more processes on this machine than GPUs.
    """
    if not all(name in os.environ for name in _VARIABLES):
        yield World(device)
        return
    if device.type == "cuda":
        device = _own_gpu(int(os.environ["LOCAL_RANK"]))
    store, rank, size = next(rendezvous("env://"))
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
        store=fresh_store(store, rank, size),
        rank=rank,
        world_size=size,
        device_id=device if device.type == "cuda" else None,
        timeout=COLLECTIVE_TIMEOUT,
    )
    yield World(device, rank, size, _restarts())
    # Not after an error: NCCL would wait here for processes that wait for this one, and the
    # error be told when they have given up. torchrun ends them when this one has.
    dist.destroy_process_group()


def fresh_store(store: Store, rank: int, size: int) -> Store:
    """Agree on a part of the store that no earlier life of these processes has written to.

    The agent's store outlives the processes (torch 2.11), and what the dead left in it would
    mislead the living. Agents of several machines count restarts differently, so a count
    cannot name a life. Rank 0 draws a name, and repeats it with the passwords it has read
    until every other process has found its own among them.

    Args:
        store: of torchrun, shared by all.
        rank, size: of this process, and how many there are.
    """
    own = secrets.token_hex(8)
    if rank:
        store.set(f"password/{rank}", own)
        while own not in (names := store.get("life").decode().split()):
            time.sleep(POLL_S)
        store.set(f"{names[0]}/{rank}", "")
        return PrefixStore(names[0], store)
    while not all(store.check([f"{own}/{other}"]) for other in range(1, size)):
        passwords = [store.get(f"password/{other}").decode() for other in range(1, size)]
        store.set("life", " ".join([own, *passwords]))
        time.sleep(POLL_S)
    return PrefixStore(own, store)


def _restarts() -> int:
    """Return how often processes were started anew, by the machine that counts the most."""
    n_restarts = torch.tensor(int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")))
    dist.all_reduce(n_restarts, dist.ReduceOp.MAX)
    return int(n_restarts)


def _own_gpu(local_rank: int) -> torch.device:
    if local_rank >= torch.cuda.device_count():
        raise MelstreamError(
            f"`--nproc-per-node` must be at most the number of GPUs here "
            f"({torch.cuda.device_count()}), found a process with local rank {local_rank}"
        )
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device


@dataclass(slots=True)
class Agreement:
    """What any process wants, known to all of them at the same step, or batch of a validation.

    One number travels per step while the step computes, and is read at the next: nobody
    waits for it, and every process hears of it at the same step, one late. Alone, a process
    hears of it at once.
    """

    world: World
    _flag: Tensor = field(default_factory=lambda: torch.zeros(1, dtype=torch.int32))
    _sent: dist.Work | None = None

    def hear(self, wants: bool) -> bool:
        """Say what this process wants, and return whether any did a step ago.

        Every process has to call it equally often.
        """
        if self.world.size == 1:
            return wants
        heard = self.finish()
        self._flag = torch.tensor([wants], dtype=torch.int32)
        self._sent = dist.all_reduce(self._flag, dist.ReduceOp.MAX, async_op=True)
        return heard

    def finish(self) -> bool:
        """Wait for the last word under way, and return whether any process wanted."""
        if self._sent is None:
            return False
        self._sent.wait()
        self._sent = None
        return bool(self._flag)
