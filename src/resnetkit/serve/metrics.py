"""What a server counts, for Prometheus. No picture and no name of a picture is kept."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
PICTURES = (1, 2, 4, 8, 16, 32, 64, 128)
OBJECTS = (0, 1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """The counters of one server, in a registry of their own. Several threads may use them."""

    content_type = CONTENT_TYPE_PLAIN_0_0_4

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "resnetkit_requests", "Requests by route and status.", ("route", "status"), registry=registry
        )
        self.request_seconds = Histogram(
            "resnetkit_request_seconds",
            "From the header to the answer.",
            ("route",),
            buckets=SECONDS,
            registry=registry,
        )
        self.stage_seconds = Histogram(
            "resnetkit_stage_seconds",
            "Time by stage: read a body; decode a picture; queue, a picture waits for its batch; compute a batch.",
            ("model", "stage"),
            buckets=SECONDS,
            registry=registry,
        )
        self.batch_pictures = Histogram(
            "resnetkit_batch_pictures", "Pictures in a batch.", ("model",), buckets=PICTURES, registry=registry
        )
        self.pictures = Counter(
            "resnetkit_pictures",
            "Pictures by outcome: answered, unreadable, expired, cancelled, failed.",
            ("model", "outcome"),
            registry=registry,
        )
        self.refused = Counter(
            "resnetkit_refused",
            "Requests that were refused, by reason: queue, memory, body, key, draining.",
            ("reason",),
            registry=registry,
        )
        self.in_flight = Gauge(
            "resnetkit_in_flight_pictures",
            "Pictures that are decoded, wait or are computed.",
            ("model",),
            registry=registry,
        )
        self.rejected = Counter(
            "resnetkit_rejected_pictures",
            "Answered pictures that seem to be of no known class; only of models with a calibration.",
            ("model",),
            registry=registry,
        )
        self.detections = Counter(
            "resnetkit_detections",
            "Objects in answered pictures by class, by the thresholds of the model file; only of detectors.",
            ("model", "label"),
            registry=registry,
        )
        self.detections_per_picture = Histogram(
            "resnetkit_detections_per_picture",
            "Objects in an answered picture, by the thresholds of the model file; only of detectors.",
            ("model",),
            buckets=OBJECTS,
            registry=registry,
        )
        self.drift = Gauge(
            "resnetkit_drift",
            "0 to 1: how far the confidences of the last pictures are from those of the validation.",
            ("model",),
            registry=registry,
        )
        self.drift_shift = Gauge(
            "resnetkit_drift_shift",
            "Distance of the mean logits of the last pictures from those of the validation, in its standard "
            "deviations; mean over the classes.",
            ("model",),
            registry=registry,
        )
        self.drift_frechet = Gauge(
            "resnetkit_drift_frechet",
            "Distance of means and standard deviations of the logits from those of the validation, in its standard "
            "deviations; root mean square over the classes.",
            ("model",),
            registry=registry,
        )
        self.drift_pictures = Gauge(
            "resnetkit_drift_pictures",
            "Pictures that resnetkit_drift_shift and resnetkit_drift_frechet rest on, up to 1000.",
            ("model",),
            registry=registry,
        )
        self.loads = Counter(
            "resnetkit_model_loads",
            "Times that a model was loaded, by outcome: done, failed.",
            ("model", "outcome"),
            registry=registry,
        )

    def text(self) -> bytes:
        """Return all of them in Prometheus' text format."""
        return generate_latest(self.registry)
