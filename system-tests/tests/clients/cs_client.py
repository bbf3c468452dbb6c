"""What the client `cs` sees: python cs_client.py ENDPOINT KEY SECRET."""

import json
import sys

from cs import CloudStack, CloudStackApiException

endpoint, key, secret = sys.argv[1:]


def client(**changes):
    return CloudStack(**{"endpoint": endpoint, "key": key, "secret": secret, **changes})


def refused(call):
    try:
        call()
    except CloudStackApiException as error:
        return error.error
    return "it was not refused"


good = client()
zone = good.listZones()["zone"][0]
# ~ and other characters that clients encode differently; a map; a job that is polled.
value = "a ~b/c=d&e,f[0]*ü"
tagged = good.createTags(
    resourcetype="Zone", resourceids=zone["id"], tags=[{"key": "color", "value": value}], fetch_result=True
)
print(
    json.dumps(
        {
            "zones": [zone["name"] for zone in good.listZones(fetch_list=True)],
            "tagged": tagged,
            "value": good.listZones(id=zone["id"])["zone"][0]["tags"][0]["value"] == value,
            "by_tag": good.listZones(tags=[{"key": "color", "value": value}])["count"],
            # fetch_list asks for pages until it has all.
            "os_types": len(good.listOsTypes(fetch_list=True, pagesize=10)),
            "os_types_count": good.listOsTypes()["count"],
            "by_post": client(method="post").listZones()["count"],
            "by_expiring": client(expiration=600).listZones()["count"],
            "wrong_secret": refused(lambda: client(secret="wrong").listZones()),
            "unknown": refused(lambda: good.frobnicate()),
            "pagesize_alone": refused(lambda: good.listZones(pagesize=10)),
        }
    )
)
