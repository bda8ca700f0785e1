"""The viewer: a run's photos, tags and masks in a browser, where people look, decide and correct."""
