"""What apache-libcloud sees: python libcloud_client.py HOST PORT KEY SECRET."""

import json
import sys

from libcloud.common.types import InvalidCredsError
from libcloud.compute.providers import get_driver
from libcloud.compute.types import Provider

host, port, key, secret = sys.argv[1:]


def driver(secret):
    return get_driver(Provider.CLOUDSTACK)(key, secret, secure=False, host=host, port=int(port), path="/client/api")


def refused(call):
    try:
        call()
    except InvalidCredsError as error:
        return str(error)
    except Exception as error:  # told to the test, which compares
        return f"{type(error).__name__}: {error}"
    return "it was not refused"


good = driver(secret)
zone = good.list_locations()[0]
good.ex_create_tags([zone.id], "Zone", {"origin": "libcloud ~ /"})
good._sync_request(
    command="registerTemplate",
    params={
        "name": "cirros",
        "displaytext": "CirrOS",
        "url": "http://192.0.2.1/cirros.qcow2",
        "format": "QCOW2",
        "hypervisor": "KVM",
        "zoneid": zone.id,
    },
)
print(
    json.dumps(
        {
            "images": [[image.name, image.extra["hypervisor"], image.extra["format"]] for image in good.list_images()],
            "locations": [location.name for location in good.list_locations()],
            "networks": len(good.ex_list_networks()),
            "volumes": len(good.list_volumes()),
            "os_types": any(kind["name"].startswith("Debian") for kind in good.ex_list_os_types()),
            "wrong_secret": refused(lambda: driver("wrong").list_locations()),
        }
    )
)
