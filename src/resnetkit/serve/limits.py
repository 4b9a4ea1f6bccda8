"""What a server accepts and how long it waits: settings with their defaults."""

from dataclasses import dataclass, fields

from resnetkit.errors import UsageError


@dataclass(frozen=True)
class Limits:
    """The limits of a server. Raises UsageError for one that is out of range."""

    timeout: float = 30.0
    """seconds for one request, after its body has arrived; then it is answered with 504, and not computed"""
    queue: int = 256
    """pictures of a model that may be decoded, wait or be computed at a time; more are answered with 503"""
    wait_ms: float = 2.0
    """milliseconds that a batch waits for more pictures while another batch is computed; an idle model never waits"""
    max_pictures: int = 64
    """pictures in one request"""
    max_body: int = 32 * 2**20
    """bytes in the body of one request"""
    max_bodies: int = 512 * 2**20
    """bytes in the bodies of all requests that are in memory at a time; more are answered with 503"""
    max_pixels: int = 2**26
    """pixels of one picture, width times height; larger ones are refused before they are decoded"""
    body_timeout: float = 30.0
    """seconds for the body of a request to arrive; then it is answered with 408"""
    header_timeout: float = 10.0
    """seconds for the header of a request to arrive on an open connection, which is then closed"""
    drain: float = 1.0
    """seconds after SIGTERM in which new requests are still answered, each on a connection that then closes"""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name in ("wait_ms", "drain") else 1 if field.type in (int, "int") else 1e-3
            if not least <= value < 2**53:
                raise UsageError(f"`{field.name}` is {value}; it must be at least {least}")
        if self.max_pictures > self.queue:
            raise UsageError(
                f"`max_pictures` is {self.max_pictures}, more than the `queue` of {self.queue}; such a request would "
                "never be accepted"
            )
