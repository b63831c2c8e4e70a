"""The tutorial's networks and update in PyTorch.

Same layers, same initializers' scale, Adam and losses as in
`trainer.models.dcgan`; both gradients come from one shared forward pass. The
paddings are the mirror image of TensorFlow's "same", which spares PyTorch a
separate padding: the arithmetic is that of mirrored images. All images are on
the device from the beginning, which is the best that a data pipeline could do.
"""

from collections.abc import Callable, Iterator

import torch
from torch import nn

from trainer import data

_LATENT_DIM = 100
_BATCH_NORM = {"eps": 1e-3, "momentum": 0.01}  # Keras' 0.99, as PyTorch counts.
_ADAM = {"lr": 1e-4, "betas": (0.9, 0.999), "eps": 1e-7, "fused": True}
_SLOPE = 0.3
_DROPOUT_RATE = 0.3


def loop(
    *,
    dataset: str,
    data_dir: str | None,
    batch_size: int,
    channels_last: bool,
    compiled: bool,
) -> Callable[[int], None]:
    """Returns what runs some steps.

    Args:
      dataset: its name.
      data_dir: where it is, if not at its default place.
      batch_size: images a step.
      channels_last: whether images are stored as [B, H, W, C].
      compiled: whether `torch.compile` compiles the losses and gradients.
    """
    device = _prepare_device()
    layout = torch.channels_last if channels_last else torch.contiguous_format
    generator = _generator().to(device, memory_format=layout)
    discriminator = _discriminator().to(device, memory_format=layout)
    networks = (generator, discriminator)
    optimizers = [torch.optim.Adam(n.parameters(), **_ADAM) for n in networks]

    def gradients(real: torch.Tensor) -> list[tuple[torch.Tensor, ...]]:
        latents = torch.randn(batch_size, _LATENT_DIM, device=device)
        fake_logits = discriminator(generator(latents))
        losses = (
            _cross_entropy(fake_logits, 1.0),
            _cross_entropy(discriminator(real), 1.0)
            + _cross_entropy(fake_logits, 0.0),
        )
        return [
            torch.autograd.grad(loss, list(n.parameters()), retain_graph=True)
            for n, loss in zip(networks, losses, strict=True)
        ]

    if compiled:
        # Or else what follows the first autograd.grad would stay as it is.
        torch._dynamo.config.trace_autograd_ops = True
        gradients = torch.compile(gradients, fullgraph=True)
    images = _images(dataset, data_dir).to(device)
    batches = _batches(images, batch_size)

    def run(num_steps: int) -> None:
        for _ in range(num_steps):
            real = next(batches).to(memory_format=layout)
            for network, optimizer, values in zip(
                networks, optimizers, gradients(real), strict=True
            ):
                for parameter, value in zip(
                    network.parameters(), values, strict=True
                ):
                    parameter.grad = value
                optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return run


def _prepare_device() -> torch.device:
    # TensorFlow, too, takes TF32 where a GPU has it, and tries convolutions.
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _images(dataset: str, data_dir: str | None) -> torch.Tensor:
    """Returns float images [N, C, H, W] in [-1, 1]."""
    samples = torch.from_numpy(data.load(dataset, data_dir=data_dir).samples)
    return samples.permute(0, 3, 1, 2).float() / 127.5 - 1.0


def _batches(images: torch.Tensor, batch_size: int) -> Iterator[torch.Tensor]:
    while True:
        order = torch.randperm(len(images), device=images.device)
        for start in range(0, len(images) - batch_size + 1, batch_size):
            yield images[order[start : start + batch_size]]


def _cross_entropy(logits: torch.Tensor, label: float) -> torch.Tensor:
    return nn.functional.binary_cross_entropy_with_logits(
        logits, torch.full_like(logits, label)
    )


def _generator() -> nn.Module:
    def upsample(channels: int, filters: int, stride: int) -> nn.Module:
        return nn.ConvTranspose2d(
            channels,
            filters,
            kernel_size=5,
            stride=stride,
            padding=2,
            output_padding=stride - 1,
            bias=False,
        )

    return _initialized(
        nn.Sequential(
            nn.Linear(_LATENT_DIM, 256 * 7 * 7, bias=False),
            nn.BatchNorm1d(256 * 7 * 7, **_BATCH_NORM),
            nn.LeakyReLU(_SLOPE),
            nn.Unflatten(1, (256, 7, 7)),
            upsample(256, 128, stride=1),  # [B, 128, 7, 7]
            nn.BatchNorm2d(128, **_BATCH_NORM),
            nn.LeakyReLU(_SLOPE),
            upsample(128, 64, stride=2),  # [B, 64, 14, 14]
            nn.BatchNorm2d(64, **_BATCH_NORM),
            nn.LeakyReLU(_SLOPE),
            upsample(64, 1, stride=2),  # [B, 1, 28, 28]
            nn.Tanh(),
        )
    )


def _discriminator() -> nn.Module:
    def downsample(channels: int, filters: int) -> list[nn.Module]:
        return [
            nn.Conv2d(channels, filters, kernel_size=5, stride=2, padding=2),
            nn.LeakyReLU(_SLOPE),
            nn.Dropout(_DROPOUT_RATE),
        ]

    return _initialized(
        nn.Sequential(
            *downsample(1, 64),  # [B, 64, 14, 14]
            *downsample(64, 128),  # [B, 128, 7, 7]
            nn.Flatten(),
            nn.Linear(128 * 7 * 7, 1),
        )
    )


def _initialized(network: nn.Module) -> nn.Module:
    """Draws the weights as Keras does."""
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return network
