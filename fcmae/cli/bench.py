"""`fcmae bench`: time and memory of every backend on this machine, side by side."""

from pathlib import Path

SUMMARY = "time and memory of every backend on your machine"


def run(arguments: list[str]) -> None:
    """Measure, print a table, and write results.json and a PNG per part; or measure reading."""
    from fcmae.settings.bench import BenchSettings
    from fcmae.settings.reading import parse

    settings = parse(BenchSettings, arguments, prog="fcmae bench")

    import torch

    from fcmae.errors import ConfigError
    from fcmae.machine.bench import measure, output
    from fcmae.machine.hardware import computing
    from fcmae.model.backbones import check_backbone_name
    from fcmae.training.processes import choose_device
    from sparse.ops.compiler import missing_kernels

    for name in settings.models:
        check_backbone_name(name)
    device = choose_device(settings.device, setting="--device")
    if settings.threads:
        torch.set_num_threads(settings.threads)
    if settings.data is not None:
        from fcmae.machine.bench.reading import measure_reading
        from fcmae.machine.bench.tiff_crops import measure_tiff

        print(computing(torch.device("cpu")))
        _, image_size = settings.sizes[0]
        reading = measure_reading(settings.data, settings.models, image_size, settings.repeats)
        print(reading.describe())
        print(measure_tiff(image_size, settings.repeats).describe())
        return
    folder = Path(settings.output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"--output: {settings.output!r} cannot be made ({error.strerror}); name another folder."
        ) from error
    machine = computing(device)
    print(machine)
    reason = missing_kernels() if device.type == "cpu" else None
    if reason is not None:
        print(f"the compiled CPU kernels are not used, so native is slower: {reason}")
    results, rates = measure(settings, device)
    print(output.describe_rates(rates))
    print(output.as_table(results, rates))
    if len(settings.sizes) > 1:
        print(output.describe_scaling(results))
    output.write_json(folder / "results.json", settings, results, rates, machine)
    for part in settings.parts:
        output.draw(folder / f"{part}.png", results, part)
    print(f"written: {folder}/results.json and a PNG of each part")
