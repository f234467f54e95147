"""The commands from Python, in the order in which one needs them."""

# [runs]
import fcmae

run = fcmae.pretrain("/path/to/images", "runs/mine", **{"train.time": "20min"})
loss = run.metrics["loss"]  # an array; run.health has the measures of held-out images
vectors = run.embed("/path/to/images").vectors  # [N, D], features of the frozen encoder
tuned = fcmae.finetune("/path/to/labelled", "runs/mine-finetune", weights=run)
# [predict]
model = fcmae.load("runs/mine-finetune")  # or a file or folder that it exported
found = model.predict("/path/to/new/images")  # or paths, arrays [H, W, C], pictures of Pillow
print(found.labels, found.probabilities)  # names, and shares [N, C]
print(found.problems)  # {file: reason} of those that cannot be read
# [inspect]
inspected = fcmae.inspect("/path/to/images")
print(inspected.problems)  # {file: reason}
settings = inspected.settings  # what fcmae.pretrain(config=...) takes
inspected.save("inspection.html", write="my.yaml")
# [curate]
curated = fcmae.curate(run, "/path/to/images")
print(curated.near_duplicates, curated.odd_pictures, curated.label_first)  # paths
curated.save("curation")
# [verify]
certificate = fcmae.verify(run)
print(certificate.holds, certificate.to_text())
# [compare]
starts = {"own": run, "scratch": None}  # also files, and names of public weights
compared = fcmae.compare(
    "/path/to/labelled",
    "runs/compared",
    starts=starts,
    shares=[10, 100],
    **{"train.steps": 500},
)
print(compared.sentences)  # what differs beyond noise
columns = compared.columns  # the table by its columns
# [ablate]
ratios = {"mask.ratio": [0.4, 0.6, 0.8], "train.seed": [0, 1, 2]}
grid = fcmae.ablate(
    "/path/to/images",
    "runs/ratios",
    "convnextv2_atto",
    grid=ratios,
    **{"base.train.steps": 500},
)
grid.save("report")  # report.html, report.md and report.csv
