"""`fcmae bench`: time and memory of every backend on this machine, side by side."""

import functools
import json

SUMMARY = "time and memory of every backend on your machine"


def run(arguments: list[str]) -> None:
    """Measure, print a table, and write results.json and a PNG per part; or measure reading."""
    from fcmae.settings.arguments import make_output
    from fcmae.settings.bench import BenchSettings
    from fcmae.settings.reading import parse

    settings = parse(BenchSettings, _spelt_out(arguments), prog="fcmae bench")

    import torch

    from fcmae.machine.bench import measure, output
    from fcmae.machine.bench.authors import check_clone
    from fcmae.machine.bench.suite import RESERVE, as_markdown, run_suite, write_suite
    from fcmae.machine.hardware import computing
    from fcmae.model.backbones import check_backbone_name
    from fcmae.training.processes import choose_device
    from sparse.backends.minkowski import load_minkowski_engine
    from sparse.ops.compiler import missing_kernels

    for name in settings.models:
        check_backbone_name(name)
    if settings.against:
        check_clone(settings.against[1], settings.models)
        load_minkowski_engine()
    device = choose_device(settings.device, setting="--device")
    _, image_size, threads = settings.sizes[0]
    if threads:
        torch.set_num_threads(threads)
    if settings.starting:
        from fcmae.machine.bench.starting import describe_starting, measure_starting

        print(computing(torch.device("cpu")))
        print(describe_starting(*measure_starting(settings.repeats)))
        return
    if settings.data is not None:
        from fcmae.machine.bench.reading import measure_reading
        from fcmae.machine.bench.tiff_crops import measure_tiff

        print(computing(torch.device("cpu")))
        reading = measure_reading(settings.data, settings.models, image_size, settings.repeats)
        print(reading.describe())
        print(measure_tiff(image_size, settings.repeats).describe())
        return
    folder = make_output(settings.output)
    machine = computing(device)
    print(machine)
    reason = missing_kernels() if device.type == "cpu" else None
    if reason is not None:
        print(f"the compiled CPU kernels are not used, so native is slower: {reason}")
    if settings.suite:
        found = run_suite(
            device,
            is_small=settings.small,
            seconds=60 * settings.minutes - RESERVE,
            keep=functools.partial(write_suite, folder, machine),
        )
        print(as_markdown(machine, found))
        print(f"written: {folder}/suite.json and {folder}/suite.md")
        return
    results, rates = measure(settings, device)
    print(output.describe_rates(rates))
    print(output.as_table(results, rates))
    if len(settings.sizes) > 1:
        print(output.describe_scaling(results))
    output.write_json(folder / "results.json", settings, results, rates, machine)
    for part in settings.parts:
        output.draw(folder / f"{part}.png", results, part)
    print(f"written: {folder}/results.json and a PNG of each part")


def _spelt_out(arguments: list[str]) -> list[str]:
    """Give flags their value, put `--against authors FOLDER` as a list, and compare whole steps.

    Unless parts are named.
    """
    flags = ("--suite", "--small", "--starting")
    arguments = [f"{word}=true" if word in flags else word for word in arguments]
    if "--against" not in arguments:
        return arguments
    at = arguments.index("--against")
    named, rest = arguments[at + 1 : at + 3], arguments[at + 3 :]
    listed = json.dumps(named if len(named) == 2 else [*named, ""])
    parts = [] if any(word.startswith("--parts") for word in arguments) else ["--parts", "[step]"]
    return [*arguments[:at], *parts, "--against", listed, *rest]
