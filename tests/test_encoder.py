"""Shapes, padding, normalisation and sizes of the audio encoder."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from pydantic import ValidationError
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from melstream.model import (
    OBJECTIVES,
    PRESETS,
    AudioEncoder,
    BandNormalizer,
    EncoderConfig,
    PretrainingModel,
    build_objective,
)
from melstream.model import conformer as conformer_module

CONFIG = EncoderConfig(
    n_mels=8, latent_dim=16, dim=16, n_layers=2, n_heads=2, ffn_dim=32, dropout=0.0,
    first_kernel_size=5, kernel_size=3,
)  # fmt: skip
TOLERANCE = 1e-5  # float32, other order of the same sums


@pytest.fixture
def encoder() -> AudioEncoder:
    torch.manual_seed(0)
    return AudioEncoder(CONFIG).eval()


@pytest.fixture
def logmel() -> torch.Tensor:
    return torch.randn(3, 42, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("preset", "n_parameters"), [("cf-s", 18_428_416), ("cf-l", 88_133_120)])
def test_pretraining_sizes_are_those_of_the_paper(preset: str, n_parameters: int) -> None:
    config = PRESETS[preset]
    with torch.device("meta"):
        model = PretrainingModel(AudioEncoder(config), build_objective("wav2vec2", {}, config))
    assert sum(parameter.numel() for parameter in model.parameters()) == n_parameters


def test_step_count_is_frames_over_stride(encoder: AudioEncoder, logmel: torch.Tensor) -> None:
    context, padding_mask = encoder(logmel, torch.tensor([42, 41, 7]))
    assert context.shape == (3, 10, 16)
    assert padding_mask is not None
    assert (~padding_mask).sum(dim=1).tolist() == [10, 10, 1]


@torch.no_grad()
def test_frames_that_do_not_fill_a_step_do_not_matter(
    encoder: AudioEncoder, logmel: torch.Tensor
) -> None:
    assert torch.equal(encoder(logmel)[0], encoder(logmel[:, :40])[0])


@torch.no_grad()
def test_padding_frames_do_not_matter_even_as_nan(
    encoder: AudioEncoder, logmel: torch.Tensor
) -> None:
    n_frames = torch.tensor([42, 30, 7])
    spoiled = logmel.clone()
    for row, n_valid in enumerate(n_frames.tolist()):
        spoiled[row, n_valid:] = torch.nan
    required, _ = encoder(logmel, n_frames)
    found, _ = encoder(spoiled, n_frames)
    assert found.isfinite().all()
    assert torch.equal(found, required)


@torch.no_grad()
def test_padding_is_zero_after_the_normalisation(
    encoder: AudioEncoder, logmel: torch.Tensor
) -> None:
    encoder.normalizer.set_statistics(torch.full((8,), -4.0), torch.full((8,), 2.0))
    latents, _ = encoder.latents(logmel, torch.tensor([42, 30, 8]))
    of_zeros = encoder.feature_encoder(torch.zeros(1, 4, 8))[0, 0]
    torch.testing.assert_close(latents[2, 2:], of_zeros.expand(8, -1))


@torch.no_grad()
def test_none_means_that_every_frame_is_valid(encoder: AudioEncoder, logmel: torch.Tensor) -> None:
    context, padding_mask = encoder(logmel, None)
    assert padding_mask is None
    full, _ = encoder(logmel, torch.full((3,), 42))
    torch.testing.assert_close(context, full, atol=TOLERANCE, rtol=TOLERANCE)


@torch.no_grad()
def test_float16_input_gives_float32_context(encoder: AudioEncoder, logmel: torch.Tensor) -> None:
    half = logmel.half()
    context, _ = encoder(half)
    assert context.dtype == torch.float32
    assert torch.equal(context, encoder(half.float())[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("n_frames", [None, torch.tensor([42, 41, 20])], ids=["full", "padded"])
@torch.no_grad()
def test_weights_of_half_precision_stay_close(
    encoder: AudioEncoder, logmel: torch.Tensor, dtype: torch.dtype, n_frames: torch.Tensor | None
) -> None:
    required, padding_mask = encoder(logmel, n_frames)
    found, _ = encoder.to(dtype)(logmel, n_frames)
    assert found.dtype == dtype
    valid = ... if padding_mask is None else ~padding_mask
    torch.testing.assert_close(found.float()[valid], required[valid], atol=0.05, rtol=0.05)


def test_bfloat16_autocast_stays_close(encoder: AudioEncoder, logmel: torch.Tensor) -> None:
    n_frames = torch.tensor([42, 30, 8])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, _ = encoder(logmel, n_frames)
    required, _ = encoder(logmel, n_frames)
    # assumption: 8 bits of mantissa, through two layers of unit-variance values
    assert (found.float() - required).abs().mean() < 0.02


def test_normalizer_starts_as_the_identity_and_takes_statistics(logmel: torch.Tensor) -> None:
    normalizer = BandNormalizer(8)
    assert torch.equal(normalizer(logmel), logmel)
    mean, std = logmel.mean(dim=(0, 1)), logmel.std(dim=(0, 1))
    normalizer.set_statistics(mean, std)
    normed = normalizer(logmel)
    torch.testing.assert_close(normed.mean(dim=(0, 1)), torch.zeros(8), atol=1e-6, rtol=0)
    torch.testing.assert_close(normed.std(dim=(0, 1)), torch.ones(8))


def test_statistics_travel_in_the_state_dict() -> None:
    trained, fresh = AudioEncoder(CONFIG), AudioEncoder(CONFIG)
    trained.normalizer.set_statistics(torch.arange(8.0), torch.arange(1.0, 9.0))
    fresh.load_state_dict(trained.state_dict())
    assert torch.equal(fresh.normalizer.mean, torch.arange(8.0))
    assert torch.equal(fresh.normalizer.std, torch.arange(1.0, 9.0))


@pytest.mark.parametrize(
    ("mean", "std", "match"),
    [
        (torch.zeros(7), torch.ones(8), r"`mean` must have shape \(8,\)"),
        (torch.zeros(8), torch.ones(1), r"`std` must have shape \(8,\)"),
        (torch.zeros(8), torch.arange(8.0), "`std` must be above 0"),
        (torch.full((8,), torch.nan), torch.ones(8), "`mean` must be finite"),
    ],
)
def test_useless_statistics_are_refused(mean: torch.Tensor, std: torch.Tensor, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        BandNormalizer(8).set_statistics(mean, std)


@pytest.mark.parametrize("shape", [(3, 42, 9), (3, 3, 8), (42, 8)])
def test_a_wrong_shape_is_refused(encoder: AudioEncoder, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"must have shape \(batch, n_frames >= 4, 8\)"):
        encoder(torch.zeros(shape))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"dim": 100, "n_heads": 8}, "`dim` must be a multiple of `n_heads`"),
        ({"kernel_size": 14}, "must be odd"),
        ({"first_kernel_size": 0}, "greater than 0"),
        ({"dropout": 1.0}, "less than 1"),
        ({"n_layer": 4}, "Extra inputs"),
    ],
)
def test_an_impossible_config_is_refused(options: dict[str, float], match: str) -> None:
    with pytest.raises(ValidationError, match=match):
        EncoderConfig.model_validate(options)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"quantizer": {"n_codes": 8}}], ids=["plain", "gumbel"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_pretraining_compiles_into_one_graph(
    name: str, options: dict[str, object], logmel: torch.Tensor
) -> None:
    """A branch on data, or a value asked for on the host, would break the graph."""
    config = CONFIG.model_copy(update={"layer_drop": 0.2})
    model = PretrainingModel(AudioEncoder(config), build_objective(name, options, config)).eval()
    batch = {
        "logmel": logmel.half(),
        "n_frames": torch.tensor([42, 41, 20]),
        "mask": (torch.arange(10) < 4).expand(3, -1),
        "distractors": torch.arange(20).remainder(4).expand(3, 4, -1).int(),
    }
    traced = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(traced(**batch)["loss"], model(**batch)["loss"])


@pytest.mark.slow
def test_a_training_step_is_one_graph_too(logmel: torch.Tensor) -> None:
    """Dropout and LayerDrop draw, and the quantizer's branches are of Python alone."""
    config = CONFIG.model_copy(update={"dropout": 0.1, "layer_drop": 0.2})
    for options in ({}, {"quantizer": {"n_groups": 2, "n_codes": 4}}):
        model = PretrainingModel(
            AudioEncoder(config), build_objective("wav2vec2", options, config)
        ).train()
        graphs = torch._dynamo.explain(model)(
            logmel.half(),
            torch.tensor([42, 41, 20]),
            (torch.arange(10) < 4).expand(3, -1),
            torch.arange(20).remainder(4).expand(3, 4, -1).int(),
        )
        assert (graphs.graph_count, graphs.graph_break_count) == (1, 0), graphs.break_reasons


@pytest.mark.skipif(not conformer_module._HAS_TRITON, reason="needs Triton and a C compiler")
@torch.no_grad()
def test_a_graph_for_a_gpu_takes_our_own_depthwise_convolution() -> None:
    operations: list[str] = []

    def backend(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> Callable[..., object]:
        calls = (node for node in graph.graph.nodes if node.op == "call_function")
        operations.extend(str(call.target) for call in calls)
        return graph.forward

    with FakeTensorMode():  # of a GPU that is not there
        with torch.device("cuda"):
            encoder, logmel = AudioEncoder(CONFIG).train(), torch.empty(3, 42, 8)
        torch.compile(encoder, backend=backend, fullgraph=True)(logmel)
    assert [operation for operation in operations if "scaled_dot_product" in operation]
    convolutions = [operation for operation in operations if "conv" in operation]
    assert convolutions == CONFIG.n_layers * ["melstream.depthwise_convolution.default"]


@torch.no_grad()
def test_a_clip_gives_the_same_context_however_much_it_is_padded(
    encoder: AudioEncoder, logmel: torch.Tensor
) -> None:
    alone, _ = encoder(logmel[:1, :24])
    for n_padding in (0, 4, 18, 400):
        padded = torch.nn.functional.pad(logmel[:1, :24], (0, 0, 0, n_padding), value=3.0)
        context, _ = encoder(padded, torch.tensor([24]))
        torch.testing.assert_close(context[:, :6], alone, atol=TOLERANCE, rtol=TOLERANCE)


@torch.no_grad()
def test_the_references_padding_does_reach_the_context(logmel: torch.Tensor) -> None:
    torch.manual_seed(0)
    reference = AudioEncoder(CONFIG.model_copy(update={"hides_padding": False})).eval()
    alone, _ = reference(logmel[:1, :24])
    padded, _ = reference(
        torch.nn.functional.pad(logmel[:1, :24], (0, 0, 0, 16)), torch.tensor([24])
    )
    assert not torch.allclose(padded[:, :6], alone, atol=1e-3)


@torch.no_grad()
def test_a_clip_shorter_than_a_step_has_one(encoder: AudioEncoder, logmel: torch.Tensor) -> None:
    context, padding_mask = encoder(logmel[:1], torch.tensor([3]))
    assert padding_mask is not None
    assert (~padding_mask).sum() == 1
    assert context[:, 0].isfinite().all()


def test_a_dropped_block_gives_the_sample_back_and_the_others_what_they_would_be() -> None:
    torch.manual_seed(0)
    encoder = AudioEncoder(CONFIG.model_copy(update={"layer_drop": 0.5, "n_layers": 1}))
    x = torch.randn(64, 40, 8)
    taken = encoder.eval()(x)[0]
    projected = encoder.context_encoder.projection(encoder.latents(x)[0])
    found = encoder.train()(x)[0]
    is_taken = (found == taken).all(dim=2).all(dim=1)
    is_dropped = (found == projected).all(dim=2).all(dim=1)
    assert (is_taken ^ is_dropped).all()
    assert 16 < int(is_dropped.sum()) < 48


def test_dropping_every_block_still_gives_each_parameter_a_gradient(logmel: torch.Tensor) -> None:
    config = CONFIG.model_copy(update={"layer_drop": 0.999999})
    encoder = AudioEncoder(config)
    encoder(logmel)[0].sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())


def test_recomputed_activations_change_neither_output_nor_gradient(logmel: torch.Tensor) -> None:
    results = []
    for is_on in (False, True):
        torch.manual_seed(0)
        update = {"dropout": 0.1, "layer_drop": 0.2, "checkpoints_activations": is_on}
        encoder = AudioEncoder(CONFIG.model_copy(update=update))
        context, _ = encoder(logmel, torch.tensor([42, 30, 8]))
        context.sum().backward()
        results.append([context.detach(), *(p.grad for p in encoder.parameters())])
    for kept, recomputed in zip(*results, strict=True):
        assert torch.equal(kept, recomputed)


def test_layer_drop_leaves_no_parameter_unused_to_ddp(tmp_path: Path) -> None:
    """With one left out, the step after it would raise."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        encoder = AudioEncoder(CONFIG.model_copy(update={"layer_drop": 0.9}))
        model = nn.parallel.DistributedDataParallel(encoder, find_unused_parameters=False)
        for _ in range(4):
            model(torch.randn(2, 40, 8))[0].sum().backward()
    finally:
        dist.destroy_process_group()
