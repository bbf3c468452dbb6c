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
template = good.registerTemplate(
    name="cirros",
    displaytext="CirrOS ~ 1/2",
    url="http://192.0.2.1/cirros.qcow2",
    format="QCOW2",
    hypervisor="KVM",
    zoneid=zone["id"],
    ostypeid=good.listOsTypes(description="Other Linux (64-bit)")["ostype"][0]["id"],
)["template"][0]
listed = good.listTemplates(templatefilter="self", fetch_list=True)
deleted = good.deleteTemplate(id=template["id"], zoneid=zone["id"], fetch_result=True)
print(
    json.dumps(
        {
            "registered": [template["name"], template["displaytext"], template["isready"], template["zonename"]],
            "listed": [found["id"] == template["id"] for found in listed],
            "deleted": deleted,
            "listed_then": good.listTemplates(templatefilter="self", fetch_list=True),
            "no_such_template": refused(lambda: good.listTemplates(templatefilter="self", id=template["id"])),
            "bad_url": refused(
                lambda: good.registerTemplate(
                    name="x", url="gopher://x/y", format="QCOW2", hypervisor="KVM", zoneid=zone["id"]
                )
            )["errorcode"],
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
