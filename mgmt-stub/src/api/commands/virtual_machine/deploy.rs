//! A new instance.

use super::{Describe, display_name, host_name};
use crate::api::command::Kind::{Flag, Id, Ids, List, Map, Number, Text};
use crate::api::command::{Call, Job, Outcome, Parameter, optional, required};
use crate::api::error::{ApiError, Code};
use crate::download_state::DownloadState;
use crate::offering;
use crate::store::template::{Template, TemplateKind};
use crate::user_vms::{NewUserVm, UserVms};

pub(super) const PARAMETERS: &[Parameter] = &[
    required("zoneid", Id, "the zone"),
    required("serviceofferingid", Id, "how big it is"),
    optional("templateid", Id, "what its root disk is made of; needed"),
    optional("name", Text, "its host name: letters, digits and -"),
    optional("displayname", Text, "its name for people"),
    optional("startvm", Flag, "whether to start it; true if absent"),
    optional("hypervisor", Text, "must be the template's"),
    optional("account", Text, "of an account; the caller's only"),
    optional("domainid", Id, "of a domain; the caller's only"),
    optional("networkids", Ids, "not possible yet: there are no guest networks"),
    optional("iptonetworklist", Map, "not possible yet"),
    optional("ipaddress", Text, "not possible yet"),
    optional("macaddress", Text, "not possible yet"),
    optional("securitygroupids", Ids, "not possible yet"),
    optional("securitygroupnames", List, "not possible yet"),
    optional("affinitygroupids", Ids, "not possible yet"),
    optional("affinitygroupnames", List, "not possible yet"),
    optional("diskofferingid", Id, "not possible yet: it has a root disk only"),
    optional("size", Number, "not possible yet"),
    optional(
        "rootdisksize",
        Number,
        "not possible yet: the root disk is as big as its template",
    ),
    optional("volumeid", Id, "not possible yet"),
    optional("snapshotid", Id, "not possible yet"),
    optional("userdata", Text, "not possible yet: there is no router to hand it out"),
    optional("userdataid", Id, "not possible yet"),
    optional("keypair", Text, "not possible yet"),
    optional("keypairs", List, "not possible yet"),
    optional("password", Text, "not possible yet"),
    optional("details", Map, "not possible yet"),
    optional("projectid", Id, "of a project; there are none"),
];

/// Parameters of CloudStack that would make another instance than the one that the caller gets. Others, such as
/// `keyboard`, change nothing that is there.
const NOT_YET: [(&[&str], &str); 4] = [
    (
        &[
            "networkids",
            "iptonetworklist",
            "ipaddress",
            "macaddress",
            "securitygroupids",
            "securitygroupnames",
        ],
        "there are no guest networks yet, and an instance has no NIC",
    ),
    (
        &["diskofferingid", "size", "rootdisksize", "volumeid", "snapshotid"],
        "an instance has one disk, as big as its template",
    ),
    (
        &["userdata", "userdataid", "keypair", "keypairs", "password"],
        "there is no virtual router yet that would hand it to the instance",
    ),
    (
        &["affinitygroupids", "affinitygroupnames", "details", "projectid"],
        "it has no meaning for the instances of this zone yet",
    ),
];

pub(super) async fn deploy(call: Call) -> Result<Job, ApiError> {
    let user_vms = user_vms(&call)?.clone();
    let store = &call.management.store;
    let zone_id = call.needed_id("zoneid")?;
    let zones = store.zones().await?;
    let zone = zones
        .iter()
        .find(|zone| zone.uuid == zone_id && zone.id == user_vms.pool().zone);
    let zone = zone.ok_or_else(|| ApiError::no_such_id("zoneid", zone_id))?;
    let offering_id = call.needed_id("serviceofferingid")?;
    let offering = offering::find(offering_id).ok_or_else(|| ApiError::no_such_id("serviceofferingid", offering_id))?;
    for (names, why) in NOT_YET {
        if let Some(name) = names.iter().find(|name| is_given(&call, name)) {
            let text = format!("parameter {name} cannot be used: {why}");
            return Err(ApiError::new(Code::Unsupported, text));
        }
    }
    own_account(&call).await?;
    let host_name = call.text("name").map(host_name).transpose()?.map(str::to_owned);
    let display_name = call
        .text("displayname")
        .map(display_name)
        .transpose()?
        .map(str::to_owned);
    let template = template(&call, &user_vms).await?;
    if template.facts.zone != zone.id {
        return Err(ApiError::parameter(format!(
            "template {} is in another zone",
            template.facts.name
        )));
    }
    let identity = &call.caller.identity;
    let new = NewUserVm {
        host_name,
        display_name,
        template,
        offering,
        account: identity.account.id,
        user: identity.user.id,
    };
    let is_admin = call.caller.is_admin();
    let vm = user_vms
        .create(new)
        .await
        .map_err(|error| super::life::told(error, is_admin))?;
    let is_started = call.flag("startvm") != Some(false);
    let description = format!("deploying instance {}", vm.display_name);
    let id = vm.uuid;
    let work = async move {
        let vm = if is_started {
            let deployed = user_vms.deploy(vm.id).await;
            deployed.map_err(|error| super::life::told(error, is_admin))?
        } else {
            vm
        };
        let row = Describe::new(&call).await?.row(&call, &vm);
        Ok(Outcome::Object("virtualmachine", row))
    };
    Ok(Job::new(description, work).creates("VirtualMachine", id))
}

/// Who runs them.
pub(super) fn user_vms(call: &Call) -> Result<&UserVms, ApiError> {
    call.management.zone.user_vms.as_ref().ok_or_else(|| {
        let text = "this zone has no hypervisor for instances; start the server with --driver qemu";
        ApiError::new(Code::Unsupported, text)
    })
}

fn is_given(call: &Call, name: &str) -> bool {
    call.text(name).is_some()
        || call.id(name).is_some()
        || call.number(name).is_some()
        || call.ids(name).is_some_and(|ids| !ids.is_empty())
        || !call.list(name).is_empty()
        || !call.map(name).is_empty()
}

/// For others nobody deploys: accounts have no limits yet that it would count against.
async fn own_account(call: &Call) -> Result<(), ApiError> {
    let account = &call.caller.identity.account;
    let domains = call.management.store.domains().await?;
    let domain = domains.iter().find(|domain| domain.id == account.domain);
    let is_own = call.text("account").is_none_or(|name| name == account.name)
        && call
            .id("domainid")
            .is_none_or(|id| domain.is_some_and(|domain| domain.uuid == id));
    if is_own {
        Ok(())
    } else {
        let text = "an instance belongs to who deploys it; leave account and domainid away, or log in as its owner";
        Err(ApiError::new(Code::Permission, text))
    }
}

async fn template(call: &Call, user_vms: &UserVms) -> Result<Template, ApiError> {
    let id = call.id("templateid").ok_or_else(|| {
        ApiError::parameter("Unable to execute API command deployvirtualmachine due to missing parameter templateid")
    })?;
    let found = call.management.store.templates().await?;
    let found = found.into_iter().find(|(template, _)| {
        let facts = &template.facts;
        let is_open = facts.is_public || facts.account == call.caller.identity.account.id || call.caller.is_admin();
        template.uuid == id && is_open
    });
    let (template, on_stores) = found.ok_or_else(|| ApiError::no_such_id("templateid", id))?;
    let facts = &template.facts;
    let hypervisor = user_vms.driver().hypervisor();
    let problem = if facts.kind == TemplateKind::Iso {
        Some("is an ISO, which instances cannot start from yet".to_owned())
    } else if !facts.hypervisor.eq_ignore_ascii_case(hypervisor) {
        Some(format!("is for {}, and this zone has {hypervisor}", facts.hypervisor))
    } else if !on_stores.iter().any(|row| row.state == DownloadState::Downloaded) {
        Some("is not ready yet; listTemplates shows how far it is".to_owned())
    } else {
        let wanted = call
            .text("hypervisor")
            .filter(|wanted| !wanted.eq_ignore_ascii_case(&facts.hypervisor));
        wanted.map(|_| format!("is for {}, not for the hypervisor given", facts.hypervisor))
    };
    match problem {
        Some(problem) => Err(ApiError::parameter(format!("template {} {problem}", facts.name))),
        None => Ok(template),
    }
}
