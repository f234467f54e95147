"""Errors of the sparse encoder, each naming the reason and what to do instead."""


class UnsupportedModelError(ValueError):
    """The dense model has a part that cannot run at visible sites only; the message names it."""


class BackendUnavailableError(ImportError):
    """A backend was asked for whose library cannot be imported on this machine."""
