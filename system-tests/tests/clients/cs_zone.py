"""What `cs` does with a zone: python cs_zone.py ENDPOINT KEY SECRET IMAGE_URL CHECKSUM VM_ID."""

import json
import sys
import time

from cs import CloudStack

endpoint, key, secret, image, checksum, vm = sys.argv[1:]
cs = CloudStack(endpoint=endpoint, key=key, secret=secret, poll_interval=0.5, job_timeout=60)


def found(id, filter="executable"):
    return [one for one in cs.listTemplates(templatefilter=filter, fetch_list=True) if one["id"] == id]


zone = cs.listZones(name="zone1")["zone"][0]
template = cs.registerTemplate(
    name="from-cs", displaytext="From cs", url=image, checksum=checksum, format="RAW", hypervisor="KVM", zoneid=zone["id"]
)["template"][0]
limit = time.monotonic() + 120
while not found(template["id"]):
    if time.monotonic() > limit:
        sys.exit(f"not ready: {found(template['id'], 'self')}")
    time.sleep(0.5)
ready = found(template["id"])[0]
endpoint = cs.createConsoleEndpoint(virtualmachineid=vm)["consoleendpoint"]
deleted = cs.deleteTemplate(id=template["id"], zoneid=zone["id"], fetch_result=True)
print(
    json.dumps(
        {
            "ready": {name: ready[name] for name in ("name", "isready", "status", "size", "format", "zonename", "checksum")},
            "system_vms": sorted((one["systemvmtype"], one["state"]) for one in cs.listSystemVms(fetch_list=True)),
            "console": [endpoint["success"], endpoint["url"].split("/")[0], sorted(endpoint["websocket"])],
            "deleted": deleted,
            "left": found(template["id"], "all"),
        }
    )
)
