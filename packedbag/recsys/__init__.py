"""The main job: read click logs, train a click-through-rate model on packed tables, measure it."""
