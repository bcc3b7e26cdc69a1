"""The services that do the work, tuners and samplers: how long a caller waits for them, and what it is told."""

from unitune.errors import FailedPrecondition, Unavailable

CALL_S = 3.0  # deadline of each unary call, in which a service that restarts may come back
RETRY_AFTER_S = 2.0  # that a caller is told to wait when a service does not answer


def refuse_mismatch(tuned: str, sampled: str) -> None:
    """Raise FailedPrecondition (BASE_MODEL_MISMATCH) unless tuner and sampler work on the same base model."""
    if tuned != sampled:
        raise FailedPrecondition(
            f"the tuning is of base model {tuned[:12]}, but the sampler's engine was built from {sampled[:12]}: "
            "build the engine from the tuner's base model, or make a new tuning",
            reason="BASE_MODEL_MISMATCH",
            metadata={"tuned": tuned, "sampled": sampled},
        )


def unanswered(upstream: str) -> Unavailable:
    """The error for a service that gave no answer, or a part of one."""
    return Unavailable(
        f"the {upstream} does not answer now",
        reason="BACKEND_DOWN",
        metadata={"upstream": upstream},
        retry_after_s=RETRY_AFTER_S,
    )
