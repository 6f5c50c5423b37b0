"""What a training run relies on: scores, gradients, independence, number formats, options and their errors."""

from __future__ import annotations

import copy
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from draft_reward_jpeg import (
    JpegConfig,
    JpegDistortionConfig,
    JpegSizeConfig,
    draft_register_rewards,
    entropy,
    tables,
    transform,
)
from draft_reward_jpeg.entropy import crossings, scan_order, stored_numbers
from draft_reward_jpeg.reward import (
    STUFFED_SHARE,
    JpegDistortionReward,
    JpegReward,
    JpegSizeReward,
    estimate_kilobytes,
)
from draft_reward_jpeg.transform import CHROMA_FACTORS, coefficients

from draft_core.errors import RecipeError, RewardError
from draft_core.plugin import RewardConfig

SUBSAMPLINGS = ("4:4:4", "4:2:2", "4:2:0")
REWARDS = {
    "jpeg": (JpegConfig, JpegReward),
    "jpeg-distortion": (JpegDistortionConfig, JpegDistortionReward),
    "jpeg-size": (JpegSizeConfig, JpegSizeReward),
}
DIFFERENTIABLE = ("jpeg", "jpeg-distortion")


def build(kind: str, **settings) -> torch.nn.Module:
    config, reward = REWARDS[kind]
    return reward(config(**settings))


def score(reward: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    return reward(images, ["a prompt"] * len(images))


def gradient(reward: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    images = images.detach().clone().requires_grad_()
    score(reward, images).sum().backward()
    return images.grad


# Naming


def test_specs_describe_the_rewards_that_they_build():
    specs = {spec.kind: spec for spec in draft_register_rewards()}
    assert set(specs) == set(REWARDS)
    for kind, spec in specs.items():
        config, reward = REWARDS[kind]
        assert spec.config is config
        assert spec.load() is reward
        assert spec.differentiable == (kind in DIFFERENTIABLE)
        assert not spec.needs_prompt
        assert spec.weights_license is None
        assert spec.download_mb == 0


def test_naming_does_not_import_torch():
    program = "import sys, draft_reward_jpeg; sys.exit('torch' in sys.modules or 'PIL' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.parametrize("config", [config for config, _ in REWARDS.values()])
def test_defaults(config):
    assert issubclass(config, RewardConfig)
    assert (config().quality, config().subsampling, config().direction, config().weight) == (80, "4:2:0", "compress", 1)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"quality": 0}, "greater than or equal to 1"),
        ({"quality": 101}, "less than or equal to 100"),
        ({"quality": 79.5}, "valid integer"),
        ({"subsampling": "4:1:1"}, "4:2:0"),
        ({"direction": "smaller"}, "compress"),
        ({"qualty": 80}, "unknown field .qualty.; did you mean .quality."),
        ({"kind": "jpeg2000"}, "input should be"),
    ],
)
def test_config_refuses_what_it_does_not_know(settings, complaint):
    for config, _ in REWARDS.values():
        with pytest.raises(RecipeError, match=complaint):
            config(**settings)


@pytest.mark.parametrize("kind", REWARDS)
@pytest.mark.parametrize(
    "images", [torch.zeros(3, 8, 8), torch.zeros(2, 1, 8, 8), torch.zeros(1, 3, 8, 8, dtype=torch.uint8)]
)
def test_images_that_are_no_rgb_batch_are_refused(kind, images):
    with pytest.raises(RewardError, match=rf"reward '{kind}'.*{images.dtype}.*pass RGB images \(B, 3, H, W\)"):
        build(kind)(images, [""])


# Scores


@pytest.mark.parametrize("subsampling", SUBSAMPLINGS)
@pytest.mark.parametrize("quality", [20, 95])
def test_size_is_pillows_bytes_over_a_thousand(quality, subsampling, drawn, as_tensor, pillow_file):
    images = [drawn(43, 70, seed=seed) for seed in range(3)]
    real = torch.tensor([len(pillow_file(image, quality, subsampling)) / 1000 for image in images])
    reward = build("jpeg-size", quality=quality, subsampling=subsampling)
    torch.testing.assert_close(score(reward, as_tensor(*images)), -real, rtol=0, atol=1e-6)


@pytest.mark.parametrize("subsampling", SUBSAMPLINGS)
def test_estimate_is_header_and_scan_and_a_share_of_stuffing(subsampling, drawn, as_tensor, scan_bytes):
    image = drawn(43, 70)
    expected = 625 + scan_bytes(image, 80, subsampling) * (1 + STUFFED_SHARE)
    found = score(build("jpeg", subsampling=subsampling), as_tensor(image))
    torch.testing.assert_close(found, torch.tensor([-expected / 1000]), rtol=1e-6, atol=0)


def test_distortion_is_that_of_pillows_decoder(drawn, as_tensor, pillow_file):
    """Rounded and clamped pixels differ a little from ours."""
    import io

    from PIL import Image

    image = drawn(64, 48)
    decoded = np.array(Image.open(io.BytesIO(pillow_file(image, 50))))
    real = (as_tensor(image) - as_tensor(decoded)).square().sum()[None]
    torch.testing.assert_close(score(build("jpeg-distortion", quality=50), as_tensor(image)), -real, rtol=0.02, atol=0)


@pytest.mark.parametrize("kind", REWARDS)
def test_direction_flips_the_sign_of_the_score(kind, drawn, as_tensor):
    images = as_tensor(drawn(40, 40), drawn(40, 40, seed=1))
    compress, incompress = (score(build(kind, direction=each), images) for each in ("compress", "incompress"))
    assert (compress < 0).all()
    torch.testing.assert_close(compress, -incompress, rtol=0, atol=0)


@pytest.mark.parametrize("kind", REWARDS)
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("size", [(64, 64), (33, 50), (7, 90), (1, 1)])
def test_scores_are_one_finite_float32_per_image(size, batch, kind, drawn, as_tensor):
    images = as_tensor(*(drawn(*size, seed=seed) for seed in range(batch)))
    before = images.clone()
    found = score(build(kind), images)
    assert found.shape == (batch,)
    assert found.dtype == torch.float32
    assert found.isfinite().all()
    torch.testing.assert_close(images, before, rtol=0, atol=0)


@pytest.mark.parametrize("kind", REWARDS)
def test_images_do_not_see_their_batch_mates(kind, drawn, as_tensor):
    images = as_tensor(*(drawn(33, 50, seed=seed) for seed in range(4)))
    reward = build(kind)
    alone = torch.cat([score(reward, images[at : at + 1]) for at in range(4)])
    torch.testing.assert_close(score(reward, images), alone, rtol=1e-6, atol=0)
    if kind in DIFFERENTIABLE:
        alone = torch.cat([gradient(reward, images[at : at + 1]) for at in range(4)])
        torch.testing.assert_close(gradient(reward, images), alone, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", REWARDS)
def test_images_out_of_range_are_clamped_and_finite(kind, drawn, as_tensor):
    images = as_tensor(drawn(48, 48), drawn(48, 48, seed=1)) * 2 - 0.5
    assert images.min() < -0.1
    assert images.max() > 1.1
    if kind != "jpeg-distortion":
        torch.testing.assert_close(score(build(kind), images), score(build(kind), images.clamp(0, 1)), rtol=0, atol=0)
    assert score(build(kind), images).isfinite().all()
    if kind in DIFFERENTIABLE:
        assert gradient(build(kind), images).isfinite().all()


@pytest.mark.parametrize("kind", REWARDS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_broken_image_has_no_score_and_leaves_the_others_theirs(value, kind, drawn, as_tensor):
    images = as_tensor(*(drawn(24, 24, seed=seed) for seed in range(3)))
    expected = score(build(kind), images)
    images[1, 2, 3, 4] = value
    found = score(build(kind), images)
    assert found[1].isnan()
    torch.testing.assert_close(found[[0, 2]], expected[[0, 2]], rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", REWARDS)
def test_reward_has_no_weights_and_stays_in_eval_mode(kind, drawn, as_tensor):
    parent = torch.nn.Sequential(build(kind)).train()
    assert not parent[0].training
    assert not list(parent.parameters())
    assert not parent.state_dict()
    images = as_tensor(drawn(24, 24))
    copied = copy.deepcopy(parent[0]).to(torch.bfloat16)
    torch.testing.assert_close(score(copied, images), score(parent[0], images), rtol=0, atol=0)


def test_size_has_no_gradient(drawn, as_tensor):
    assert not score(build("jpeg-size"), as_tensor(drawn(16, 16)).requires_grad_()).requires_grad


# Number formats, devices and modes


@pytest.fixture
def _fresh_constants():
    caches = (transform._constants, entropy._code)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


@pytest.mark.parametrize("kind", REWARDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_float_formats_are_read_exactly(kind, dtype, drawn, as_tensor):
    images = as_tensor(drawn(40, 24)).to(dtype)
    found = score(build(kind), images)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, score(build(kind), images.float()), rtol=0, atol=0)
    if kind in DIFFERENTIABLE:
        assert gradient(build(kind), images).dtype == dtype
        assert gradient(build(kind), images).abs().sum() > 0


@pytest.mark.parametrize("kind", DIFFERENTIABLE)
def test_autocast_changes_nothing(kind, drawn, as_tensor):
    images = as_tensor(drawn(40, 24))
    plain, slope = score(build(kind), images), gradient(build(kind), images)
    images.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = score(build(kind), images)
    found.sum().backward()
    torch.testing.assert_close(found, plain, rtol=0, atol=0)
    torch.testing.assert_close(images.grad, slope, rtol=0, atol=0)


@pytest.mark.usefixtures("_fresh_constants")
def test_first_use_in_inference_mode_does_not_spoil_training(drawn, as_tensor):
    """The constant tensors outlive a call, so they must not be born as inference tensors."""
    images = as_tensor(drawn(24, 24))
    with torch.inference_mode():
        for kind in DIFFERENTIABLE:
            score(build(kind, quality=37), images)
    for kind in DIFFERENTIABLE:
        assert gradient(build(kind, quality=37), images).abs().sum() > 0


@pytest.mark.parametrize("kind", DIFFERENTIABLE)
@pytest.mark.usefixtures("_fresh_constants")
def test_everything_happens_where_the_images_are(kind):
    """Fake tensors know their device without having it, and refuse to meet one of another device."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        images = torch.empty(2, 3, 33, 50, device="cuda", requires_grad=True)
        found = score(build(kind), images)
    assert found.device.type == "cuda"
    assert found.requires_grad


@pytest.mark.parametrize("kind", DIFFERENTIABLE)
def test_repeated_calls_agree(kind, drawn, as_tensor):
    images = as_tensor(drawn(40, 24), drawn(40, 24, seed=1))
    reward = build(kind)
    torch.testing.assert_close(score(reward, images), score(reward, images), rtol=0, atol=0)
    torch.testing.assert_close(gradient(reward, images), gradient(reward, images), rtol=0, atol=0)


# Gradients


def linear_coefficients(image: np.ndarray, subsampling: str) -> list[np.ndarray]:
    """Luma and chroma coefficients (C, blocks, 64) of an image (3, H, W), without rounding; scipy's DCT."""
    from scipy.fft import dctn

    across, down = CHROMA_FACTORS[subsampling]
    planes = np.einsum("oc,chw->ohw", np.array(transform._YCBCR), image * 255)
    height, width = image.shape[1:]
    rows, columns = -(-height // down) * down, -(-width // (8 * across)) * 8 * across
    chroma = np.pad(planes[1:], ((0, 0), (0, rows - height), (0, columns - width)), mode="edge")
    chroma = chroma.reshape(2, rows // down, down, columns // across, across).mean((2, 4))
    found = []
    for part in (planes[:1], chroma):
        part = np.pad(part, ((0, 0), (0, -part.shape[1] % 8), (0, -part.shape[2] % 8)), mode="edge")
        count, rows, columns = part.shape
        blocks = part.reshape(count, rows // 8, 8, columns // 8, 8).swapaxes(2, 3)
        spectrum = dctn(blocks, axes=(-2, -1), norm="ortho").reshape(count, -1, 64)
        found.append(spectrum[..., tables.ZIGZAG])
    return found


@pytest.mark.parametrize("direction", ["compress", "incompress"])
@pytest.mark.parametrize("subsampling", SUBSAMPLINGS)
@pytest.mark.parametrize("size", [(32, 48), (27, 37)])
def test_gradient_is_that_of_the_expected_bits(size, subsampling, direction, drawn, as_tensor):
    """Against central differences in float64.

    What is differenced: the sum over all stored numbers of gain * atan((|number| - threshold) / 4) / pi, where
    gains and thresholds stay those of the unperturbed image, and the numbers move from the encoder's own by
    what the encoder without rounding adds: colour matrix, edge padding, chroma mean and scipy's DCT, in numpy.
    """
    pytest.importorskip("scipy.fft", reason="scipy is missing: its DCT is the reference")
    quality, (height, width) = 60, size
    image = as_tensor(drawn(height, width)).double()
    frozen = []
    for component, part in enumerate(coefficients(image, quality, subsampling)):
        scan = scan_order(component, height, width, CHROMA_FACTORS[subsampling], image.device)
        found = crossings(stored_numbers(part.levels, scan), part.steps, component)
        found = found.only_savings() if direction == "compress" else found.only_costs()
        frozen.append((scan, part.values[0].numpy(), *(each[0].numpy() for each in found)))

    def expected_kilobytes(offset: np.ndarray) -> float:
        bits = 0.0
        moves = linear_coefficients(offset, subsampling)
        for (scan, values, inner, outer, inner_gain, outer_gain), move in zip(frozen, moves, strict=True):
            numbers = (values + move)[:, scan.order.numpy()]
            numbers[:, 1:, 0] = np.diff(numbers[..., 0])
            rise = inner_gain * np.arctan((np.abs(numbers) - inner) / 4)
            rise += outer_gain * np.arctan((np.abs(numbers) - outer) / 4)
            bits += rise.sum() / math.pi
        return bits / 8 * (1 + STUFFED_SHARE) / 1000

    image.requires_grad_()
    estimate_kilobytes(image, quality, subsampling, direction).sum().backward()
    rng = np.random.default_rng(0)
    corner = np.zeros((3, height, width))
    corner[1, -1, -1] = 1
    for move in (rng.normal(size=(3, height, width)), rng.normal(size=(3, height, width)), corner):
        step = 1e-6
        difference = (expected_kilobytes(step * move) - expected_kilobytes(-step * move)) / (2 * step)
        slope = (image.grad[0].numpy() * move).sum()
        assert slope == pytest.approx(difference, rel=1e-4, abs=1e-9)


def test_distortions_gradient_is_that_of_the_cubic_rounding(drawn, as_tensor):
    """At 4:4:4 the distortion is sum (c - step * round(c / step))^2 up to the change of basis, so that its gradient
    can be had from a float64 round trip in which round(u) is replaced by round(u) + (u - round(u))^3."""
    pytest.importorskip("scipy.fft", reason="scipy is missing: its DCT is the reference")
    image = as_tensor(drawn(16, 24)).double()
    rounded = [part.levels for part in coefficients(image, 50, "4:4:4")]
    forward = [part.values / part.steps - part.levels for part in coefficients(image, 50, "4:4:4")]
    move = torch.randn(image.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    moves = [torch.from_numpy(each)[None] for each in linear_coefficients(move[0].numpy(), "4:4:4")]
    steps = [part.steps for part in coefficients(image, 50, "4:4:4")]

    def distortion(t: float) -> torch.Tensor:
        stored = [
            (level + (rest + t * m / step) ** 3 - rest**3) * step
            for level, rest, m, step in zip(rounded, forward, moves, steps, strict=True)
        ]
        decoded = transform.decode(transform.Components(*stored), 50, "4:4:4", 16, 24)
        return (image + t * move - decoded).square().sum()

    difference = (distortion(1e-5) - distortion(-1e-5)) / 2e-5
    slope = -(gradient(build("jpeg-distortion", quality=50, subsampling="4:4:4"), image) * move).sum()
    torch.testing.assert_close(slope, difference, rtol=1e-3, atol=0)


@pytest.mark.parametrize("kind", DIFFERENTIABLE)
@pytest.mark.parametrize("direction", ["compress", "incompress"])
def test_every_image_has_a_gradient(kind, direction, drawn, as_tensor):
    images = [drawn(33, 50, seed=seed) for seed in range(4)]
    images[2] = np.full_like(images[2], 60)  # flat: only the level of its first block is left
    slopes = gradient(build(kind, direction=direction), as_tensor(*images))
    assert slopes.isfinite().all()
    assert (slopes.flatten(1).norm(dim=1) > 1e-7).all()
    assert (slopes[[0, 1, 3]].flatten(1).norm(dim=1) > 1e-3).all()


@pytest.mark.parametrize("kind", DIFFERENTIABLE)
@pytest.mark.parametrize("level", [0.0, 1.0])
def test_dark_and_bright_pixels_keep_their_gradient(kind, level, drawn, as_tensor):
    """Also where clamping to 0..255 is at work, and beyond it."""
    image = as_tensor(drawn(32, 32)) * 0.3 + (0.6 if level else 0.1)
    for value in (level, 1.2 * level - 0.1):
        image[..., ::3] = value
        slope = gradient(build(kind), image)[..., ::3]
        assert slope.isfinite().all()
        assert (slope != 0).float().mean() > 0.95


def test_a_flat_image_of_middle_grey_has_nothing_left_to_save(as_tensor):
    """The only images without a gradient to compress: their files cannot become smaller."""
    image = as_tensor(np.full((32, 32, 3), 128, np.uint8))
    assert not gradient(build("jpeg"), image).any()
    assert -score(build("jpeg"), image).item() == pytest.approx((625 + math.ceil((16 * 6 + 8 * 4) / 8) * 1.003) / 1000)


def test_gradient_reaches_large_coefficients(as_tensor):
    """A contrast of many quantisation steps still has a slope towards less contrast."""
    image = np.full((8, 8, 3), 128, np.uint8)
    image[:, :4] += 85
    image = as_tensor(image)
    reward = build("jpeg", subsampling="4:4:4")
    level = coefficients(image, 80, "4:4:4")[0].levels[0, 0, 0, 1].abs().item()
    assert level not in (1, 2, 4, 8, 16, 32, 64)  # no neighbouring level has another size
    less = torch.where(image > 0.6, -1.0, 1.0)
    assert (gradient(reward, image) * less).sum() > 0
