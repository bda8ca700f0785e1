"""What several methods share, on top of ``base``: settings, labels, networks and terms. Nothing here is a method."""
