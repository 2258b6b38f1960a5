"""What the agent is made of, as a CycloneDX document: ``scripts/sbom``.

Names, versions and hashes are those of requirements-image.lock, licences those that the installed
packages name. The same lock and packages give the same bytes: the serial number is made of them,
and there is a time only where SOURCE_DATE_EPOCH gives one.
"""

import json
import os
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import HashAlgorithm, HashType
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.bom_ref import BomRef
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import License
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

ROOT = Path(__file__).parent.parent
LOCK = ROOT / "requirements-image.lock"
PIN = re.compile(r"^([a-z0-9][a-z0-9-]*)==(\S+)")
HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")
SPDX_OF = {
    "License :: OSI Approved :: Apache Software License": "Apache-2.0",
    "License :: OSI Approved :: MIT License": "MIT",
}
"""Of the classifiers, those that say all that there is to say."""


def main() -> None:
    """Print the document, or write it to the file that is named."""
    text = document(os.environ)
    if sys.argv[1:]:
        Path(sys.argv[1]).write_text(text)
    else:
        sys.stdout.write(text)


def document(environ: Mapping[str, str]) -> str:
    """Return the document, CycloneDX 1.6. Raises ``SystemExit`` where the environment differs."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    name, version = project["name"], project["version"]
    agent = _component(name, version, ComponentType.APPLICATION)
    agent.licenses.add(LicenseFactory().make_from_string(project["license"]))
    packages = [*_packages(LOCK.read_text())]
    epoch = environ.get("SOURCE_DATE_EPOCH")
    at = None if epoch is None else datetime.fromtimestamp(int(epoch), UTC)
    bom = Bom(components=packages, metadata=BomMetaData(component=agent, timestamp=at))
    bom.register_dependency(agent, packages)
    made: dict[str, Any] = json.loads(JsonV1Dot6(bom).output_as_string())
    if at is None:
        del made["metadata"]["timestamp"]
    del made["serialNumber"]
    made["serialNumber"] = uuid5(NAMESPACE_URL, json.dumps(made, sort_keys=True)).urn
    return json.dumps(made, indent=2, sort_keys=True) + "\n"


def _packages(lock: str) -> Iterator[Component]:
    for block in re.split(r"\n(?=\S)", lock):
        if found := PIN.match(block):
            name, version = found.groups()
            component = _component(name, version, ComponentType.LIBRARY)
            component.licenses.add(_licence(name, version))
            for digest in HASH.findall(block):  # of each file of the release
                component.hashes.add(HashType(alg=HashAlgorithm.SHA_256, content=digest))
            yield component


def _component(name: str, version: str, kind: ComponentType) -> Component:
    url = PackageURL("pypi", None, name, version)
    return Component(
        name=name, version=version, type=kind, purl=url, bom_ref=BomRef(url.to_string())
    )


def _licence(name: str, version: str) -> License:
    try:
        said = metadata(name)
    except PackageNotFoundError:
        raise SystemExit(f"sbom: {name} is not installed: who knows its licence?") from None
    if said["Version"] != version:
        raise SystemExit(f"sbom: {name} is locked as {version} and installed as {said['Version']}")
    classifiers = [c for c in said.get_all("Classifier") or [] if c.startswith("License ::")]
    named = [SPDX_OF.get(c, c.rpartition(" :: ")[2]) for c in classifiers]
    fields = [*(said.get_all("License-Expression") or []), *named, *(said.get_all("License") or [])]
    words = next(filter(None, fields), None)
    if not words:
        raise SystemExit(f"sbom: {name} names no licence")
    return LicenseFactory().make_from_string(words.strip().splitlines()[0])


if __name__ == "__main__":
    main()
