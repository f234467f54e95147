"""Run as a module of its own: fetch a source release as pip would, without running setup.py.

`pip download` runs setup.py to ask for dependencies, and MinkowskiEngine's uninstalls things. So
pip's own finder is asked here, which knows the user's mirrors, proxies, certificates and logins.
"""

import sys
from pathlib import Path

from pip._internal.commands.download import DownloadCommand
from pip._vendor.packaging.specifiers import SpecifierSet


def fetch(name: str, version: str, path: Path) -> None:
    """Save the source release of `name` at exactly `version` to `path`."""
    command = DownloadCommand("download", "")
    with command.main_context():
        options, _ = command.parse_args(["--no-binary", ":all:", "--no-input", "--quiet", name])
        session = command.get_default_session(options)
        finder = command._build_package_finder(options=options, session=session)
        best = finder.find_best_candidate(name, SpecifierSet(f"=={version}")).best_candidate
        if best is None:
            sys.exit(f"the package index has no source release of {name} {version}")
        response = session.get(best.link.url_without_fragment)
        response.raise_for_status()
        path.write_bytes(response.content)


if __name__ == "__main__":
    fetch(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
