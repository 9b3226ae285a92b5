"""Models with the shape of transformers': change the import, or ``accelerate`` a model that is loaded already.

    from distilfast.integrations.transformers import AutoModelForSequenceClassification
    model = AutoModelForSequenceClassification.from_pretrained("distilbert-base-uncased-finetuned-sst-2-english")
    transformers.pipeline("text-classification", model=model, tokenizer=tokenizer)

    fast = accelerate(model)

Hidden states and logits are those of the reference at every token that the attention mask keeps, and zeros elsewhere.
"""

from __future__ import annotations

from typing import Any, ClassVar, TypeVar

import torch
import transformers
from transformers import modeling_outputs

from distilfast.arguments import one_of
from distilfast.engine import Engine
from distilfast.errors import InputError
from distilfast.outputs import Outputs
from distilfast.types import BackendName, Precision, Task

Self = TypeVar("Self", bound="Model")

_NO_LOSS = ("labels", "start_positions", "end_positions", "next_sentence_label")


class Model(torch.nn.Module):  # type: ignore[misc] # torch is not typed here
    """An engine behind ``forward`` of transformers; ``config`` is the reference's own config object.

    A module without parameters, on the CPU and in evaluation mode for good: precision, backend and threads are chosen
    when it is loaded.
    """

    engine_task: ClassVar[Task]
    main_input_name: ClassVar[str] = "input_ids"
    input_modalities: ClassVar[str] = "text"

    def __init__(self, engine: Engine, config: Any) -> None:
        """``config``: a ``PreTrainedConfig`` of the checkpoint that ``engine`` has loaded."""
        super().__init__()
        if engine.task != self.engine_task:
            raise InputError(f"The engine was loaded for {engine.task}, not for {self.engine_task}.")
        self.engine = engine
        self.config = config
        self.name_or_path = str(engine.directory or config.name_or_path)
        self.training = False

    @classmethod
    def from_pretrained(cls: type[Self], name: Any, **options: Any) -> Self:
        """Load a local directory or a hub id.

        ``options``: ``precision``, ``backend``, ``threads`` and ``revision`` as for ``Engine``; of the reference's,
        ``dtype`` may be float32 or "auto" and ``device_map`` "cpu" or "auto". Raises InputError for any other, and the
        errors of ``Engine.from_pretrained``.
        """
        return cls(*_load(cls.engine_task, name, options))

    @property
    def base_model_prefix(self) -> str:
        """As the reference names the encoder: "distilbert" or "bert"."""
        return str(self.config.model_type)

    @property
    def device(self) -> torch.device:
        """Where results are; a backend on a GPU copies them from there."""
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        """Of the results."""
        return torch.float32

    def can_generate(self) -> bool:
        """An encoder does not."""
        return False

    def forward(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        token_type_ids: Any = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **others: Any,
    ) -> Any:
        """The reference's output for ids [B, L] (multiple choice: [B, choices, L]); a tuple without ``return_dict``.

        Raises InputError, also for an argument of the reference that is not computed here.
        """
        for name, value in others.items():
            if value is not None:
                why = "no loss is computed" if name in _NO_LOSS else "only input_ids, masks and token types are read"
                raise InputError(f"{name} is given; {why}.")
        if input_ids is None:
            raise InputError("input_ids is missing.")
        config = self.config
        outputs = self.engine(
            input_ids if isinstance(input_ids, torch.Tensor) else torch.as_tensor(input_ids),
            attention_mask,
            token_type_ids,
            output_hidden_states=config.output_hidden_states if output_hidden_states is None else output_hidden_states,
            output_attentions=config.output_attentions if output_attentions is None else output_attentions,
        )
        found = self._output(outputs)
        as_dict = config.return_dict if return_dict is None else return_dict
        return found if as_dict else found.to_tuple()

    def _output(self, outputs: Outputs) -> Any:
        raise NotImplementedError

    def train(self: Self, mode: bool = True) -> Self:
        """Evaluation mode only; raises InputError for another."""
        if mode:
            raise InputError("The model computes answers only; train with transformers and load the result.")
        return self

    def to(self: Self, *to: Any, **named: Any) -> Self:
        """The CPU and float32 are where it is already; raises InputError for another device or dtype."""
        for target in (*to, *named.values()):
            if isinstance(target, torch.dtype):
                if target != torch.float32:
                    raise InputError(f"The model cannot be moved to {target}; load it with another precision.")
            elif not isinstance(target, (bool, torch.memory_format)) and torch.device(target).type != "cpu":
                raise InputError(f"The model cannot be moved to {target}; load it with backend='cuda' or 'triton'.")
        return self

    def cuda(self: Self, device: Any = None) -> Self:
        """Raises InputError."""
        return self.to("cuda")

    def half(self: Self) -> Self:
        """Raises InputError."""
        return self.to(torch.float16)

    def bfloat16(self: Self) -> Self:
        """Raises InputError."""
        return self.to(torch.bfloat16)

    def double(self: Self) -> Self:
        """Raises InputError."""
        return self.to(torch.float64)

    def save_pretrained(self, *_: Any, **__: Any) -> None:
        """Raises InputError: the checkpoint is on disk already."""
        raise InputError(f"The model has no weights to save; its checkpoint is {self.name_or_path}.")


class _Encoder(Model):
    engine_task = "feature-extraction"

    def _output(self, outputs: Outputs) -> Any:
        found = outputs.to_dict()
        if self.config.model_type == "bert":
            crossed = {} if outputs.attentions is None else {"cross_attentions": ()}  # as the reference has it
            return modeling_outputs.BaseModelOutputWithPoolingAndCrossAttentions(**found, **crossed)
        return modeling_outputs.BaseModelOutput(**found)


class _MaskedLM(Model):
    engine_task = "fill-mask"

    def _output(self, outputs: Outputs) -> Any:
        return modeling_outputs.MaskedLMOutput(**outputs.to_dict())


class _SequenceClassifier(Model):
    engine_task = "text-classification"

    def _output(self, outputs: Outputs) -> Any:
        return modeling_outputs.SequenceClassifierOutput(**outputs.to_dict())


class _TokenClassifier(Model):
    engine_task = "token-classification"

    def _output(self, outputs: Outputs) -> Any:
        return modeling_outputs.TokenClassifierOutput(**outputs.to_dict())


class _QuestionAnswering(Model):
    engine_task = "question-answering"

    def _output(self, outputs: Outputs) -> Any:
        return modeling_outputs.QuestionAnsweringModelOutput(**outputs.to_dict())


class _MultipleChoice(Model):
    engine_task = "multiple-choice"

    def _output(self, outputs: Outputs) -> Any:
        return modeling_outputs.MultipleChoiceModelOutput(**outputs.to_dict())


class DistilBertModel(_Encoder):
    """``transformers.DistilBertModel``: the last hidden state."""


class DistilBertForMaskedLM(_MaskedLM):
    """``transformers.DistilBertForMaskedLM``."""


class DistilBertForSequenceClassification(_SequenceClassifier):
    """``transformers.DistilBertForSequenceClassification``."""


class DistilBertForTokenClassification(_TokenClassifier):
    """``transformers.DistilBertForTokenClassification``."""


class DistilBertForQuestionAnswering(_QuestionAnswering):
    """``transformers.DistilBertForQuestionAnswering``."""


class DistilBertForMultipleChoice(_MultipleChoice):
    """``transformers.DistilBertForMultipleChoice``."""


class BertModel(_Encoder):
    """``transformers.BertModel``: the last hidden state, and the pooler's output where the checkpoint has a pooler."""


class BertForMaskedLM(_MaskedLM):
    """``transformers.BertForMaskedLM``."""


class BertForSequenceClassification(_SequenceClassifier):
    """``transformers.BertForSequenceClassification``."""


class BertForTokenClassification(_TokenClassifier):
    """``transformers.BertForTokenClassification``."""


class BertForQuestionAnswering(_QuestionAnswering):
    """``transformers.BertForQuestionAnswering``."""


class BertForMultipleChoice(_MultipleChoice):
    """``transformers.BertForMultipleChoice``."""


# transformers' pipelines look at the name of a model's class.
_CLASSES: dict[str, dict[Task, type[Model]]] = {
    model_type: {each.engine_task: each for each in classes}
    for model_type, classes in {
        "distilbert": (
            DistilBertModel,
            DistilBertForMaskedLM,
            DistilBertForSequenceClassification,
            DistilBertForTokenClassification,
            DistilBertForQuestionAnswering,
            DistilBertForMultipleChoice,
        ),
        "bert": (
            BertModel,
            BertForMaskedLM,
            BertForSequenceClassification,
            BertForTokenClassification,
            BertForQuestionAnswering,
            BertForMultipleChoice,
        ),
    }.items()
}


_OPTIONS = ("precision", "backend", "threads", "revision", "dtype", "torch_dtype", "device_map")


def _load(task: Task, name: Any, options: dict[str, Any]) -> tuple[Engine, Any]:
    """The engine of a checkpoint, and its config as an object of transformers."""
    for option in options:
        if option not in _OPTIONS:
            raise InputError(f"from_pretrained has no option {option} here; there are {', '.join(_OPTIONS)}.")
    for option in ("dtype", "torch_dtype"):
        given = options.pop(option, None)
        if given not in (None, "auto", "float32", torch.float32):
            raise InputError(f"{option} is {given}; precision says how the model computes.")
    if (device_map := options.pop("device_map", None)) is not None:
        one_of("device_map", device_map, ("cpu", "auto"))
    engine = Engine.from_pretrained(name, task=task, **options)
    return engine, transformers.AutoConfig.from_pretrained(str(engine.directory))


class _Auto:
    engine_task: ClassVar[Task]

    @classmethod
    def from_pretrained(cls, name: Any, **options: Any) -> Model:
        """The class that the checkpoint's config asks for; see ``Model.from_pretrained``."""
        engine, config = _load(cls.engine_task, name, options)
        return _CLASSES[engine.config.model_type][cls.engine_task](engine, config)


class AutoModel(_Auto):
    """``DistilBertModel`` or ``BertModel``."""

    engine_task = "feature-extraction"


class AutoModelForMaskedLM(_Auto):
    """``DistilBertForMaskedLM`` or ``BertForMaskedLM``."""

    engine_task = "fill-mask"


class AutoModelForSequenceClassification(_Auto):
    """``DistilBertForSequenceClassification`` or ``BertForSequenceClassification``."""

    engine_task = "text-classification"


class AutoModelForTokenClassification(_Auto):
    """``DistilBertForTokenClassification`` or ``BertForTokenClassification``."""

    engine_task = "token-classification"


class AutoModelForQuestionAnswering(_Auto):
    """``DistilBertForQuestionAnswering`` or ``BertForQuestionAnswering``."""

    engine_task = "question-answering"


class AutoModelForMultipleChoice(_Auto):
    """``DistilBertForMultipleChoice`` or ``BertForMultipleChoice``."""

    engine_task = "multiple-choice"


def accelerate(
    model: Any, *, precision: Precision = "fp32", backend: BackendName = "auto", threads: int | None = None
) -> Model:
    """A fast model with the weights that ``model``, one of transformers', has now, wherever they come from.

    Later changes of ``model`` change no answer. Raises InputError for a model with adapters that are not merged, and
    the errors of ``Engine.from_pretrained``.
    """
    if hasattr(model, "merge_and_unload") or getattr(model, "_hf_peft_config_loaded", False):
        raise InputError("The model has adapters; accelerate what merge_and_unload() returns.")
    if not isinstance(model, transformers.PreTrainedModel):
        raise InputError(f"The model is of type {type(model).__name__}; one of transformers' is needed.")
    config = model.config.to_dict() | {"architectures": [type(model).__name__]}
    engine = Engine.from_tensors(config, model.state_dict(), precision=precision, backend=backend, threads=threads)
    return _CLASSES[engine.config.model_type][engine.task](engine, model.config)
