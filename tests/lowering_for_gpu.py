"""Compile training steps for a GPU that is not there: python lowering_for_gpu.py [CASE …].

``torch.compile`` traces forward and backward on a CPU. Their graphs are then moved to an H100
whose driver is a stand-in, its code generator writes the kernels, and Triton compiles each of
them, down to the binary. Nothing runs; what no compiler takes is found.
"""

import os
import re
import sys
from collections.abc import Callable
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

os.environ |= {"TORCHINDUCTOR_COMPILE_THREADS": "1", "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}

import torch
import torch._inductor.config
import torch._inductor.decomposition
import triton
from torch import Tensor, nn
from torch._dynamo.device_interface import CudaInterface
from torch._functorch.aot_autograd import aot_module_simplified
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._inductor.codecache import PyCodeCache
from torch._inductor.compile_fx import compile_fx_inner
from torch._inductor.fx_passes.joint_graph import joint_graph_passes
from torch._inductor.graph import GraphLowering
from torch._inductor.runtime import triton_helpers
from torch._inductor.utils import BoxedBool
from torch._inductor.virtualized import V
from torch._subclasses import FakeTensorMode
from torch.fx import GraphModule
from torch.fx.node import map_aggregate, map_arg
from triton.backends.compiler import GPUTarget

from melstream.model import conformer
from melstream.model.encoder import AudioEncoder, EncoderConfig
from melstream.model.hiding import Hidden
from melstream.model.objectives import build_objective
from melstream.model.pretraining import PretrainingModel
from melstream.model.tagger import Tagger, TaggerConfig
from melstream.tools.train_step import COMPILER_OPTIONS

GPU = torch.device("cuda", 0)
H100 = SimpleNamespace(
    name="NVIDIA H100", major=9, minor=0, multi_processor_count=132, warp_size=32,
    regs_per_multiprocessor=65_536, max_threads_per_multi_processor=2_048,
    max_threads_per_block=1_024, L2_cache_size=50 << 20, is_integrated=False,
    total_memory=80 << 30, shared_memory_per_block_optin=232_448,
)  # fmt: skip
CONFIG = EncoderConfig(
    latent_dim=64, dim=64, n_layers=1, n_heads=2, ffn_dim=128, dropout=0.1, layer_drop=0.1
)
BATCH, STEPS, N_MASKED = 4, 250, 65


class LoweredError(Exception):
    """The code is written: go no further."""


def main(case: str) -> None:
    """Lower a step, compile its kernels, and say which there are."""
    graphs = traced(CASES[case])
    with ExitStack() as stack:
        for stand_in in stand_ins():
            stack.enter_context(stand_in)
        sources = [code_for_gpu(graph, is_backward) for graph, is_backward in graphs]
        names = [name for source in sources for name in compile_kernels(source)]
    sys.stdout.write(f"{case}: {len(sources)} graphs, kernels {' '.join(names)}\n")


def pretraining(options: dict[str, Any], n_frames: Tensor | None) -> dict[str, Tensor]:
    """Take the losses of a pre-training model, compiled."""
    objective = build_objective("wav2vec2", options, CONFIG)
    model = compiled(PretrainingModel(AudioEncoder(CONFIG), objective))
    mask = (torch.arange(STEPS) < N_MASKED).expand(BATCH, -1)
    distractors = torch.zeros(BATCH, N_MASKED, 100, dtype=torch.int32)
    return model(logmel(), n_frames, mask, distractors)


def tagging() -> dict[str, Tensor]:
    """Take the loss of a tagger that is fine-tuned, compiled."""
    config = TaggerConfig(pooling="attention")
    model = compiled(Tagger(AudioEncoder(CONFIG), config, 5))
    hidden = Hidden(torch.ones(BATCH, STEPS).bool(), torch.ones(BATCH, CONFIG.latent_dim).bool())
    logits = model(logmel(), lengths(), hidden)
    return {"loss": logits.float().square().mean()}


def logmel() -> Tensor:
    """Make log-mels of BATCH samples."""
    return torch.randn(BATCH, STEPS * CONFIG.stride, CONFIG.n_mels).half()


def lengths() -> Tensor:
    """Make the lengths of padded samples."""
    return torch.full((BATCH,), 4 * N_MASKED)


CASES: dict[str, Callable[[], dict[str, Tensor]]] = {
    "pretraining": lambda: pretraining({}, None),
    "padded": lambda: pretraining({"quantizer": {"n_groups": 2, "n_codes": 4}}, lengths()),
    "tagging": tagging,
}

TRACED: list[tuple[GraphModule, bool]] = []
"""Graphs of the model that is traced, and whether each is the backward one."""


def compiled(model: nn.Module) -> Any:
    """Let a model be traced, and both graphs be kept as they are."""
    return torch.compile(model.train(), backend=keep_graphs, fullgraph=True, dynamic=False)


def keep_graphs(module: GraphModule, inputs: list[Tensor]) -> Callable[..., object]:
    """Go the compiler's way to the graphs of forward and backward."""

    def keeper(is_backward: bool) -> Callable[..., object]:
        def keep(graph: GraphModule, _: list[Tensor]) -> Callable[..., object]:
            TRACED.append((graph, is_backward))
            run = graph.forward

            def boxed(arguments: list[Tensor]) -> object:
                return run(*arguments)

            boxed._boxed_call = True  # type: ignore[attr-defined]
            return boxed

        return keep

    def partition(joint: GraphModule, arguments: Any, **options: Any) -> Any:
        with V.set_fake_mode(torch._guards.detect_fake_mode(arguments)):
            joint_graph_passes(joint)
        return min_cut_rematerialization_partition(joint, arguments, compiler="inductor", **options)

    return aot_module_simplified(
        module, inputs, fw_compiler=keeper(False), bw_compiler=keeper(True),
        decompositions=torch._inductor.decomposition.select_decomp_table(),
        partition_fn=partition,
    )  # fmt: skip


def traced(losses: Callable[[], dict[str, Tensor]]) -> list[tuple[GraphModule, bool]]:
    """Trace forward and backward on a CPU, with the convolution of a GPU."""
    TRACED.clear()
    torch.compiler.reset()
    target = GPUTarget("cuda", 10 * H100.major + H100.minor, H100.warp_size)
    triton.runtime.driver.set_active(SimpleNamespace(get_current_target=lambda: target))
    with (
        patch.object(conformer, "_takes_triton", lambda _: True),
        FakeTensorMode(allow_non_fake_inputs=True),
    ):
        with torch.autocast("cpu", torch.bfloat16):
            loss = losses()["loss"]
        loss.backward()
    return TRACED.copy()


def stand_ins() -> list[Any]:
    """Answer for the driver and the device."""
    answers: dict[str, Callable[..., object]] = {
        "torch.cuda.is_available": lambda: True,
        "torch.cuda.device_count": lambda: 1,
        "torch.cuda.current_device": lambda: 0,
        "torch.cuda.set_device": lambda _: None,
        "torch.cuda._exchange_device": lambda _: 0,
        "torch.cuda._maybe_exchange_device": lambda _: 0,
        "torch.cuda.get_device_properties": lambda *_: H100,
        "torch.cuda.get_device_capability": lambda *_: (H100.major, H100.minor),
        "torch.cuda.get_rng_state": lambda *_: torch.get_rng_state(),
        "torch.cuda.set_rng_state": lambda *_: None,
        "torch._subclasses.fake_tensor.init_gpu_context": lambda *_: None,
        "torch._inductor.scheduler.has_triton": lambda: True,
    }
    methods: dict[str, Callable[..., object]] = {
        "get_compute_capability": lambda *_: 10 * H100.major + H100.minor,
        "get_device_properties": lambda *_: H100,
    }
    return [
        *(patch(name, answer) for name, answer in answers.items()),
        *(patch.object(CudaInterface, name, staticmethod(run)) for name, run in methods.items()),
        patch.object(CudaInterface.Worker, "get_device_properties", staticmethod(lambda *_: H100)),
        patch.object(triton_helpers, "set_driver_to_gpu", lambda: None),
        torch._inductor.config.patch(COMPILER_OPTIONS),
    ]


def code_for_gpu(graph: GraphModule, is_backward: bool) -> str:
    """Move a graph to the GPU and let the compiler write its code."""
    written: list[str] = []

    def stop(lowering: GraphLowering) -> None:
        written.append(lowering.codegen()[0].value)
        raise LoweredError

    inputs = moved(graph)
    try:
        with patch.object(GraphLowering, "compile_to_module", stop):
            compile_fx_inner(graph, inputs, is_backward=is_backward, cudagraphs=BoxedBool(False))
    except Exception:
        if not written:
            raise
    return written[0]


def moved(graph: GraphModule) -> list[Tensor]:
    """Make every value of a graph one of the GPU; return its inputs."""
    values: dict[torch.fx.Node, Any] = {}
    inputs = []
    with FakeTensorMode(allow_non_fake_inputs=True):
        for node in graph.graph.nodes:
            if node.op == "placeholder":
                values[node] = on_gpu(node.meta["val"])
                inputs.append(values[node])
            elif node.op == "call_function":
                node.args, node.kwargs = map_aggregate((node.args, node.kwargs), to_gpu)
                args, kwargs = map_arg((node.args, node.kwargs), values.__getitem__)
                values[node] = value_of(node, args, kwargs)
            elif node.op == "get_attr":
                values[node] = getattr(graph, node.target)
            node.meta["val"] = values.get(node)
    graph.recompile()
    return inputs


def on_gpu(value: Any) -> Any:
    """Make a tensor like one of a CPU."""
    if not isinstance(value, Tensor):
        return value
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=GPU)


def to_gpu(argument: Any) -> Any:
    """Turn the name of a device into the GPU's."""
    return GPU if isinstance(argument, torch.device) else argument


def value_of(node: torch.fx.Node, args: Any, kwargs: Any) -> Any:
    """Compute what a call gives; of a kernel of our own, what it writes."""
    if "triton_kernel_wrapper" in str(node.target):
        return {name: kwargs["kwargs"][name] for name in kwargs["tensors_to_clone"]}
    assert callable(node.target)
    return node.target(*args, **kwargs)


def compile_kernels(code: str) -> list[str]:
    """Compile each kernel in the compiler's code to a binary; return their names."""
    names = []
    for name, source in re.findall(r"async_compile\.triton\('(\w+)', '''(.*?)'''", code, re.DOTALL):
        kernel = getattr(PyCodeCache.load(source.replace("\\\\", "\\")), name)
        kernel._precompile_config(kernel.configs[0])
        names.append(name)
    return names


if __name__ == "__main__":
    for name in sys.argv[1:] or CASES:
        main(name)
