"""`SpanBertConfig`: BERT's configuration and the fields of the pre-training heads."""

from __future__ import annotations

from transformers import BertConfig

# What a configuration says about the file it came from, not about the model.
ABOUT_THE_FILE = ("model_type", "architectures", "transformers_version", "dtype", "torch_dtype")


class SpanBertConfig(BertConfig):
    """BERT's configuration and what the pre-training heads add.

    Args:
        max_span_targets: P, positions of a span that the SBO predicts, counted from the left; at
            least 1.
        position_size: width of a position embedding of the SBO; at least 1.
        sbo_weight: weight of the SBO loss, at least 0; a model of weight 0 has no SBO head.
        loss: "code" (means of both heads, the published runs) or "paper" (sums over the MLM count).
        encoder_config: configuration of another Hugging Face encoder, a dict with `model_type`;
            then hidden_size and vocab_size are that encoder's, and BERT's other sizes mean nothing.
        last_layer_rows: compute the last layer of our encoder only where a head reads it; same loss
            and gradients.
        sbo_layer: layer whose output the SBO reads, an index into the list of layers; -1 is the
            last.
        nsp: add BERT's pooler and next sentence head; only with our encoder.
        weights_licence: of the weights this model started from, where they carry one; goes with it
            into every checkpoint and export.
        kwargs: fields of `BertConfig`.

    Raises:
        ValueError: a value outside its range.
    """

    model_type = "spanbert"

    # An __init__ of our own instead of dataclass fields: BertConfig is a dataclass only in later
    # 5.x releases.
    def __init__(
        self,
        max_span_targets: int = 15,
        position_size: int = 200,
        sbo_weight: float = 1.0,
        loss: str = "code",
        encoder_config: dict | None = None,
        last_layer_rows: bool = True,
        sbo_layer: int = -1,
        nsp: bool = False,
        weights_licence: str | None = None,
        **kwargs,
    ):
        for name, size in (
            ("max_span_targets", max_span_targets),
            ("position_size", position_size),
        ):
            if isinstance(size, bool) or not isinstance(size, int) or size < 1:
                raise ValueError(f"{name} must be an integer of at least 1; got {size!r}")
        if (
            isinstance(sbo_weight, bool)
            or not isinstance(sbo_weight, (int, float))
            or not sbo_weight >= 0
        ):
            raise ValueError(f"sbo_weight must be a number of at least 0; got {sbo_weight!r}")
        if loss not in ("code", "paper"):
            raise ValueError(f"loss must be code or paper; got {loss!r}")
        for name, value in (("last_layer_rows", last_layer_rows), ("nsp", nsp)):
            if not isinstance(value, bool):
                raise ValueError(f"{name} must be true or false; got {value!r}")
        if isinstance(sbo_layer, bool) or not isinstance(sbo_layer, int):
            raise ValueError(f"sbo_layer must be an integer; got {sbo_layer!r}")
        if encoder_config is not None and not (
            isinstance(encoder_config, dict) and encoder_config.get("model_type")
        ):
            raise ValueError(
                f"encoder_config must be a dict with model_type; got {encoder_config!r}"
            )
        super().__init__(**kwargs)
        self.max_span_targets = max_span_targets
        self.position_size = position_size
        self.sbo_weight = float(sbo_weight)
        self.loss = loss
        self.encoder_config = encoder_config
        self.last_layer_rows = last_layer_rows
        self.sbo_layer = sbo_layer
        self.nsp = nsp
        self.weights_licence = weights_licence


def check_heads(config: SpanBertConfig) -> None:
    """Whether the encoder of a configuration can serve its heads.

    Raises:
        ValueError: it cannot.
    """
    if config.encoder_config is not None:
        for name, plain in (("nsp", False), ("sbo_layer", -1)):
            if getattr(config, name) != plain:
                kind = config.encoder_config["model_type"]
                raise ValueError(f"{name} needs our BERT encoder; the encoder is {kind!r}")
        return
    if config.nsp and config.type_vocab_size < 2:
        raise ValueError(
            f"nsp needs a token type for each segment; type_vocab_size is {config.type_vocab_size}"
        )
    layers = config.num_hidden_layers
    if not -layers <= config.sbo_layer < layers:
        raise ValueError(
            f"sbo_layer must lie in [-{layers}, {layers}), an index into {layers} layers; got "
            f"{config.sbo_layer}"
        )


def early_sbo_layer(config: SpanBertConfig) -> int | None:
    """Index of the layer that the SBO reads; None where it is the last, or there is no SBO."""
    if config.sbo_weight == 0 or config.encoder_config is not None:
        return None
    layer = config.sbo_layer % config.num_hidden_layers
    return layer if layer < config.num_hidden_layers - 1 else None
