"""A table of two rows on drawn scenes, for the tests of ``reproduce``."""

SET = """set:
  - encoder.name=resnet18
  - encoder.weights=none
  - views.crop=64
  - train.steps=2
  - train.warmup=1
  - train.batch_size=4
  - train.workers=0
  - train.accelerator=cpu
  - data.source=demo
  - data.demo_images=12
  - label.cam_scales=[1.0]
  - evaluate.bootstrap=20
"""
"""Settings of a run that takes no time, in YAML; more of them may follow in the list."""
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
