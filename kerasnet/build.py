"""From a plan to a functional `keras.Model`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from kerasnet.errors import BadInputError
from kerasnet.plan import Layer, Plan, plan_block
from kerasnet.precision import layer_policy

if TYPE_CHECKING:
    import keras

    from kerasnet.registry import Registry

LayerSet = Literal["stock", "fast"]


def build(
    plan: Plan,
    *,
    layers: LayerSet = "stock",
    policy: str = "float32",
    seed: int | None = None,
) -> keras.Model:
    """Build a model that takes normalised images and returns logits.

    Args:
        plan: what to build.
        layers: `stock` uses Keras's own layers only, so that its `.keras` file loads without
            kerasnet; `fast` computes the same with the same variables and names.
        policy: dtype policy of every layer but the float32 head; `float64`, of stock layers only,
            holds for input and head too.
        seed: makes the initial weights and dropout reproducible. Each variable's values depend on
            the seed and the variable's name only, so that changing one layer leaves the others'.

    Returns:
        A functional model: float32 (batch, height, width, channels) → float32 (batch, classes).

    Raises:
        BadInputError: fast layers were asked for in float64, which their operations lack.
    """
    import keras

    if policy == "float64" and layers == "fast":
        raise BadInputError("fast layers have no float64; use layers='stock'")
    dtype = "float64" if policy == "float64" else "float32"
    tensors = {"input": keras.Input(plan.input_shape, name="input", dtype=dtype)}
    apply(plan.layers[1:], tensors, layers=layers, policy=policy, seed=seed)
    model = keras.Model(tensors["input"], tensors[plan.output.name], name=plan.name)
    model.plan = plan  # by which weights of other programs find their places
    return model


def freeze(model: keras.Model, plan: Plan, parts: Iterable[str]) -> None:
    """Keep parts of a model from being trained: neither variables nor moving statistics change.

    Their batch normalisation uses the moving statistics in training too; dropout still drops.

    Args:
        model: what `build` made of the plan.
        plan: the plan.
        parts: names of `plan.parts`.

    Raises:
        BadInputError: there is no such part, or nothing would be trained.
    """
    frozen = set(parts)
    plan.trained_params(frozen)
    for layer in plan.layers:
        if layer.stage in frozen:
            model.get_layer(layer.name).trainable = False


def feature_model(
    model: keras.Model, plan: Plan, features: bool | Iterable[str] = True
) -> keras.Model:
    """Return a model that shares another's layers and gives what lies inside it.

    Args:
        model: what `build` made of the plan.
        plan: the plan.
        features: True for every stage's output, by `stage1`, `stage2`, …; or names of layers.

    Returns:
        A functional model that returns a dict of tensors by name.

    Raises:
        BadInputError: `features` names a layer there is not.
    """
    import keras

    wanted = _feature_names(plan, features)
    outputs = {key: model.get_layer(name).output for key, name in wanted.items()}
    return keras.Model(model.inputs[0], outputs, name=f"{plan.name}_features")


def _feature_names(plan: Plan, features: bool | Iterable[str]) -> dict[str, str]:
    stages = {f"stage{i}": name for i, name in enumerate(plan.features, 1)}
    if features is True:
        return stages
    assert not isinstance(features, bool)
    known = {**{layer.name: layer.name for layer in plan.layers}, **stages}
    wanted = [features] if isinstance(features, str) else list(features)
    unknown = [name for name in wanted if name not in known]
    if unknown or not wanted:
        raise BadInputError(
            f"{plan.name} has no layer {unknown}; `features` takes True or names out of "
            f"{', '.join(stages)} and `kerasnet summary {plan.name}`"
        )
    return {name: known[name] for name in wanted}


def apply(
    plan_layers: Iterable[Layer],
    tensors: dict[str, Any],
    *,
    layers: LayerSet = "stock",
    policy: str = "float32",
    seed: int | None = None,
) -> None:
    """Apply layers to `tensors`, which maps layer names to Keras tensors and is added to."""
    import keras

    plan_layers = list(plan_layers)
    makers = _makers(layers, plan_layers)
    for layer in plan_layers:
        dtype = keras.dtype_policies.get(layer_policy(layer, policy))
        inputs = [tensors[name] for name in layer.inputs]
        if layer.needs_pad_layer:
            pad = keras.layers.ZeroPadding2D(
                layer.padding, data_format="channels_last", name=f"{layer.name}_pad", dtype=dtype
            )
            inputs = [pad(inputs[0])]
        make: Callable[..., Any] = makers.get(layer.type, _plain_layer)
        made = make(layer, dtype=dtype, seed=seed)
        tensors[layer.name] = made(inputs if layer.type == "Add" else inputs[0])


def variable_seed(seed: int | None, name: str) -> int | None:
    """Return a 31-bit seed for one variable, from the run's seed and the variable's name."""
    if seed is None:
        return None
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:4], "little") >> 1


def initializer(spec: Any, seed: int | None) -> Any:
    """Return the Keras initialiser that a schema initialiser, as plain values, stands for."""
    from keras import initializers

    if isinstance(spec, str):
        made = initializers.get(spec)
        return type(made)(seed=seed) if hasattr(made, "seed") else made
    ((kind, value),) = spec.items()
    makers: dict[str, Callable[[], Any]] = {
        "variance_scaling": lambda: initializers.VarianceScaling(**value, seed=seed),
        "normal": lambda: initializers.RandomNormal(0.0, value["stddev"], seed=seed),
        "uniform": lambda: initializers.RandomUniform(-value["limit"], value["limit"], seed=seed),
        "constant": lambda: initializers.Constant(value),
    }
    return makers[kind]()


def options(layer: Layer, seed: int | None) -> dict[str, Any]:
    """Return a layer's constructor arguments, initialisers made and seeded."""
    return {
        key: initializer(value, variable_seed(seed, f"{layer.name}/{key}"))
        if key.endswith("_initializer")
        else value
        for key, value in layer.options.items()
    }


def _plain_layer(layer: Layer, *, dtype: Any, seed: int | None) -> Any:
    """Make a stock layer whose arguments are the plan's options."""
    import keras

    arguments = options(layer, seed)
    if layer.type == "Dropout":
        arguments["seed"] = variable_seed(seed, f"{layer.name}/seed")
    return getattr(keras.layers, layer.type)(**arguments, name=layer.name, dtype=dtype)


def conv(layer: Layer, *, dtype: Any, seed: int | None, cls: Any = None) -> Any:
    """Make a convolution of a plan; `cls` may be a subclass of `keras.layers.Conv2D`."""
    import keras

    return (cls or keras.layers.Conv2D)(
        kernel_size=layer.kernel,
        strides=layer.stride,
        padding="same" if layer.padding and not layer.needs_pad_layer else "valid",
        data_format="channels_last",
        **options(layer, seed),
        name=layer.name,
        dtype=dtype,
    )


def _pool(layer: Layer, *, dtype: Any, seed: int | None) -> Any:
    import keras

    cls = getattr(keras.layers, layer.type)
    return cls(
        layer.kernel, layer.stride, "valid", data_format="channels_last", name=layer.name,
        dtype=dtype,
    )  # fmt: skip


def _global_pool(layer: Layer, *, dtype: Any, seed: int | None) -> Any:
    import keras

    cls = getattr(keras.layers, layer.type)
    return cls(data_format="channels_last", name=layer.name, dtype=dtype)


def _makers(layers: LayerSet, plan_layers: list[Layer]) -> Mapping[str, Callable[..., Any]]:
    stock = {
        "Conv2D": conv,
        "MaxPooling2D": _pool,
        "AveragePooling2D": _pool,
        "GlobalAveragePooling2D": _global_pool,
        "GlobalMaxPooling2D": _global_pool,
    }
    if layers == "stock":
        return stock
    from kerasnet.layers import fast_makers

    return {**stock, **fast_makers(plan_layers)}


# ---------------------------------------------------------------------------- for users' code


def build_block(
    block: str,
    x: Any,
    *,
    width: int,
    stride: int = 1,
    name: str | None = None,
    registry: Registry | None = None,
    policy: str | None = None,
    seed: int | None = None,
    **defaults: Any,
) -> Any:
    """Apply a block of the registry to a Keras tensor.

    Args:
        block: its name, such as `bottleneck_sum`.
        x: Keras tensor (batch, height, width, channels).
        width: what `width` means in the block's filters.
        stride: of the convolution that takes it, and of the shortcut.
        name: prefix of the layers' names; the block's name if not given. A model that has the
            block twice needs two names.
        registry: where the block is; the built-in one if not given.
        policy: dtype policy of the layers; Keras's global one if not given.
        seed: of the initial weights.
        **defaults: fields of `schema.Defaults`: `norm`, `act`, `bias`, `kernel_init`, `bias_init`.

    Returns:
        Keras tensor (batch, height, width, channels).

    Raises:
        BadInputError: there is no such block, or `x` does not fit it.
    """
    import keras

    from kerasnet import schema
    from kerasnet.registry import load_registry

    registry = registry or load_registry()
    if len(x.shape) != 4 or None in x.shape[1:]:
        raise BadInputError(
            f"build_block needs a tensor of shape (batch, height, width, channels) with only the "
            f"batch unknown. Received: {tuple(x.shape)}"
        )
    plan = plan_block(
        registry.blocks[block], x.shape[1:], width=width, stride=stride, name=name or block,
        defaults=schema.Defaults(**defaults), norms=registry.norms,
    )  # fmt: skip
    tensors = {"input": x}
    chosen = policy or keras.config.dtype_policy().name
    apply(plan.layers[1:], tensors, policy=chosen, seed=seed)
    return tensors[plan.output.name]
