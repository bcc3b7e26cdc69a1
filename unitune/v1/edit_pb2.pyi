import datetime

from google.api import annotations_pb2 as _annotations_pb2
from google.api import field_behavior_pb2 as _field_behavior_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.rpc import status_pb2 as _status_pb2
from unitune.v1 import option_pb2 as _option_pb2
from unitune.v1 import scope_pb2 as _scope_pb2
from unitune.v1 import tuning_pb2 as _tuning_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class EditRequest(_message.Message):
    __slots__ = ("parent", "tuning", "image", "image_data", "tuning_config", "prompt", "config", "seeds", "preview_every", "mask", "mask_image", "omit_metadata", "validate_only", "request_id")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    TUNING_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    IMAGE_DATA_FIELD_NUMBER: _ClassVar[int]
    TUNING_CONFIG_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    SEEDS_FIELD_NUMBER: _ClassVar[int]
    PREVIEW_EVERY_FIELD_NUMBER: _ClassVar[int]
    MASK_FIELD_NUMBER: _ClassVar[int]
    MASK_IMAGE_FIELD_NUMBER: _ClassVar[int]
    OMIT_METADATA_FIELD_NUMBER: _ClassVar[int]
    VALIDATE_ONLY_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    parent: str
    tuning: str
    image: str
    image_data: bytes
    tuning_config: _tuning_pb2.TuningConfig
    prompt: str
    config: SamplingConfig
    seeds: _containers.RepeatedScalarFieldContainer[int]
    preview_every: int
    mask: bytes
    mask_image: str
    omit_metadata: bool
    validate_only: bool
    request_id: str
    def __init__(self, parent: _Optional[str] = ..., tuning: _Optional[str] = ..., image: _Optional[str] = ..., image_data: _Optional[bytes] = ..., tuning_config: _Optional[_Union[_tuning_pb2.TuningConfig, _Mapping]] = ..., prompt: _Optional[str] = ..., config: _Optional[_Union[SamplingConfig, _Mapping]] = ..., seeds: _Optional[_Iterable[int]] = ..., preview_every: _Optional[int] = ..., mask: _Optional[bytes] = ..., mask_image: _Optional[str] = ..., omit_metadata: _Optional[bool] = ..., validate_only: _Optional[bool] = ..., request_id: _Optional[str] = ...) -> None: ...

class SamplingConfig(_message.Message):
    __slots__ = ("method", "scheduler", "num_inference_steps", "guidance_scale", "strength", "interpolation", "negative_prompt", "base_prompt", "prompt_guidance_scale", "unconditional_model", "base_mixture", "mask", "repeats", "inverted", "eta", "guidance_interval", "automatic", "clip_filter", "prompt_to_prompt", "super_resolution", "fast", "timestep_spacing", "guidance_rescale", "second_pass", "tcd_gamma", "fast_lora")
    class Method(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        METHOD_UNSPECIFIED: _ClassVar[SamplingConfig.Method]
        METHOD_UNITUNE: _ClassVar[SamplingConfig.Method]
        METHOD_IMAGIC: _ClassVar[SamplingConfig.Method]
        METHOD_DREAMBOOTH: _ClassVar[SamplingConfig.Method]
        METHOD_TEXTUAL_INVERSION: _ClassVar[SamplingConfig.Method]
        METHOD_SDEDIT: _ClassVar[SamplingConfig.Method]
        METHOD_PROMPT_TO_PROMPT: _ClassVar[SamplingConfig.Method]
    METHOD_UNSPECIFIED: SamplingConfig.Method
    METHOD_UNITUNE: SamplingConfig.Method
    METHOD_IMAGIC: SamplingConfig.Method
    METHOD_DREAMBOOTH: SamplingConfig.Method
    METHOD_TEXTUAL_INVERSION: SamplingConfig.Method
    METHOD_SDEDIT: SamplingConfig.Method
    METHOD_PROMPT_TO_PROMPT: SamplingConfig.Method
    class Scheduler(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        SCHEDULER_UNSPECIFIED: _ClassVar[SamplingConfig.Scheduler]
        SCHEDULER_DDIM: _ClassVar[SamplingConfig.Scheduler]
        SCHEDULER_EULER: _ClassVar[SamplingConfig.Scheduler]
        SCHEDULER_DPMPP_2M: _ClassVar[SamplingConfig.Scheduler]
        SCHEDULER_LCM: _ClassVar[SamplingConfig.Scheduler]
        SCHEDULER_EULER_ANCESTRAL: _ClassVar[SamplingConfig.Scheduler]
        SCHEDULER_TCD: _ClassVar[SamplingConfig.Scheduler]
    SCHEDULER_UNSPECIFIED: SamplingConfig.Scheduler
    SCHEDULER_DDIM: SamplingConfig.Scheduler
    SCHEDULER_EULER: SamplingConfig.Scheduler
    SCHEDULER_DPMPP_2M: SamplingConfig.Scheduler
    SCHEDULER_LCM: SamplingConfig.Scheduler
    SCHEDULER_EULER_ANCESTRAL: SamplingConfig.Scheduler
    SCHEDULER_TCD: SamplingConfig.Scheduler
    class TimestepSpacing(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        TIMESTEP_SPACING_UNSPECIFIED: _ClassVar[SamplingConfig.TimestepSpacing]
        TIMESTEP_SPACING_LEADING: _ClassVar[SamplingConfig.TimestepSpacing]
        TIMESTEP_SPACING_TRAILING: _ClassVar[SamplingConfig.TimestepSpacing]
        TIMESTEP_SPACING_LINSPACE: _ClassVar[SamplingConfig.TimestepSpacing]
    TIMESTEP_SPACING_UNSPECIFIED: SamplingConfig.TimestepSpacing
    TIMESTEP_SPACING_LEADING: SamplingConfig.TimestepSpacing
    TIMESTEP_SPACING_TRAILING: SamplingConfig.TimestepSpacing
    TIMESTEP_SPACING_LINSPACE: SamplingConfig.TimestepSpacing
    class UnconditionalModel(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        UNCONDITIONAL_MODEL_UNSPECIFIED: _ClassVar[SamplingConfig.UnconditionalModel]
        UNCONDITIONAL_MODEL_TUNED: _ClassVar[SamplingConfig.UnconditionalModel]
        UNCONDITIONAL_MODEL_BASE: _ClassVar[SamplingConfig.UnconditionalModel]
    UNCONDITIONAL_MODEL_UNSPECIFIED: SamplingConfig.UnconditionalModel
    UNCONDITIONAL_MODEL_TUNED: SamplingConfig.UnconditionalModel
    UNCONDITIONAL_MODEL_BASE: SamplingConfig.UnconditionalModel
    METHOD_FIELD_NUMBER: _ClassVar[int]
    SCHEDULER_FIELD_NUMBER: _ClassVar[int]
    NUM_INFERENCE_STEPS_FIELD_NUMBER: _ClassVar[int]
    GUIDANCE_SCALE_FIELD_NUMBER: _ClassVar[int]
    STRENGTH_FIELD_NUMBER: _ClassVar[int]
    INTERPOLATION_FIELD_NUMBER: _ClassVar[int]
    NEGATIVE_PROMPT_FIELD_NUMBER: _ClassVar[int]
    BASE_PROMPT_FIELD_NUMBER: _ClassVar[int]
    PROMPT_GUIDANCE_SCALE_FIELD_NUMBER: _ClassVar[int]
    UNCONDITIONAL_MODEL_FIELD_NUMBER: _ClassVar[int]
    BASE_MIXTURE_FIELD_NUMBER: _ClassVar[int]
    MASK_FIELD_NUMBER: _ClassVar[int]
    REPEATS_FIELD_NUMBER: _ClassVar[int]
    INVERTED_FIELD_NUMBER: _ClassVar[int]
    ETA_FIELD_NUMBER: _ClassVar[int]
    GUIDANCE_INTERVAL_FIELD_NUMBER: _ClassVar[int]
    AUTOMATIC_FIELD_NUMBER: _ClassVar[int]
    CLIP_FILTER_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TO_PROMPT_FIELD_NUMBER: _ClassVar[int]
    SUPER_RESOLUTION_FIELD_NUMBER: _ClassVar[int]
    FAST_FIELD_NUMBER: _ClassVar[int]
    TIMESTEP_SPACING_FIELD_NUMBER: _ClassVar[int]
    GUIDANCE_RESCALE_FIELD_NUMBER: _ClassVar[int]
    SECOND_PASS_FIELD_NUMBER: _ClassVar[int]
    TCD_GAMMA_FIELD_NUMBER: _ClassVar[int]
    FAST_LORA_FIELD_NUMBER: _ClassVar[int]
    method: SamplingConfig.Method
    scheduler: SamplingConfig.Scheduler
    num_inference_steps: int
    guidance_scale: float
    strength: float
    interpolation: float
    negative_prompt: str
    base_prompt: str
    prompt_guidance_scale: float
    unconditional_model: SamplingConfig.UnconditionalModel
    base_mixture: float
    mask: Mask
    repeats: int
    inverted: bool
    eta: float
    guidance_interval: GuidanceInterval
    automatic: bool
    clip_filter: ClipFilter
    prompt_to_prompt: PromptToPrompt
    super_resolution: SuperResolution
    fast: bool
    timestep_spacing: SamplingConfig.TimestepSpacing
    guidance_rescale: float
    second_pass: SecondPass
    tcd_gamma: float
    fast_lora: bool
    def __init__(self, method: _Optional[_Union[SamplingConfig.Method, str]] = ..., scheduler: _Optional[_Union[SamplingConfig.Scheduler, str]] = ..., num_inference_steps: _Optional[int] = ..., guidance_scale: _Optional[float] = ..., strength: _Optional[float] = ..., interpolation: _Optional[float] = ..., negative_prompt: _Optional[str] = ..., base_prompt: _Optional[str] = ..., prompt_guidance_scale: _Optional[float] = ..., unconditional_model: _Optional[_Union[SamplingConfig.UnconditionalModel, str]] = ..., base_mixture: _Optional[float] = ..., mask: _Optional[_Union[Mask, _Mapping]] = ..., repeats: _Optional[int] = ..., inverted: _Optional[bool] = ..., eta: _Optional[float] = ..., guidance_interval: _Optional[_Union[GuidanceInterval, _Mapping]] = ..., automatic: _Optional[bool] = ..., clip_filter: _Optional[_Union[ClipFilter, _Mapping]] = ..., prompt_to_prompt: _Optional[_Union[PromptToPrompt, _Mapping]] = ..., super_resolution: _Optional[_Union[SuperResolution, _Mapping]] = ..., fast: _Optional[bool] = ..., timestep_spacing: _Optional[_Union[SamplingConfig.TimestepSpacing, str]] = ..., guidance_rescale: _Optional[float] = ..., second_pass: _Optional[_Union[SecondPass, _Mapping]] = ..., tcd_gamma: _Optional[float] = ..., fast_lora: _Optional[bool] = ...) -> None: ...

class Mask(_message.Message):
    __slots__ = ("source", "text", "blur", "only_masked", "padding", "keeps")
    class Source(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        SOURCE_UNSPECIFIED: _ClassVar[Mask.Source]
        SOURCE_GIVEN: _ClassVar[Mask.Source]
        SOURCE_DIFFERENCE: _ClassVar[Mask.Source]
        SOURCE_DIFFEDIT: _ClassVar[Mask.Source]
        SOURCE_WORD: _ClassVar[Mask.Source]
        SOURCE_ATTENTION: _ClassVar[Mask.Source]
    SOURCE_UNSPECIFIED: Mask.Source
    SOURCE_GIVEN: Mask.Source
    SOURCE_DIFFERENCE: Mask.Source
    SOURCE_DIFFEDIT: Mask.Source
    SOURCE_WORD: Mask.Source
    SOURCE_ATTENTION: Mask.Source
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    BLUR_FIELD_NUMBER: _ClassVar[int]
    ONLY_MASKED_FIELD_NUMBER: _ClassVar[int]
    PADDING_FIELD_NUMBER: _ClassVar[int]
    KEEPS_FIELD_NUMBER: _ClassVar[int]
    source: Mask.Source
    text: str
    blur: float
    only_masked: bool
    padding: int
    keeps: bool
    def __init__(self, source: _Optional[_Union[Mask.Source, str]] = ..., text: _Optional[str] = ..., blur: _Optional[float] = ..., only_masked: _Optional[bool] = ..., padding: _Optional[int] = ..., keeps: _Optional[bool] = ...) -> None: ...

class GuidanceInterval(_message.Message):
    __slots__ = ("low", "high")
    LOW_FIELD_NUMBER: _ClassVar[int]
    HIGH_FIELD_NUMBER: _ClassVar[int]
    low: float
    high: float
    def __init__(self, low: _Optional[float] = ..., high: _Optional[float] = ...) -> None: ...

class ClipFilter(_message.Message):
    __slots__ = ("resamples",)
    RESAMPLES_FIELD_NUMBER: _ClassVar[int]
    resamples: int
    def __init__(self, resamples: _Optional[int] = ...) -> None: ...

class PromptToPrompt(_message.Message):
    __slots__ = ("inversion", "cross_replace", "self_replace", "alignment", "word_weights", "blend_words")
    class Inversion(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        INVERSION_UNSPECIFIED: _ClassVar[PromptToPrompt.Inversion]
        INVERSION_DIRECT: _ClassVar[PromptToPrompt.Inversion]
        INVERSION_DDIM: _ClassVar[PromptToPrompt.Inversion]
        INVERSION_NULL_TEXT: _ClassVar[PromptToPrompt.Inversion]
    INVERSION_UNSPECIFIED: PromptToPrompt.Inversion
    INVERSION_DIRECT: PromptToPrompt.Inversion
    INVERSION_DDIM: PromptToPrompt.Inversion
    INVERSION_NULL_TEXT: PromptToPrompt.Inversion
    class Alignment(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        ALIGNMENT_UNSPECIFIED: _ClassVar[PromptToPrompt.Alignment]
        ALIGNMENT_REPLACE: _ClassVar[PromptToPrompt.Alignment]
        ALIGNMENT_REFINE: _ClassVar[PromptToPrompt.Alignment]
    ALIGNMENT_UNSPECIFIED: PromptToPrompt.Alignment
    ALIGNMENT_REPLACE: PromptToPrompt.Alignment
    ALIGNMENT_REFINE: PromptToPrompt.Alignment
    class WordWeightsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    INVERSION_FIELD_NUMBER: _ClassVar[int]
    CROSS_REPLACE_FIELD_NUMBER: _ClassVar[int]
    SELF_REPLACE_FIELD_NUMBER: _ClassVar[int]
    ALIGNMENT_FIELD_NUMBER: _ClassVar[int]
    WORD_WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    BLEND_WORDS_FIELD_NUMBER: _ClassVar[int]
    inversion: PromptToPrompt.Inversion
    cross_replace: float
    self_replace: float
    alignment: PromptToPrompt.Alignment
    word_weights: _containers.ScalarMap[str, float]
    blend_words: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, inversion: _Optional[_Union[PromptToPrompt.Inversion, str]] = ..., cross_replace: _Optional[float] = ..., self_replace: _Optional[float] = ..., alignment: _Optional[_Union[PromptToPrompt.Alignment, str]] = ..., word_weights: _Optional[_Mapping[str, float]] = ..., blend_words: _Optional[_Iterable[str]] = ...) -> None: ...

class SuperResolution(_message.Message):
    __slots__ = ("noise_level", "steps", "guidance_scale", "dynamic_thresholding", "width")
    NOISE_LEVEL_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    GUIDANCE_SCALE_FIELD_NUMBER: _ClassVar[int]
    DYNAMIC_THRESHOLDING_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    noise_level: int
    steps: int
    guidance_scale: float
    dynamic_thresholding: bool
    width: int
    def __init__(self, noise_level: _Optional[int] = ..., steps: _Optional[int] = ..., guidance_scale: _Optional[float] = ..., dynamic_thresholding: _Optional[bool] = ..., width: _Optional[int] = ...) -> None: ...

class SecondPass(_message.Message):
    __slots__ = ("strength", "scale")
    STRENGTH_FIELD_NUMBER: _ClassVar[int]
    SCALE_FIELD_NUMBER: _ClassVar[int]
    strength: float
    scale: float
    def __init__(self, strength: _Optional[float] = ..., scale: _Optional[float] = ...) -> None: ...

class Scores(_message.Message):
    __slots__ = ("prompt", "base_prompt", "kept", "passed", "round_trip", "detail", "saturated")
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    BASE_PROMPT_FIELD_NUMBER: _ClassVar[int]
    KEPT_FIELD_NUMBER: _ClassVar[int]
    PASSED_FIELD_NUMBER: _ClassVar[int]
    ROUND_TRIP_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    SATURATED_FIELD_NUMBER: _ClassVar[int]
    prompt: float
    base_prompt: float
    kept: float
    passed: bool
    round_trip: float
    detail: float
    saturated: float
    def __init__(self, prompt: _Optional[float] = ..., base_prompt: _Optional[float] = ..., kept: _Optional[float] = ..., passed: _Optional[bool] = ..., round_trip: _Optional[float] = ..., detail: _Optional[float] = ..., saturated: _Optional[float] = ...) -> None: ...

class EditEvent(_message.Message):
    __slots__ = ("sequence", "create_time", "accepted", "tuning", "loading", "step", "image", "done", "failed", "cancelled", "heartbeat", "warning", "image_part")
    class Accepted(_message.Message):
        __slots__ = ("edit", "config", "effective_strength", "seeds", "warnings", "tuning_config")
        EDIT_FIELD_NUMBER: _ClassVar[int]
        CONFIG_FIELD_NUMBER: _ClassVar[int]
        EFFECTIVE_STRENGTH_FIELD_NUMBER: _ClassVar[int]
        SEEDS_FIELD_NUMBER: _ClassVar[int]
        WARNINGS_FIELD_NUMBER: _ClassVar[int]
        TUNING_CONFIG_FIELD_NUMBER: _ClassVar[int]
        edit: str
        config: SamplingConfig
        effective_strength: float
        seeds: _containers.RepeatedScalarFieldContainer[int]
        warnings: _containers.RepeatedScalarFieldContainer[str]
        tuning_config: _tuning_pb2.TuningConfig
        def __init__(self, edit: _Optional[str] = ..., config: _Optional[_Union[SamplingConfig, _Mapping]] = ..., effective_strength: _Optional[float] = ..., seeds: _Optional[_Iterable[int]] = ..., warnings: _Optional[_Iterable[str]] = ..., tuning_config: _Optional[_Union[_tuning_pb2.TuningConfig, _Mapping]] = ...) -> None: ...
    class Loading(_message.Message):
        __slots__ = ("warm", "refit_s", "probe_ratio")
        WARM_FIELD_NUMBER: _ClassVar[int]
        REFIT_S_FIELD_NUMBER: _ClassVar[int]
        PROBE_RATIO_FIELD_NUMBER: _ClassVar[int]
        warm: bool
        refit_s: float
        probe_ratio: float
        def __init__(self, warm: _Optional[bool] = ..., refit_s: _Optional[float] = ..., probe_ratio: _Optional[float] = ...) -> None: ...
    class Step(_message.Message):
        __slots__ = ("index", "total", "preview", "attempt", "attempts")
        INDEX_FIELD_NUMBER: _ClassVar[int]
        TOTAL_FIELD_NUMBER: _ClassVar[int]
        PREVIEW_FIELD_NUMBER: _ClassVar[int]
        ATTEMPT_FIELD_NUMBER: _ClassVar[int]
        ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
        index: int
        total: int
        preview: bytes
        attempt: int
        attempts: int
        def __init__(self, index: _Optional[int] = ..., total: _Optional[int] = ..., preview: _Optional[bytes] = ..., attempt: _Optional[int] = ..., attempts: _Optional[int] = ...) -> None: ...
    class Warning(_message.Message):
        __slots__ = ("text",)
        TEXT_FIELD_NUMBER: _ClassVar[int]
        text: str
        def __init__(self, text: _Optional[str] = ...) -> None: ...
    class EditedImage(_message.Message):
        __slots__ = ("index", "seed", "png", "mask", "size_bytes", "mask_size_bytes", "scores", "strength", "guidance_scale", "blocked", "working_width", "working_height", "png_url", "mask_url")
        INDEX_FIELD_NUMBER: _ClassVar[int]
        SEED_FIELD_NUMBER: _ClassVar[int]
        PNG_FIELD_NUMBER: _ClassVar[int]
        MASK_FIELD_NUMBER: _ClassVar[int]
        SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
        MASK_SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
        SCORES_FIELD_NUMBER: _ClassVar[int]
        STRENGTH_FIELD_NUMBER: _ClassVar[int]
        GUIDANCE_SCALE_FIELD_NUMBER: _ClassVar[int]
        BLOCKED_FIELD_NUMBER: _ClassVar[int]
        WORKING_WIDTH_FIELD_NUMBER: _ClassVar[int]
        WORKING_HEIGHT_FIELD_NUMBER: _ClassVar[int]
        PNG_URL_FIELD_NUMBER: _ClassVar[int]
        MASK_URL_FIELD_NUMBER: _ClassVar[int]
        index: int
        seed: int
        png: bytes
        mask: bytes
        size_bytes: int
        mask_size_bytes: int
        scores: Scores
        strength: float
        guidance_scale: float
        blocked: bool
        working_width: int
        working_height: int
        png_url: str
        mask_url: str
        def __init__(self, index: _Optional[int] = ..., seed: _Optional[int] = ..., png: _Optional[bytes] = ..., mask: _Optional[bytes] = ..., size_bytes: _Optional[int] = ..., mask_size_bytes: _Optional[int] = ..., scores: _Optional[_Union[Scores, _Mapping]] = ..., strength: _Optional[float] = ..., guidance_scale: _Optional[float] = ..., blocked: _Optional[bool] = ..., working_width: _Optional[int] = ..., working_height: _Optional[int] = ..., png_url: _Optional[str] = ..., mask_url: _Optional[str] = ...) -> None: ...
    class ImagePart(_message.Message):
        __slots__ = ("index", "png", "mask")
        INDEX_FIELD_NUMBER: _ClassVar[int]
        PNG_FIELD_NUMBER: _ClassVar[int]
        MASK_FIELD_NUMBER: _ClassVar[int]
        index: int
        png: bytes
        mask: bytes
        def __init__(self, index: _Optional[int] = ..., png: _Optional[bytes] = ..., mask: _Optional[bytes] = ...) -> None: ...
    class Done(_message.Message):
        __slots__ = ("timings", "tuning")
        TIMINGS_FIELD_NUMBER: _ClassVar[int]
        TUNING_FIELD_NUMBER: _ClassVar[int]
        timings: Timings
        tuning: str
        def __init__(self, timings: _Optional[_Union[Timings, _Mapping]] = ..., tuning: _Optional[str] = ...) -> None: ...
    class Heartbeat(_message.Message):
        __slots__ = ("stage", "stage_s", "stage_left_s")
        class Stage(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
            __slots__ = ()
            STAGE_UNSPECIFIED: _ClassVar[EditEvent.Heartbeat.Stage]
            STAGE_WAITING: _ClassVar[EditEvent.Heartbeat.Stage]
            STAGE_LOADING: _ClassVar[EditEvent.Heartbeat.Stage]
            STAGE_PREPARING: _ClassVar[EditEvent.Heartbeat.Stage]
            STAGE_SAMPLING: _ClassVar[EditEvent.Heartbeat.Stage]
            STAGE_DECODING: _ClassVar[EditEvent.Heartbeat.Stage]
        STAGE_UNSPECIFIED: EditEvent.Heartbeat.Stage
        STAGE_WAITING: EditEvent.Heartbeat.Stage
        STAGE_LOADING: EditEvent.Heartbeat.Stage
        STAGE_PREPARING: EditEvent.Heartbeat.Stage
        STAGE_SAMPLING: EditEvent.Heartbeat.Stage
        STAGE_DECODING: EditEvent.Heartbeat.Stage
        STAGE_FIELD_NUMBER: _ClassVar[int]
        STAGE_S_FIELD_NUMBER: _ClassVar[int]
        STAGE_LEFT_S_FIELD_NUMBER: _ClassVar[int]
        stage: EditEvent.Heartbeat.Stage
        stage_s: float
        stage_left_s: float
        def __init__(self, stage: _Optional[_Union[EditEvent.Heartbeat.Stage, str]] = ..., stage_s: _Optional[float] = ..., stage_left_s: _Optional[float] = ...) -> None: ...
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    TUNING_FIELD_NUMBER: _ClassVar[int]
    LOADING_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    CANCELLED_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    WARNING_FIELD_NUMBER: _ClassVar[int]
    IMAGE_PART_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    create_time: _timestamp_pb2.Timestamp
    accepted: EditEvent.Accepted
    tuning: _tuning_pb2.TuningEvent
    loading: EditEvent.Loading
    step: EditEvent.Step
    image: EditEvent.EditedImage
    done: EditEvent.Done
    failed: _status_pb2.Status
    cancelled: Edit
    heartbeat: EditEvent.Heartbeat
    warning: EditEvent.Warning
    image_part: EditEvent.ImagePart
    def __init__(self, sequence: _Optional[int] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., accepted: _Optional[_Union[EditEvent.Accepted, _Mapping]] = ..., tuning: _Optional[_Union[_tuning_pb2.TuningEvent, _Mapping]] = ..., loading: _Optional[_Union[EditEvent.Loading, _Mapping]] = ..., step: _Optional[_Union[EditEvent.Step, _Mapping]] = ..., image: _Optional[_Union[EditEvent.EditedImage, _Mapping]] = ..., done: _Optional[_Union[EditEvent.Done, _Mapping]] = ..., failed: _Optional[_Union[_status_pb2.Status, _Mapping]] = ..., cancelled: _Optional[_Union[Edit, _Mapping]] = ..., heartbeat: _Optional[_Union[EditEvent.Heartbeat, _Mapping]] = ..., warning: _Optional[_Union[EditEvent.Warning, _Mapping]] = ..., image_part: _Optional[_Union[EditEvent.ImagePart, _Mapping]] = ...) -> None: ...

class Timings(_message.Message):
    __slots__ = ("queue_s", "tune_s", "refit_s", "encode_s", "denoise_s", "decode_s", "total_s", "super_resolution_s")
    QUEUE_S_FIELD_NUMBER: _ClassVar[int]
    TUNE_S_FIELD_NUMBER: _ClassVar[int]
    REFIT_S_FIELD_NUMBER: _ClassVar[int]
    ENCODE_S_FIELD_NUMBER: _ClassVar[int]
    DENOISE_S_FIELD_NUMBER: _ClassVar[int]
    DECODE_S_FIELD_NUMBER: _ClassVar[int]
    TOTAL_S_FIELD_NUMBER: _ClassVar[int]
    SUPER_RESOLUTION_S_FIELD_NUMBER: _ClassVar[int]
    queue_s: float
    tune_s: float
    refit_s: float
    encode_s: float
    denoise_s: float
    decode_s: float
    total_s: float
    super_resolution_s: float
    def __init__(self, queue_s: _Optional[float] = ..., tune_s: _Optional[float] = ..., refit_s: _Optional[float] = ..., encode_s: _Optional[float] = ..., denoise_s: _Optional[float] = ..., decode_s: _Optional[float] = ..., total_s: _Optional[float] = ..., super_resolution_s: _Optional[float] = ...) -> None: ...

class Edit(_message.Message):
    __slots__ = ("name", "state", "images", "timings", "error", "tuning")
    class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        STATE_UNSPECIFIED: _ClassVar[Edit.State]
        STATE_RUNNING: _ClassVar[Edit.State]
        STATE_DONE: _ClassVar[Edit.State]
        STATE_FAILED: _ClassVar[Edit.State]
        STATE_CANCELLED: _ClassVar[Edit.State]
    STATE_UNSPECIFIED: Edit.State
    STATE_RUNNING: Edit.State
    STATE_DONE: Edit.State
    STATE_FAILED: Edit.State
    STATE_CANCELLED: Edit.State
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    TUNING_FIELD_NUMBER: _ClassVar[int]
    name: str
    state: Edit.State
    images: _containers.RepeatedCompositeFieldContainer[EditEvent.EditedImage]
    timings: Timings
    error: _status_pb2.Status
    tuning: str
    def __init__(self, name: _Optional[str] = ..., state: _Optional[_Union[Edit.State, str]] = ..., images: _Optional[_Iterable[_Union[EditEvent.EditedImage, _Mapping]]] = ..., timings: _Optional[_Union[Timings, _Mapping]] = ..., error: _Optional[_Union[_status_pb2.Status, _Mapping]] = ..., tuning: _Optional[str] = ...) -> None: ...

class GetEditRequest(_message.Message):
    __slots__ = ("name", "image_urls")
    NAME_FIELD_NUMBER: _ClassVar[int]
    IMAGE_URLS_FIELD_NUMBER: _ClassVar[int]
    name: str
    image_urls: bool
    def __init__(self, name: _Optional[str] = ..., image_urls: _Optional[bool] = ...) -> None: ...

class CancelEditRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class CompareRequest(_message.Message):
    __slots__ = ("parent", "image", "image_data", "prompt", "methods", "seeds", "class_noun", "initial_word", "base_prompt", "omit_metadata", "validate_only", "request_id")
    class Entry(_message.Message):
        __slots__ = ("method", "tuning_config", "config")
        METHOD_FIELD_NUMBER: _ClassVar[int]
        TUNING_CONFIG_FIELD_NUMBER: _ClassVar[int]
        CONFIG_FIELD_NUMBER: _ClassVar[int]
        method: SamplingConfig.Method
        tuning_config: _tuning_pb2.TuningConfig
        config: SamplingConfig
        def __init__(self, method: _Optional[_Union[SamplingConfig.Method, str]] = ..., tuning_config: _Optional[_Union[_tuning_pb2.TuningConfig, _Mapping]] = ..., config: _Optional[_Union[SamplingConfig, _Mapping]] = ...) -> None: ...
    PARENT_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    IMAGE_DATA_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    METHODS_FIELD_NUMBER: _ClassVar[int]
    SEEDS_FIELD_NUMBER: _ClassVar[int]
    CLASS_NOUN_FIELD_NUMBER: _ClassVar[int]
    INITIAL_WORD_FIELD_NUMBER: _ClassVar[int]
    BASE_PROMPT_FIELD_NUMBER: _ClassVar[int]
    OMIT_METADATA_FIELD_NUMBER: _ClassVar[int]
    VALIDATE_ONLY_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    parent: str
    image: str
    image_data: bytes
    prompt: str
    methods: _containers.RepeatedCompositeFieldContainer[CompareRequest.Entry]
    seeds: _containers.RepeatedScalarFieldContainer[int]
    class_noun: str
    initial_word: str
    base_prompt: str
    omit_metadata: bool
    validate_only: bool
    request_id: str
    def __init__(self, parent: _Optional[str] = ..., image: _Optional[str] = ..., image_data: _Optional[bytes] = ..., prompt: _Optional[str] = ..., methods: _Optional[_Iterable[_Union[CompareRequest.Entry, _Mapping]]] = ..., seeds: _Optional[_Iterable[int]] = ..., class_noun: _Optional[str] = ..., initial_word: _Optional[str] = ..., base_prompt: _Optional[str] = ..., omit_metadata: _Optional[bool] = ..., validate_only: _Optional[bool] = ..., request_id: _Optional[str] = ...) -> None: ...

class CompareEvent(_message.Message):
    __slots__ = ("sequence", "create_time", "method", "accepted", "edit", "result", "done", "failed", "heartbeat", "image_part")
    class Accepted(_message.Message):
        __slots__ = ("methods", "warnings")
        METHODS_FIELD_NUMBER: _ClassVar[int]
        WARNINGS_FIELD_NUMBER: _ClassVar[int]
        methods: _containers.RepeatedScalarFieldContainer[SamplingConfig.Method]
        warnings: _containers.RepeatedScalarFieldContainer[str]
        def __init__(self, methods: _Optional[_Iterable[_Union[SamplingConfig.Method, str]]] = ..., warnings: _Optional[_Iterable[str]] = ...) -> None: ...
    class Result(_message.Message):
        __slots__ = ("images", "prompt", "tuning_s", "edit_s", "size_bytes", "tuning", "timings", "error")
        IMAGES_FIELD_NUMBER: _ClassVar[int]
        PROMPT_FIELD_NUMBER: _ClassVar[int]
        TUNING_S_FIELD_NUMBER: _ClassVar[int]
        EDIT_S_FIELD_NUMBER: _ClassVar[int]
        SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
        TUNING_FIELD_NUMBER: _ClassVar[int]
        TIMINGS_FIELD_NUMBER: _ClassVar[int]
        ERROR_FIELD_NUMBER: _ClassVar[int]
        images: _containers.RepeatedCompositeFieldContainer[EditEvent.EditedImage]
        prompt: str
        tuning_s: float
        edit_s: float
        size_bytes: int
        tuning: str
        timings: Timings
        error: _status_pb2.Status
        def __init__(self, images: _Optional[_Iterable[_Union[EditEvent.EditedImage, _Mapping]]] = ..., prompt: _Optional[str] = ..., tuning_s: _Optional[float] = ..., edit_s: _Optional[float] = ..., size_bytes: _Optional[int] = ..., tuning: _Optional[str] = ..., timings: _Optional[_Union[Timings, _Mapping]] = ..., error: _Optional[_Union[_status_pb2.Status, _Mapping]] = ...) -> None: ...
    class Done(_message.Message):
        __slots__ = ("total_s",)
        TOTAL_S_FIELD_NUMBER: _ClassVar[int]
        total_s: float
        def __init__(self, total_s: _Optional[float] = ...) -> None: ...
    class Heartbeat(_message.Message):
        __slots__ = ()
        def __init__(self) -> None: ...
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    EDIT_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    IMAGE_PART_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    create_time: _timestamp_pb2.Timestamp
    method: SamplingConfig.Method
    accepted: CompareEvent.Accepted
    edit: EditEvent
    result: CompareEvent.Result
    done: CompareEvent.Done
    failed: _status_pb2.Status
    heartbeat: CompareEvent.Heartbeat
    image_part: EditEvent.ImagePart
    def __init__(self, sequence: _Optional[int] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., method: _Optional[_Union[SamplingConfig.Method, str]] = ..., accepted: _Optional[_Union[CompareEvent.Accepted, _Mapping]] = ..., edit: _Optional[_Union[EditEvent, _Mapping]] = ..., result: _Optional[_Union[CompareEvent.Result, _Mapping]] = ..., done: _Optional[_Union[CompareEvent.Done, _Mapping]] = ..., failed: _Optional[_Union[_status_pb2.Status, _Mapping]] = ..., heartbeat: _Optional[_Union[CompareEvent.Heartbeat, _Mapping]] = ..., image_part: _Optional[_Union[EditEvent.ImagePart, _Mapping]] = ...) -> None: ...
