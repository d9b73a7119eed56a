"""A third-party package: a pass that estimates how many bytes each operation moves."""

from lens.registry import Plugin

PLUGIN = Plugin(
    "intensity",
    passes={"traffic": "lens_intensity.traffic:TrafficPass"},
    facets={"traffic": "lens_intensity.traffic:Traffic"},
)
