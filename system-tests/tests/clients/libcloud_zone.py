"""What apache-libcloud does with a zone: python libcloud_zone.py HOST PORT KEY SECRET IMAGE_URL CHECKSUM VM_ID.

It has no methods for registering and deleting templates and for consoles: these go through its connection.
"""

import json
import sys
import time

from libcloud.compute.providers import get_driver
from libcloud.compute.types import Provider

host, port, key, secret, image, checksum, vm = sys.argv[1:]
driver = get_driver(Provider.CLOUDSTACK)(key, secret, secure=False, host=host, port=int(port), path="/client/api")
zone = driver.list_locations()[0]
template = driver._sync_request(
    command="registerTemplate",
    params={
        "name": "from-libcloud",
        "displaytext": "From libcloud",
        "url": image,
        "checksum": checksum,
        "format": "RAW",
        "hypervisor": "KVM",
        "zoneid": zone.id,
    },
)["template"][0]
limit = time.monotonic() + 120
while not (ready := [one for one in driver.list_images(location=zone) if one.id == template["id"]]):
    if time.monotonic() > limit:
        sys.exit("the template is not ready")
    time.sleep(0.5)
console = driver._sync_request(command="createConsoleEndpoint", params={"virtualmachineid": vm})["consoleendpoint"]
deleted = driver._async_request(command="deleteTemplate", params={"id": template["id"]})
print(
    json.dumps(
        {
            "ready": [ready[0].name, ready[0].extra["hypervisor"], ready[0].extra["format"], ready[0].extra["size"]],
            "console": [console["success"], console["url"].split("/")[0]],
            "deleted": deleted,
            "left": [one.name for one in driver.list_images()],
        }
    )
)
