"""Judges bills of materials with the validators of SPDX and CycloneDX: validate.py SPDX CYCLONEDX"""

import json
import sys

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from license_expression import get_spdx_licensing
from packageurl import PackageURL
from spdx_tools.spdx.parser.parse_anything import parse_file
from spdx_tools.spdx.validation.document_validator import validate_full_spdx_document

problems = []
document = parse_file(sys.argv[1])
problems += [m.validation_message for m in validate_full_spdx_document(document, "SPDX-2.3")]
with open(sys.argv[2], encoding="utf-8") as file:
    text = file.read()
error = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
if error is not None:
    problems.append(str(error))
licensing = get_spdx_licensing()
for component in json.loads(text)["components"]:
    # Our own crates are in no registry, so they have none.
    if "purl" in component:
        PackageURL.from_string(component["purl"])
    for licence in component.get("licenses", []):
        unknown = licensing.unknown_license_keys(licence["expression"])
        problems += [f"unknown licence {key}" for key in unknown if not key.startswith("LicenseRef-")]
print("\n".join(problems))
sys.exit(1 if problems else 0)
