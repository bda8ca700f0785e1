"""A table of two rows on drawn scenes, for the tests of ``reproduce``."""

SET = """set:
  - encoder.name=test_resnet
  - encoder.weights=none
  - views.crop=64
  - train.steps=2
  - train.warmup=1
  - train.batch_size=4
  - train.workers=0
  - train.accelerator=cpu
  - data.source=table
  - label.cam_scales=[1.0]
  - evaluate.bootstrap=20
"""
"""Settings of a run that takes no time, in YAML; more of them may follow in the list."""
SMALL = 'set: ["method.head_options={hidden: 8}", method.warmup=1]'
"""Settings of a row of 'baseline'."""
TABLE = (
    f"""
title: tiny
about: two rows
{SET}"""
    + """seeds: [0, 1]
columns:
  - {title: CAM, split: train, score: cam}
  - {title: val threshold, split: train, score: cam (val threshold)}
  - {title: val, split: val, score: cam}
  - {title: test, split: test, score: segmenter}
rows:
  - {name: first, set: ["method.head_options={hidden: 8}", method.warmup=1], label: true, printed: {test: 61.5}}
  - {name: second, set: [method.name=supervised, "method.head_options={hidden: 8}"], masks_from: first, seeds: [1]}
"""
)


def staged_table(stages: str, rows: str = "") -> str:
    """A table of one seed of a row 'staged' that goes through these stages, and of the rows that are given."""
    head = TABLE.replace("seeds: [0, 1]", f"  - 'stages={stages}'\nseeds: [0]").split("  - {name: first")[0]
    return f"{head}  - {{name: staged, stages: true, {SMALL}}}\n{rows}"
