"""Whether the hub answers, asked with a time limit: `demo` and `doctor` go on without it."""

from __future__ import annotations

import threading
from pathlib import Path

SECONDS = 5.0


def endpoint() -> str:
    """The address of the hub, of ``HF_ENDPOINT`` where that is set."""
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


def is_switched_off() -> bool:
    """Whether the environment forbids every request (``HF_HUB_OFFLINE`` or ``TRANSFORMERS_OFFLINE``)."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def cache_folder() -> str:
    """Where the hub's client keeps what it fetched."""
    from huggingface_hub import constants

    return str(constants.HF_HUB_CACHE)


def cached_models() -> list[str]:
    """The hub ids of which something was fetched before."""
    return sorted(
        path.name.removeprefix("models--").replace("--", "/") for path in Path(cache_folder()).glob("models--*")
    )


def refusal(name: str, seconds: float = SECONDS) -> str | None:
    """None where the hub says within ``seconds`` that it has ``name``; else what it does instead, as a predicate.

    A thread of its own asks, because looking up a host's name has no time limit.
    """
    if is_switched_off():
        return "is not asked, because HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set"
    from huggingface_hub import HfApi, utils

    reasons: list[str | None] = []

    def ask() -> None:
        try:
            HfApi().model_info(name, timeout=seconds)
        except utils.GatedRepoError:
            reasons.append(f"gives {name} only to those who have asked for access")
        except utils.RepositoryNotFoundError:
            reasons.append(f"answers, and shows no {name} to this user")
        except utils.HfHubHTTPError as error:
            reasons.append(f"answers with an error ({error.response.status_code})")
        except Exception as error:  # no route, a proxy's page, a certificate: errors of the client's HTTP library
            reasons.append(f"cannot be reached ({type(error).__name__})")
        else:
            reasons.append(None)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(seconds)
    return reasons[0] if reasons else f"did not answer within {seconds:g} s"
