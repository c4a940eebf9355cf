"""What is installed, where it would break what needs it: seen in milliseconds, told in a line."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from versatune_ray.errors import UserError

# vLLM brings them, and text needs none
_BESIDE = ("torchvision", "torchaudio", "torchcodec")


def check_installation() -> None:
    """Whether torchvision is of the same build as a torch without CUDA: PyPI's own is not, and with
    it transformers cannot be imported.

    Raises:
        UserError: it is not.
    """
    try:
        torch, vision = version("torch"), version("torchvision")
    except PackageNotFoundError:
        return
    if torch.endswith("+cpu") and not vision.endswith("+cpu"):
        raise UserError(
            f"torchvision {vision} is built for another torch than {torch}, and would break "
            f"transformers; text needs none: pip uninstall --yes {' '.join(_BESIDE)}"
        )
