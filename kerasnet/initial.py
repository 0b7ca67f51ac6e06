"""First weights that a recipe asks for in place of its seed's own.

Which variables are set follows from a plan's wiring, before TensorFlow loads; what they are set to
is computed in NumPy, so that it does not depend on layers, backend or precision.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from kerasnet import schema
from kerasnet.document import DocumentError, Problem
from kerasnet.plan import Layer, Plan, format_shape

if TYPE_CHECKING:
    import keras
    import numpy as np
    from numpy.typing import NDArray

    from kerasnet.data.splits import Bytes, Split

    Floats = NDArray[np.floating[Any]]

# Training images whose patches are looked at; fewer where their patches would be more.
IMAGES = 5_000
MAX_PATCHES = 5_000_000
# Values of a patch; decomposing a covariance of more of them would take minutes.
MAX_VALUES = 2_048
# Smaller numbers are zero in float32.
_TINY = 2.0**-126
_NO_GRADIENT_AT_ZERO = {"relu", "relu6"}
# float64 values of the patches that are in memory at a time: 64 MB.
_CHUNK = 2**23


def _refused(option: str, text: str) -> DocumentError:
    return DocumentError([Problem(("recipe", "initial", option), text)])


# ---------------------------------------------------------------------------- which variables


def touched(plan: Plan, spec: schema.Initial) -> dict[str, str]:
    """Return by which option each variable is set, by `layer/variable`.

    Args:
        plan: the model's.
        spec: a recipe's `initial`.

    Raises:
        DocumentError: the model has nothing that an option could set, or could not learn from it.
    """
    found: dict[str, str] = {}
    if spec.branch_gamma is not None:
        found |= dict.fromkeys(_branch_gammas(plan, spec.branch_gamma), "branch_gamma")
    if spec.shortcut is not None:
        found |= dict.fromkeys(_shortcut_kernels(plan), "shortcut")
    if spec.shortcut_beta is not None:
        found |= dict.fromkeys(_shortcut_betas(plan), "shortcut_beta")
    if spec.convs is not None:
        found |= dict.fromkeys(_conv_kernels(plan), "convs")
    if spec.stem is not None:
        found[f"{_stem(plan)[0].name}/kernel"] = "stem"
    return found


def _way_back(plan: Plan, merge: Layer, last: str) -> Iterator[Layer]:
    """Yield the layers of a block on one of the two ways into its sum, the last one first."""
    layer = plan.layer(last)
    while (layer.stage, layer.block) == (merge.stage, merge.block):
        yield layer
        layer = plan.layer(layer.inputs[0])


def _merges(plan: Plan) -> list[Layer]:
    return [layer for layer in plan.layers if layer.type == "Add"]


def _branch_gammas(plan: Plan, gamma: float) -> Iterator[str]:
    """Yield the gamma of the last norm of each residual branch."""
    merges = _merges(plan)
    if not merges:
        raise _refused("branch_gamma", f"{plan.name} has no residual branch whose gamma it could "
                                       "be; leave it out")  # fmt: skip
    for merge in merges:
        where, after = f"{plan.name}: the branch of {merge.stage}_{merge.block}", list[Layer]()
        for layer in _way_back(plan, merge, merge.inputs[0]):
            if layer.type == "BatchNormalization":
                break
            after.append(layer)
        else:
            raise _refused("branch_gamma", f"{where} has no batch norm; leave it out")
        if any(x.name == layer.name for x in _way_back(plan, merge, merge.inputs[1])):
            text = f"{where} has no batch norm of its own: {layer.name} is the shortcut's too"
            raise _refused("branch_gamma", f"{text}; leave it out")
        if not layer.options["scale"]:
            text = f"{where} ends with {layer.name}, which has no gamma (`scale: false`)"
            raise _refused("branch_gamma", f"{text}; leave it out")
        dead = [x for x in after if x.options.get("activation") in _NO_GRADIENT_AT_ZERO]
        if dead and gamma < _TINY:
            raise _refused(
                "branch_gamma",
                f"received {gamma:g}, but in {where}, {layer.name} is followed by {dead[-1].name}, "
                f"a {dead[-1].options['activation']}, whose gradient at 0 is 0: the branch "
                "would be dead for ever. Take a small positive number such as 0.1",
            )
        yield f"{layer.name}/gamma"


def _shortcut_kernels(plan: Plan) -> list[str]:
    """Return the kernels of projections of as many channels to as many."""
    found = []
    for merge in _merges(plan):
        for layer in _way_back(plan, merge, merge.inputs[1]):
            if layer.type == "Conv2D":
                before = plan.layer(layer.inputs[0])
                if before.output_shape[-1] == layer.output_shape[-1]:
                    found.append(f"{layer.name}/kernel")
                break
    if not found:
        raise _refused("shortcut", f"{plan.name} has no projection on a shortcut of as many "
                                   "channels to as many; leave it out")  # fmt: skip
    return found


def _shortcut_betas(plan: Plan) -> list[str]:
    """Return the beta of the last norm behind each projection on a shortcut."""
    found = []
    for merge in _merges(plan):
        last = None
        for layer in _way_back(plan, merge, merge.inputs[1]):
            if layer.type == "BatchNormalization":
                last = last or layer
            elif layer.type == "Conv2D":
                if last is not None and last.options["center"]:
                    found.append(f"{last.name}/beta")
                # A norm before it, of a pre-activation, is the branch's too.
                break
    if not found:
        raise _refused("shortcut_beta", f"{plan.name} has no batch norm with a beta behind a "
                                        "projection on a shortcut; leave it out")  # fmt: skip
    return found


def _conv_kernels(plan: Plan) -> list[str]:
    """Return the kernels that have a middle and more around it, but the first convolution's."""
    convs = [layer for layer in plan.layers if layer.type == "Conv2D"]
    found = []
    for layer in convs[1:]:
        size = layer.kernel or 1
        if size > 1 and size % 2 and layer.options["groups"] == 1:
            found.append(f"{layer.name}/kernel")
    if not found:
        raise _refused("convs", f"{plan.name} has no convolution of an odd kernel above 1×1 and of "
                                "one group after its first; leave it out")  # fmt: skip
    return found


def _stem(plan: Plan) -> tuple[Layer, int]:
    """Return the first convolution and the first pixel where a window of its lies in the image."""
    conv = next(layer for layer in plan.layers if layer.type == "Conv2D")
    size, stride, padding = conv.kernel or 1, conv.stride or 1, conv.padding or 0
    before = plan.layer(conv.inputs[0])
    while before.type == "ZeroPadding2D":
        padding += before.options["padding"][0][0]
        before = plan.layer(before.inputs[0])
    where = f"{plan.name}: {conv.name}, the first convolution,"
    if before.type != "InputLayer":
        raise _refused("stem", f"{where} takes the output of {before.name}, not images whose "
                               "patches it could whiten; leave it out")  # fmt: skip
    if conv.options["groups"] != 1:
        raise _refused("stem", f"{where} has {conv.options['groups']} groups, of which none sees "
                               "a whole patch; leave it out")  # fmt: skip
    height, width, channels = before.output_shape
    if size * size * channels > MAX_VALUES:
        raise _refused("stem", f"{where} sees patches of {size}×{size}×{channels} values; the "
                               f"limit for whitening is {MAX_VALUES:,}; leave it out")  # fmt: skip
    offset = -padding % stride
    if min(height, width) < offset + size:
        raise _refused("stem", f"{where} has no {size}×{size} window that lies within an image of "
                               f"{format_shape(before.output_shape)}; leave it out")  # fmt: skip
    return conv, offset


# ---------------------------------------------------------------------------- their values


def apply(
    model: keras.Model,
    plan: Plan,
    spec: schema.Initial,
    train: Split,
    inference: schema.Inference,
    seed: int,
) -> None:
    """Set a model's first weights as a recipe asks for; all others stay as they are.

    Args:
        model: what `build` made of the plan, by any layers, backend and policy.
        plan: the plan.
        spec: a recipe's `initial`.
        train: the training images, of which whitening looks at `IMAGES` at most.
        inference: by which they are normalised.
        seed: decides which of them it looks at.

    Raises:
        DocumentError: as `touched`.
    """
    import numpy as np

    from kerasnet.convert import weight_variables

    found = touched(plan, spec)
    variables = weight_variables(model) if found else {}
    for key, option in found.items():
        variable = variables[key]
        if option in ("branch_gamma", "shortcut_beta"):
            variable.assign(np.full(variable.shape, getattr(spec, option), "float32"))
            continue
        kernel = np.array(variable.numpy(), "float32")
        if option == "stem":
            covariance = _covariance_of(plan, train, inference, seed)
            variable.assign(whitened(kernel, covariance, spec.whitening_epsilon))
        else:
            variable.assign(dirac(kernel))


def dirac(kernel: Floats) -> Floats:
    """Return a kernel whose i-th filter hands on channel i, while there are channels.

    The filters after these stay as they are (Zagoruyko & Komodakis 2017, section 3; Jordan 2024,
    section 3.3).

    Args:
        kernel: (size, size, channels, filters); size odd.
    """
    made, (size, _, channels, filters) = kernel.copy(), kernel.shape
    for i in range(min(channels, filters)):
        made[..., i] = 0
        made[size // 2, size // 2, i, i] = 1
    return made


def whitened(kernel: Floats, covariance: Floats, epsilon: float) -> Floats:
    """Return a kernel whose outputs are decorrelated, of variance λ / (λ + epsilon).

    Its first filters are the covariance's eigenvectors, each over √(λ + epsilon), by falling
    eigenvalue λ, and then the same with the other sign, for what a ReLU would cut off (Page 2018;
    Jordan 2024, section 3.2). Where there are too few filters, the smallest eigenvalues have none;
    where there are more, the last ones stay as they are.

    Args:
        kernel: (size, size, channels, filters).
        covariance: of patches, float64 (n, n) with n = size·size·channels, in the kernel's order.
        epsilon: what keeps directions in which patches hardly vary from being blown up.
    """
    import numpy as np

    filters = kernel.shape[-1]
    values, vectors = np.linalg.eigh(covariance)
    pairs = min(len(values), (filters + 1) // 2)
    values, vectors = values[::-1][:pairs], vectors[:, ::-1][:, :pairs]
    # An eigenvector is as good with either sign; one of them has to be chosen.
    largest = np.abs(vectors).argmax(axis=0)
    vectors = vectors * np.sign(vectors[largest, np.arange(pairs)])
    scaled = vectors / np.sqrt(np.maximum(values, 0) + epsilon)
    both = np.concatenate([scaled, -scaled], axis=1)[:, :filters]
    made = kernel.copy()
    made[..., : both.shape[1]] = both.reshape(*kernel.shape[:3], -1)
    return made


def _covariance_of(plan: Plan, train: Split, inference: schema.Inference, seed: int) -> Floats:
    """Return the covariance of the patches that the first convolution sees in training images."""
    from kerasnet import data

    conv, offset = _stem(plan)
    size, stride = conv.kernel or 1, conv.stride or 1
    height, width = train.images.shape[1:3]
    places = ((height - offset - size) // stride + 1) * ((width - offset - size) // stride + 1)
    chosen = data.limit(train, max(1, min(IMAGES, MAX_PATCHES // places)), seed)
    return patch_covariance(chosen.images, inference, size, stride, offset)


def patch_covariance(
    images: Bytes, inference: schema.Inference, size: int, stride: int = 1, offset: int = 0
) -> Floats:
    """Return the covariance of normalised images' patches.

    Args:
        images: uint8 (n, height, width, channels).
        inference: mean and std to normalise by.
        size: side of a patch.
        stride: pixels from one patch to the next.
        offset: row and column of the first patch.

    Returns:
        float64 (size·size·channels, size·size·channels), values by row, column and channel.
    """
    import numpy as np

    width = size * size * images.shape[-1]
    mean, std = np.array(inference.mean), np.array(inference.std)
    number, total, products = 0, np.zeros(width), np.zeros((width, width))
    step = max(1, _CHUNK // (width * images.shape[1] * images.shape[2] // stride**2 + 1))
    for start in range(0, len(images), step):
        pixels = (images[start : start + step] / 255 - mean) / std
        windows = np.lib.stride_tricks.sliding_window_view(pixels, (size, size), (1, 2))
        windows = windows[:, offset::stride, offset::stride].transpose(0, 1, 2, 4, 5, 3)
        patches = windows.reshape(-1, width)
        number += len(patches)
        total += patches.sum(axis=0)
        products += patches.T @ patches
    average = total / number
    covariance: Floats = products / number - np.outer(average, average)
    return covariance
