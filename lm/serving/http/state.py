"""What the routes of one server share."""

import dataclasses

from fastapi import Request

from lm.serving.generation import Failure
from lm.serving.http.limits import Limits
from lm.serving.http.metrics import Metrics
from lm.serving.service import Service


@dataclasses.dataclass
class State:
    """A server.

    Attributes:
      service: the model.
      limits: of requests.
      metrics: of this server.
      started: seconds since 1970 when it began.
      ready: whether everything is compiled.
    """

    service: Service
    limits: Limits
    metrics: Metrics
    started: int
    ready: bool = False


def state_of(request: Request, ability: str | None = None) -> State:
    """The state of the server of a request.

    Raises:
      Failure: it is not ready, or its model has not the ability that the request needs.
    """
    state: State = request.app.state.server
    if not state.ready or not state.service.engine.alive:
        raise Failure(503, "not_ready", "the server is starting or stopping; see /readyz")
    if ability is not None and ability not in state.service.abilities:
        task = state.service.run.config.task.name or "a language model"
        paths = ", ".join(f"/v1/{name}" for name in state.service.abilities)
        architecture = state.service.run.config.model.architecture
        raise Failure(
            404,
            "not_supported",
            f"this model ({architecture}, {task}) does not answer /v1/{ability}, but {paths}",
        )
    return state
