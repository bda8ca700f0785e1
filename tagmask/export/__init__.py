"""A trained segmenter as a network that runs elsewhere, and its masks without torch."""
