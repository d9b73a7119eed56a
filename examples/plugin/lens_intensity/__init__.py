"""A third-party package: a capture backend, a pass that estimates how many bytes each operation moves, a renderer."""

from lens.registry import Plugin

PLUGIN = Plugin(
    "intensity",
    passes={"traffic": "lens_intensity.traffic:TrafficPass"},
    facets={"traffic": "lens_intensity.traffic:Traffic"},
    backends={"plain_mode": "lens_intensity.plain_mode:PlainModeBackend"},
    renderers={"edges": "lens_intensity.edges:EdgesRenderer"},
)
