"""Fields that many views have."""

from typing import Annotated, Literal, TypedDict

from msgspec import Meta

PortName = Annotated[str, Meta(description="the Service port, namespace/name:port")]
FrontendText = Annotated[str, Meta(description="address:port/protocol; * for the node's addresses")]
Count = Annotated[int, Meta(description="number so far")]
TimeText = Annotated[
    str, Meta(description="UTC, RFC 3339 with microseconds", extra_json_schema={"format": "date-time"})
]


class Versioned(TypedDict):
    """An object of the first version."""

    apiVersion: Annotated[Literal["hotplane/v1"], Meta(description="version of the object's fields")]
