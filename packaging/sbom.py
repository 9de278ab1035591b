"""Write the software bill of materials of the wheel (CycloneDX 1.6): what it requires and what it carries.

``python packaging/sbom.py`` writes ``src/pfungst/sbom.cdx.json``; a test holds that it is current. It has no
date and no serial number, so that the same tree makes the same wheel.
"""

import hashlib
import json
import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
TARGET = ROOT / "src" / "pfungst" / "sbom.cdx.json"
PACKAGE = ROOT / "src" / "pfungst"
CARRIED = {  # files that are no code of ours: what they are, their licence and where they come from
    "label/static/htmx.min.js": ("htmx", "0BSD", "https://htmx.org"),
    "data/imagenet_classes.txt.xz": (
        "WordNet ids and names of the ImageNet classes",
        "WordNet",
        "https://wordnet.princeton.edu",
    ),
    "audit/weights/classifier.safetensors": ("demo classifier", "Apache-2.0", "pfungst demo --train"),
    "audit/weights/encoder.safetensors": ("demo encoder", "Apache-2.0", "pfungst demo --train"),
}


def bill() -> str:
    """The document, as it stands in the file."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    reference = f"pkg:pypi/pfungst@{project['version']}"
    required = [_required(line) for line in project["dependencies"]]
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "component": {
                "type": "library",
                "bom-ref": reference,
                "name": "pfungst",
                "version": project["version"],
                "licenses": [{"license": {"id": "Apache-2.0"}}],
                "purl": reference,
            }
        },
        "components": required + [_carried(name, *about) for name, about in CARRIED.items()],
        "dependencies": [{"ref": reference, "dependsOn": [c["bom-ref"] for c in required]}],
    }
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def _required(line: str) -> dict:
    name, versions = re.fullmatch(r"([\w.-]+)(.*)", line).groups()
    purl = f"pkg:pypi/{name.lower().replace('_', '-')}"
    limits = "vers:pypi/" + "|".join(versions.replace(" ", "").split(","))
    return {
        "type": "library",
        "bom-ref": purl,
        "name": name,
        "purl": purl,
        "properties": [{"name": "pfungst:versions", "value": limits}],
    }


def _carried(name: str, title: str, licence: str, source: str) -> dict:
    data = (PACKAGE / name).read_bytes()
    version = re.search(rb'version:"([\d.]+)"', data) if name.endswith(".js") else None
    known = licence in ("0BSD", "Apache-2.0")
    return {
        "type": "library" if name.endswith(".js") else "data",
        "bom-ref": name,
        "name": title,
        **({"version": version[1].decode()} if version else {}),
        "hashes": [{"alg": "SHA-256", "content": hashlib.sha256(data).hexdigest()}],
        "licenses": [{"license": {"id" if known else "name": licence}}],
        "externalReferences": [{"type": "website", "url": source}] if "://" in source else [],
        "properties": [{"name": "pfungst:file", "value": f"pfungst/{name}"}],
    }


if __name__ == "__main__":
    TARGET.write_text(bill(), encoding="utf-8")
    print(TARGET.relative_to(ROOT))
