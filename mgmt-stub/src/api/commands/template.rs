//! Templates and ISOs.

use std::collections::BTreeMap;
use std::time::Duration;

use protocol::transfer::ImageFormat;
use serde_json::{Value, json};

use super::os_type;
use super::owner::{Owners, fields as owner_fields};
use crate::api::command::Kind::{Date, Flag, Id, Ids, List, Map, Number, Object, Text};
use crate::api::command::{Call, Command, Field, Job, Outcome, Parameter, Who, optional, required};
use crate::api::error::{ApiError, Code};
use crate::api::{date, list};
use crate::configuration::HYPERVISOR_LIST;
use crate::download_state::{ATTEMPTS, DownloadState};
use crate::downloads::{DeleteError, hypervisor, image_format, with_room, words_of};
use crate::store::image_store::ImageStore;
use crate::store::template::{TemplateFacts, TemplateKind, TemplateOnStores, TemplateStore};
use crate::store::zone::Zone;

/// Bytes.
const MAX_NAME: usize = 255;
const MAX_TEXT: usize = 4096;
const MAX_URL: usize = 2048;

/// Algorithms of checksums, and how many digits each has.
const CHECKSUMS: [(&str, usize); 6] = [
    ("MD5", 32),
    ("SHA-1", 40),
    ("SHA-224", 56),
    ("SHA-256", 64),
    ("SHA-384", 96),
    ("SHA-512", 128),
];

const FIELDS: &[Field] = &[
    Field("id", Text, "the template or ISO"),
    Field("name", Text, "its name"),
    Field("displaytext", Text, "a description"),
    Field("ispublic", Flag, "whether all accounts may use it"),
    Field("isfeatured", Flag, "whether it is offered first"),
    Field("isready", Flag, "whether it can be used"),
    Field("isextractable", Flag, "whether it can be downloaded"),
    Field("bootable", Flag, "whether a VM can start from it"),
    Field("passwordenabled", Flag, "whether it takes a password at the start"),
    Field("sshkeyenabled", Flag, "whether it takes SSH keys at the start"),
    Field("requireshvm", Flag, "whether it needs hardware virtualisation"),
    Field(
        "isdynamicallyscalable",
        Flag,
        "whether VMs of it can grow while they run",
    ),
    Field("directdownload", Flag, "whether hosts download it themselves"),
    Field("crossZones", Flag, "whether it is in all zones"),
    Field("created", Date, "when it was registered"),
    Field("format", Text, "such as QCOW2"),
    Field("hypervisor", Text, "for which hypervisor"),
    Field("templatetype", Text, "USER"),
    Field("templatetag", Text, "for placement"),
    Field("arch", Text, "processor"),
    Field("bits", Number, "32 or 64"),
    Field("ostypeid", Text, "id of its operating system"),
    Field("ostypename", Text, "name of its operating system"),
    Field("zoneid", Text, "id of the zone"),
    Field("zonename", Text, "name of the zone"),
    Field("status", Text, "how far its download is, or why it failed"),
    Field("size", Number, "bytes of the disk"),
    Field("physicalsize", Number, "bytes of the file"),
    Field("checksum", Text, "of the file"),
    Field("url", Text, "where it comes from"),
    Field("details", Object, "more of it"),
    Field(
        "downloaddetails",
        Object,
        "how far its download is, for each image store; our own: bytes, rate, eta, attempt, attempts, nextattempt, error",
    ),
    Field("downloadstate", Text, "such as DOWNLOAD_IN_PROGRESS; our own field"),
    Field("downloadpercent", Number, "how much has come; our own field"),
    Field("downloadbytes", Number, "bytes that have come; our own field"),
    Field("downloadrate", Number, "bytes per second; our own field"),
    Field("downloadeta", Number, "seconds to go; our own field"),
    Field(
        "downloadattempt",
        Number,
        "which attempt this is, of downloadattempts; our own field",
    ),
    Field("downloadattempts", Number, "attempts, at most; our own field"),
    Field("downloadnext", Date, "when the next attempt begins; our own field"),
    Field("downloaderror", Text, "why it failed; our own field"),
    Field("account", Text, "name of the account"),
    Field("accountid", Text, "id of the account"),
    Field("domain", Text, "name of the domain"),
    Field("domainid", Text, "id of the domain"),
    Field("domainpath", Text, "path of the domain"),
    Field("tags", Object, "its tags"),
];

const LIST_ISOS: &[Parameter] = &[
    optional(
        "isofilter",
        Text,
        "featured, self, selfexecutable, sharedexecutable, executable, community or all",
    ),
    optional("bootable", Flag, "whether a VM can start from it"),
    optional("ispublic", Flag, "whether all accounts may use it"),
    optional("id", Id, "one ISO"),
    optional("name", Text, "its name"),
    optional("hypervisor", Text, "for which hypervisor"),
    optional("zoneid", Id, "in a zone"),
    optional("isready", Flag, "whether it can be used"),
    optional("arch", Text, "processor"),
    optional("imagestoreid", Id, "on an image store"),
    optional("showremoved", Flag, "removed ones are not kept"),
    optional("showunique", Flag, "each once; it is in one zone anyhow"),
    optional("tags", Map, "with all these tags"),
    optional("account", Text, "of an account; with domainid"),
    optional("domainid", Id, "of a domain"),
    optional("projectid", Id, "of a project; there are none"),
    optional("listall", Flag, "also of other accounts"),
    optional("isrecursive", Flag, "also in the domains below"),
];

pub(super) const COMMANDS: &[Command] = &[
    Command::sync(
        "registerTemplate",
        "Registers a template that a secondary storage VM downloads from a URL.",
        |call| Box::pin(register(call, TemplateKind::Template)),
    )
    .open_to(Who::User)
    .takes(&[
        required("format", Text, "QCOW2, RAW, VHD, VHDX, VMDK or OVA"),
        required("hypervisor", Text, "for which hypervisor, such as KVM"),
        required("name", Text, "its name"),
        required("url", Text, "http or https"),
        optional("zoneid", Id, "the zone; -1 is all"),
        optional("zoneids", Ids, "the zones"),
        optional("displaytext", Text, "a description"),
        optional("checksum", Text, "of the file: {SHA-256}… or the digits alone"),
        optional("ostypeid", Id, "its operating system"),
        optional("bits", Number, "32 or 64"),
        optional("arch", Text, "processor; x86_64 or aarch64"),
        optional("isfeatured", Flag, "offer it first"),
        optional("ispublic", Flag, "let all accounts use it"),
        optional("isextractable", Flag, "let users download it"),
        optional("requireshvm", Flag, "it needs hardware virtualisation"),
        optional("passwordenabled", Flag, "it takes a password at the start"),
        optional("sshkeyenabled", Flag, "it takes SSH keys at the start"),
        optional("isdynamicallyscalable", Flag, "VMs of it can grow while they run"),
        optional("templatetag", Text, "for placement"),
        optional("details", Map, "more of it: details[0].key=…"),
        optional("account", Text, "of an account; the caller's only"),
        optional("domainid", Id, "of a domain; the caller's only"),
    ])
    .answers(FIELDS),
    Command::sync(
        "registerIso",
        "Registers an ISO that a secondary storage VM downloads from a URL.",
        |call| Box::pin(register(call, TemplateKind::Iso)),
    )
    .open_to(Who::User)
    .takes(&[
        required("name", Text, "its name"),
        required("url", Text, "http or https"),
        optional("zoneid", Id, "the zone; -1 is all"),
        optional("displaytext", Text, "a description"),
        optional("checksum", Text, "of the file: {SHA-256}… or the digits alone"),
        optional("ostypeid", Id, "its operating system"),
        optional("arch", Text, "processor; x86_64 or aarch64"),
        optional("bootable", Flag, "a VM can start from it; true if absent"),
        optional("isfeatured", Flag, "offer it first"),
        optional("ispublic", Flag, "let all accounts use it"),
        optional("isextractable", Flag, "let users download it"),
        optional("passwordenabled", Flag, "it takes a password at the start"),
        optional("isdynamicallyscalable", Flag, "VMs of it can grow while they run"),
        optional("account", Text, "of an account; the caller's only"),
        optional("domainid", Id, "of a domain; the caller's only"),
    ])
    .answers(FIELDS),
    Command::list("listTemplates", "Lists the templates.", |call| {
        Box::pin(list_all(call, TemplateKind::Template))
    })
    .open_to(Who::User)
    .takes(&[
        required(
            "templatefilter",
            Text,
            "featured, self, selfexecutable, sharedexecutable, executable, community or all",
        ),
        optional("id", Id, "one template"),
        optional("ids", Ids, "these templates"),
        optional("name", Text, "its name"),
        optional("hypervisor", Text, "for which hypervisor"),
        optional("zoneid", Id, "in a zone"),
        optional("isready", Flag, "whether it can be used"),
        optional("arch", Text, "processor"),
        optional("imagestoreid", Id, "on an image store"),
        optional("details", List, "which details; all are shown"),
        optional("showremoved", Flag, "removed ones are not kept"),
        optional("showunique", Flag, "each once; it is in one zone anyhow"),
        optional("tags", Map, "with all these tags"),
        optional("account", Text, "of an account; with domainid"),
        optional("domainid", Id, "of a domain"),
        optional("projectid", Id, "of a project; there are none"),
        optional("listall", Flag, "also of other accounts"),
        optional("isrecursive", Flag, "also in the domains below"),
    ])
    .answers(FIELDS),
    Command::list("listIsos", "Lists the ISOs.", |call| {
        Box::pin(list_all(call, TemplateKind::Iso))
    })
    .open_to(Who::User)
    .takes(LIST_ISOS)
    .answers(FIELDS),
    Command::job(
        "deleteTemplate",
        "Deletes a template from its image stores; its download is stopped first.",
        "TEMPLATE.DELETE",
        |call| Box::pin(delete(call, TemplateKind::Template)),
    )
    .open_to(Who::User)
    .takes(&[
        required("id", Id, "the template"),
        optional("zoneid", Id, "in a zone; it is in one only"),
        optional("forced", Flag, "also when instances use it; none can here"),
    ]),
    Command::job(
        "deleteIso",
        "Deletes an ISO from its image stores; its download is stopped first.",
        "ISO.DELETE",
        |call| Box::pin(delete(call, TemplateKind::Iso)),
    )
    .open_to(Who::User)
    .takes(&[
        required("id", Id, "the ISO"),
        optional("zoneid", Id, "in a zone; it is in one only"),
    ]),
    Command::sync("updateTemplate", "Changes what is said of a template.", |call| {
        Box::pin(update(call, TemplateKind::Template))
    })
    .open_to(Who::User)
    .takes(UPDATE)
    .answers(FIELDS),
    Command::sync("updateIso", "Changes what is said of an ISO.", |call| {
        Box::pin(update(call, TemplateKind::Iso))
    })
    .open_to(Who::User)
    .takes(UPDATE)
    .answers(FIELDS),
];

const UPDATE: &[Parameter] = &[
    required("id", Id, "which one"),
    optional("name", Text, "a new name"),
    optional("displaytext", Text, "a new description"),
    optional("ostypeid", Id, "its operating system"),
    optional("arch", Text, "processor; x86_64 or aarch64"),
    optional("bootable", Flag, "a VM can start from it"),
    optional("requireshvm", Flag, "it needs hardware virtualisation"),
    optional("passwordenabled", Flag, "it takes a password at the start"),
    optional("sshkeyenabled", Flag, "it takes SSH keys at the start"),
    optional("isdynamicallyscalable", Flag, "VMs of it can grow while they run"),
    optional("templatetag", Text, "for placement"),
    optional("details", Map, "other details in place of those there are"),
    optional("cleanupdetails", Flag, "remove the details"),
];

async fn register(call: Call, kind: TemplateKind) -> Result<Outcome, ApiError> {
    let store = &call.management.store;
    let zones = store.zones().await?;
    let zone = wanted_zone(&call, &zones)?;
    let facts = facts(&call, kind, zone)?;
    let stores = store.image_stores(zone.id).await?;
    let Some(target) = with_room(&stores, &call.management.configuration).into_iter().next() else {
        return Err(ApiError::new(
            Code::ResourceUnavailable,
            if stores.is_empty() {
                "the zone has no image store; give the server one with --image-store or --local-store"
            } else {
                "all image stores of the zone are fuller than secondary.storage.capacity.threshold allows"
            },
        ));
    };
    let (event, resource) = match kind {
        TemplateKind::Template => ("TEMPLATE.CREATE", "Template"),
        TemplateKind::Iso => ("ISO.CREATE", "Iso"),
    };
    let created = store.create_template(facts, vec![target.id]).await?;
    let (template, _) = &created;
    let text = format!(
        "registered {} {} from {}",
        words_of(kind).0,
        template.facts.name,
        template.facts.url
    );
    call.record(event, text, Some((resource, template.uuid))).await?;
    call.management.zone.downloads.look_now();
    let rows = vec![Describe::new(&call).await?.row(&created)];
    Ok(Outcome::List {
        object: object(kind),
        count: 1,
        rows,
    })
}

fn object(kind: TemplateKind) -> &'static str {
    match kind {
        TemplateKind::Template => "template",
        TemplateKind::Iso => "iso",
    }
}

/// `zoneid`, or the first of `zoneids`, or the only one.
fn wanted_zone<'a>(call: &Call, zones: &'a [Zone]) -> Result<&'a Zone, ApiError> {
    let many = call.ids("zoneids").unwrap_or_default();
    if many.len() > 1 {
        return Err(ApiError::parameter(
            "zoneids names more than one zone; there is one here",
        ));
    }
    let name = if many.is_empty() { "zoneid" } else { "zoneids" };
    match call.id("zoneid").or_else(|| many.first().copied()) {
        Some(id) => zones
            .iter()
            .find(|zone| zone.uuid == id)
            .ok_or_else(|| ApiError::no_such_id(name, id)),
        None => zones.first().ok_or_else(|| ApiError::parameter("there is no zone")),
    }
}

fn facts(call: &Call, kind: TemplateKind, zone: &Zone) -> Result<TemplateFacts, ApiError> {
    let is_template = kind == TemplateKind::Template;
    let name = text(call.needed_text("name")?, "name", MAX_NAME)?;
    let display_text = match call.text("displaytext") {
        Some(given) => text(given, "displaytext", MAX_TEXT)?,
        None => name.clone(),
    };
    let (format, hypervisor) = if is_template {
        let hypervisor = hypervisor_name(call)?;
        (format_name(call.needed_text("format")?, &hypervisor)?, hypervisor)
    } else {
        ("ISO".to_owned(), "None".to_owned())
    };
    let bits = match call.number("bits") {
        None | Some(64) => 64,
        Some(32) => 32,
        Some(_) => {
            return Err(ApiError::parameter(
                "Invalid value for parameter bits: 32 or 64 is expected",
            ));
        }
    };
    let flag = |name| call.flag(name).unwrap_or(false);
    let caller = &call.caller;
    if (flag("isfeatured") || flag("ispublic")) && !caller.is_admin() {
        let text = "only an administrator may register public or featured templates";
        return Err(ApiError::new(Code::Permission, text));
    }
    Ok(TemplateFacts {
        kind,
        name,
        display_text,
        format,
        hypervisor,
        url: url(call.needed_text("url")?)?,
        checksum: call.text("checksum").map(checksum).transpose()?,
        arch: arch(call)?.unwrap_or_else(|| "x86_64".into()),
        bits,
        os_type: Some(os_type_id(call)?.unwrap_or_else(|| os_type::unknown().to_string())),
        template_tag: call
            .text("templatetag")
            .map(|tag| text(tag, "templatetag", MAX_NAME))
            .transpose()?,
        details: details(call)?,
        account: caller.identity.account.id,
        zone: zone.id,
        is_public: flag("ispublic"),
        is_featured: flag("isfeatured"),
        is_extractable: flag("isextractable"),
        is_bootable: is_template || call.flag("bootable").unwrap_or(true),
        requires_hvm: is_template && call.flag("requireshvm").unwrap_or(true),
        password_enabled: flag("passwordenabled"),
        ssh_key_enabled: flag("sshkeyenabled"),
        dynamically_scalable: flag("isdynamicallyscalable"),
    })
}

fn text(given: &str, name: &str, max: usize) -> Result<String, ApiError> {
    let given = given.trim();
    if given.is_empty() || given.len() > max || given.chars().any(char::is_control) {
        let wanted =
            format!("Invalid value for parameter {name}: 1 to {max} printable characters on one line are expected");
        return Err(ApiError::parameter(wanted));
    }
    Ok(given.to_owned())
}

/// http or https, to a host. A password in it would be shown to everybody who lists the template.
fn url(given: &str) -> Result<String, ApiError> {
    let given = given.trim();
    let bad = |problem: &str| {
        let shown: String = given.chars().take(200).collect();
        ApiError::parameter(format!("Invalid value {shown:?} for parameter url: {problem}"))
    };
    let (scheme, rest) = given
        .split_once("://")
        .ok_or_else(|| bad("write it like https://example.org/image.qcow2"))?;
    if !matches!(scheme.to_ascii_lowercase().as_str(), "http" | "https") {
        return Err(bad("http and https are supported"));
    }
    if given.len() > MAX_URL {
        return Err(bad("it is longer than 2048 characters"));
    }
    if !given.chars().all(|c| c.is_ascii_graphic()) {
        return Err(bad("spaces and other characters have to be percent-encoded"));
    }
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    if authority.contains('@') {
        return Err(ApiError::parameter(
            "Invalid value for parameter url: it has a user name in it, which everybody who lists templates would see",
        ));
    }
    let host = authority.rsplit_once(':').map_or(authority, |(host, port)| {
        if port.bytes().all(|byte| byte.is_ascii_digit()) {
            host
        } else {
            authority
        }
    });
    if host.is_empty() {
        return Err(bad("it names no host"));
    }
    Ok(given.to_owned())
}

/// `{SHA-256}digits`, or the digits alone, whose number says which algorithm.
fn checksum(given: &str) -> Result<String, ApiError> {
    let bad = |problem: String| ApiError::parameter(format!("Invalid value for parameter checksum: {problem}"));
    let (named, digits) = match given.trim().strip_prefix('{').and_then(|rest| rest.split_once('}')) {
        Some((name, digits)) => (Some(name.to_ascii_uppercase()), digits),
        None => (None, given.trim()),
    };
    let digits = digits.to_ascii_lowercase();
    if !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(bad("hexadecimal digits are expected, such as {SHA-256}9f86d0…".into()));
    }
    let known = match &named {
        Some(name) => CHECKSUMS
            .into_iter()
            .find(|(known, _)| *known == name || known.replace('-', "") == *name),
        None => CHECKSUMS.into_iter().find(|(_, length)| *length == digits.len()),
    };
    let names = CHECKSUMS.map(|(name, _)| name).join(", ");
    let (name, length) = known.ok_or_else(|| bad(format!("one of {names} is expected")))?;
    if digits.len() != length {
        return Err(bad(format!("{name} has {length} digits, here are {}", digits.len())));
    }
    Ok(format!("{{{name}}}{digits}"))
}

fn hypervisor_name(call: &Call) -> Result<String, ApiError> {
    let given = call.needed_text("hypervisor")?;
    let known = call.management.configuration.list(&HYPERVISOR_LIST);
    let found = known.iter().find(|name| name.eq_ignore_ascii_case(given));
    let found = found
        .cloned()
        .or_else(|| (given.eq_ignore_ascii_case("any")).then(|| "Any".to_owned()));
    found.filter(|name| hypervisor(name).is_some()).ok_or_else(|| {
        let given: String = given.chars().take(100).collect();
        ApiError::parameter(format!(
            "Invalid value {given:?} for parameter hypervisor: one of {} is expected",
            known.join(", ")
        ))
    })
}

/// What a hypervisor can start from (management.md §10; apache/cloudstack HypervisorType#getSupportedImageFormat).
fn format_name(given: &str, hypervisor: &str) -> Result<String, ApiError> {
    use ImageFormat::*;
    let format = given.trim().to_ascii_uppercase();
    let fits: &[ImageFormat] = match hypervisor {
        "KVM" => &[Qcow2, Raw, Vhd, Vmdk],
        "XenServer" => &[Vhd],
        "VMware" => &[Ova, Vmdk],
        "Hyperv" => &[Vhdx, Vhd],
        _ => &[Qcow2, Raw, Vhd, Vhdx, Vmdk, Ova],
    };
    if image_format(&format).is_some_and(|known| fits.contains(&known)) {
        return Ok(format);
    }
    let wanted: Vec<String> = fits.iter().map(|format| format!("{format:?}").to_uppercase()).collect();
    let format: String = format.chars().take(100).collect();
    Err(ApiError::parameter(format!(
        "Invalid value {format:?} for parameter format: one of {} is expected for hypervisor {hypervisor}",
        wanted.join(", ")
    )))
}

fn arch(call: &Call) -> Result<Option<String>, ApiError> {
    match call.text("arch").map(str::to_ascii_lowercase).as_deref() {
        None => Ok(None),
        Some(arch @ ("x86_64" | "aarch64")) => Ok(Some(arch.to_owned())),
        Some("amd64") => Ok(Some("x86_64".into())),
        Some("arm64") => Ok(Some("aarch64".into())),
        Some(_) => Err(ApiError::parameter(
            "Invalid value for parameter arch: x86_64 or aarch64 is expected",
        )),
    }
}

fn os_type_id(call: &Call) -> Result<Option<String>, ApiError> {
    let Some(id) = call.id("ostypeid") else { return Ok(None) };
    os_type::find(id).ok_or_else(|| ApiError::no_such_id("ostypeid", id))?;
    Ok(Some(id.to_string()))
}

fn details(call: &Call) -> Result<BTreeMap<String, String>, ApiError> {
    let details = call.details("details");
    let size: usize = details.iter().map(|(key, value)| key.len() + value.len()).sum();
    if size > MAX_TEXT {
        return Err(ApiError::parameter(format!(
            "parameter details has more than {MAX_TEXT} bytes"
        )));
    }
    Ok(details)
}

async fn list_all(call: Call, kind: TemplateKind) -> Result<Outcome, ApiError> {
    let describe = Describe::new(&call).await?;
    let filter = match kind {
        TemplateKind::Template => call.needed_text("templatefilter")?,
        TemplateKind::Iso => call.text("isofilter").unwrap_or("selfexecutable"),
    };
    let filter = Filter::read(filter, &call)?;
    let mut rows = Vec::new();
    for (template, on_stores) in call.management.store.templates().await? {
        let facts = &template.facts;
        if facts.kind != kind || !filter.takes(&call, facts, is_ready(&on_stores)) {
            continue;
        }
        let on_store = |id| {
            describe
                .stores
                .iter()
                .any(|store| store.uuid == id && on_stores.iter().any(|row| row.store == store.id))
        };
        let zone = describe.zones.iter().find(|zone| zone.id == facts.zone);
        if list::is_id(call.id("zoneid"), zone.map(|zone| zone.uuid))
            && call.id("imagestoreid").is_none_or(on_store)
            && (call
                .text("hypervisor")
                .is_none_or(|name| name.eq_ignore_ascii_case("any") || name.eq_ignore_ascii_case(&facts.hypervisor)))
            && list::matches(call.text("arch"), &facts.arch)
            && call.flag("isready").is_none_or(|ready| ready == is_ready(&on_stores))
            && call
                .flag("bootable")
                .is_none_or(|bootable| bootable == facts.is_bootable)
            && call.flag("ispublic").is_none_or(|public| public == facts.is_public)
            && describe.owners.has_tags(&template.uuid.to_string(), call.map("tags"))
        {
            rows.push(describe.row(&(template, on_stores)));
        }
    }
    list::answer(&call, object(kind), rows)
}

/// management.md §17.7.
#[derive(Clone, Copy)]
enum Filter {
    Featured,
    Own,
    OwnExecutable,
    Shared,
    Executable,
    Community,
    All,
}

impl Filter {
    fn read(text: &str, call: &Call) -> Result<Self, ApiError> {
        match text.to_ascii_lowercase().as_str() {
            "featured" => Ok(Self::Featured),
            "self" => Ok(Self::Own),
            "selfexecutable" => Ok(Self::OwnExecutable),
            "sharedexecutable" => Ok(Self::Shared),
            "executable" => Ok(Self::Executable),
            "community" => Ok(Self::Community),
            "all" if call.caller.is_admin() => Ok(Self::All),
            "all" => Err(ApiError::new(
                Code::Permission,
                "only an administrator may use the filter all",
            )),
            _ => Err(ApiError::parameter(
                "Please specify a valid filter: featured, self, selfexecutable, sharedexecutable, executable, community or all",
            )),
        }
    }

    /// Who asks for one by its id wants to see it before it is ready, too.
    fn takes(self, call: &Call, facts: &TemplateFacts, is_ready: bool) -> bool {
        let is_own = facts.account == call.caller.identity.account.id
            || (call.caller.is_admin() && call.flag("listall") == Some(true));
        let is_ready = is_ready || call.id("id").is_some() || call.ids("ids").is_some();
        match self {
            Self::Featured => facts.is_featured && facts.is_public && is_ready,
            Self::Own => is_own,
            Self::OwnExecutable => is_own && is_ready,
            Self::Shared => false,
            Self::Executable => (is_own || facts.is_public) && is_ready,
            Self::Community => facts.is_public && !facts.is_featured && is_ready,
            Self::All => true,
        }
    }
}

async fn find(call: &Call, kind: TemplateKind) -> Result<TemplateOnStores, ApiError> {
    let id = call.needed_id("id")?;
    let templates = call.management.store.templates().await?;
    let found = templates
        .into_iter()
        .find(|(template, _)| template.uuid == id && template.facts.kind == kind);
    let is_mine = |(template, _): &TemplateOnStores| {
        call.caller.is_admin() || template.facts.account == call.caller.identity.account.id
    };
    found.filter(is_mine).ok_or_else(|| ApiError::no_such_id("id", id))
}

async fn delete(call: Call, kind: TemplateKind) -> Result<Job, ApiError> {
    let (template, _) = find(&call, kind).await?;
    let resource = match kind {
        TemplateKind::Template => "Template",
        TemplateKind::Iso => "Iso",
    };
    let description = format!("deleting {} {}", words_of(kind).0, template.facts.name);
    let uuid = template.uuid;
    let work = async move {
        let Some(found) = crate::downloads::find(&call.management.store, template.id).await? else {
            return Ok(Outcome::Success(None)); // another job was faster
        };
        call.management.zone.downloads.delete(found).await?;
        Ok(Outcome::Success(None))
    };
    Ok(Job::new(description, work).on(resource, uuid))
}

impl From<DeleteError> for ApiError {
    fn from(error: DeleteError) -> Self {
        match error {
            DeleteError::Store(error) => error.into(),
            error => Self::new(Code::ResourceUnavailable, error.to_string()),
        }
    }
}

async fn update(call: Call, kind: TemplateKind) -> Result<Outcome, ApiError> {
    let (template, on_stores) = find(&call, kind).await?;
    let mut facts = template.facts;
    if let Some(name) = call.text("name") {
        facts.name = text(name, "name", MAX_NAME)?;
    }
    if let Some(given) = call.text("displaytext") {
        facts.display_text = text(given, "displaytext", MAX_TEXT)?;
    }
    if let Some(tag) = call.text("templatetag") {
        facts.template_tag = Some(text(tag, "templatetag", MAX_NAME)?);
    }
    facts.os_type = os_type_id(&call)?.or(facts.os_type);
    facts.arch = arch(&call)?.unwrap_or(facts.arch);
    for (name, member) in [
        ("bootable", &mut facts.is_bootable),
        ("requireshvm", &mut facts.requires_hvm),
        ("passwordenabled", &mut facts.password_enabled),
        ("sshkeyenabled", &mut facts.ssh_key_enabled),
        ("isdynamicallyscalable", &mut facts.dynamically_scalable),
    ] {
        *member = call.flag(name).unwrap_or(*member);
    }
    if call.flag("cleanupdetails") == Some(true) {
        facts.details.clear();
    } else if !call.map("details").is_empty() {
        facts.details = details(&call)?;
    }
    let updated = call.management.store.update_template(template.id, facts).await?;
    let updated = updated.ok_or_else(|| ApiError::no_such_id("id", template.uuid))?;
    let row = Describe::new(&call).await?.row(&(updated, on_stores));
    Ok(Outcome::Object(object(kind), row))
}

fn is_ready(rows: &[TemplateStore]) -> bool {
    rows.iter().any(|row| row.state == DownloadState::Downloaded)
}

/// What all rows of a list need.
pub(crate) struct Describe {
    zones: Vec<Zone>,
    stores: Vec<ImageStore>,
    owners: Owners,
}

impl Describe {
    async fn new(call: &Call) -> Result<Self, ApiError> {
        let store = &call.management.store;
        let zones = store.zones().await?;
        let mut stores = Vec::new();
        for zone in &zones {
            stores.extend(store.image_stores(zone.id).await?);
        }
        Ok(Self {
            zones,
            stores,
            owners: Owners::load(store).await?,
        })
    }

    fn row(&self, (template, rows): &TemplateOnStores) -> Value {
        let facts = &template.facts;
        let zone = self.zones.iter().find(|zone| zone.id == facts.zone);
        let os_type = facts.os_type.as_ref().and_then(|id| os_type::find(id.parse().ok()?));
        // The one that is farthest is what a user is interested in.
        let main = rows
            .iter()
            .max_by_key(|row| (row.state == DownloadState::Downloaded, row.progress.percent));
        let progress = main.map(|row| &row.progress);
        let details = if facts.details.is_empty() {
            Value::Null
        } else {
            json!(facts.details)
        };
        let uuid = template.uuid.to_string();
        let mut row = json!({
            "id": uuid,
            "name": facts.name,
            "displaytext": facts.display_text,
            "ispublic": facts.is_public,
            "isfeatured": facts.is_featured,
            "isready": is_ready(rows),
            "isextractable": facts.is_extractable,
            "bootable": facts.is_bootable,
            "passwordenabled": facts.password_enabled,
            "sshkeyenabled": facts.ssh_key_enabled,
            "requireshvm": facts.requires_hvm,
            "isdynamicallyscalable": facts.dynamically_scalable,
            "directdownload": false,
            "crossZones": false,
            "created": date::format(template.created),
            "format": facts.format,
            "hypervisor": facts.hypervisor,
            "templatetype": "USER",
            "templatetag": facts.template_tag,
            "arch": facts.arch,
            "bits": facts.bits,
            "ostypeid": os_type.map(|os_type| os_type.id),
            "ostypename": os_type.map(|os_type| os_type.name),
            "zoneid": zone.map(|zone| zone.uuid),
            "zonename": zone.map(|zone| &zone.name),
            "status": main.map_or_else(|| "Processing".to_owned(), |row| status(facts.kind, row)),
            "size": progress.and_then(|progress| progress.size),
            "physicalsize": progress.and_then(|progress| progress.physical_size),
            "checksum": progress.and_then(|progress| progress.checksum.clone()).or_else(|| facts.checksum.clone()),
            "url": facts.url,
            "details": details,
            "downloaddetails": rows.iter().map(|row| self.download_details(row)).collect::<Vec<_>>(),
        });
        if let (Some(fields), Some(main)) = (row.as_object_mut(), main) {
            fields.extend(owner_fields(&self.owners, facts.account, &uuid));
            let is_failed = main.state == DownloadState::Error;
            let more = json!({
                "downloadstate": main.state.as_str(),
                "downloadpercent": main.progress.percent,
                "downloadbytes": main.progress.bytes,
                "downloadrate": main.progress.rate,
                "downloadeta": eta(main),
                "downloadattempt": main.attempt,
                "downloadattempts": ATTEMPTS,
                "downloadnext": next_attempt(main),
                "downloaderror": main.progress.error.as_deref().filter(|_| is_failed),
            });
            fields.extend(more.as_object().cloned().unwrap_or_default());
        }
        row
    }

    /// Texts only, as in CloudStack: typed clients read it as a map of texts.
    fn download_details(&self, row: &TemplateStore) -> Value {
        let store = self.stores.iter().find(|store| store.id == row.store);
        json!({
            "datastore": store.map(|store| &store.name),
            "datastoreId": store.map(|store| store.uuid.to_string()),
            "datastoreRole": "Image",
            "downloadPercent": row.progress.percent.to_string(),
            "downloadState": row.state.as_str(),
            "bytes": row.progress.bytes.to_string(),
            "rate": row.progress.rate.map(|rate| rate.to_string()),
            "eta": eta(row).map(|eta| eta.to_string()),
            "attempt": row.attempt.to_string(),
            "attempts": ATTEMPTS.to_string(),
            "nextattempt": next_attempt(row),
            "error": row.progress.error.as_deref().filter(|_| row.state == DownloadState::Error),
        })
    }
}

/// What CloudStack shows (management.md §10.1).
fn status(kind: TemplateKind, row: &TemplateStore) -> String {
    let percent = row.progress.percent;
    match (row.state, kind) {
        (DownloadState::Downloaded, TemplateKind::Template) => "Download Complete".into(),
        (DownloadState::Downloaded, TemplateKind::Iso) => "Successfully Installed".into(),
        (DownloadState::InProgress, _) if percent >= 100 => format!("Installing {}", words_of(kind).1),
        (DownloadState::InProgress, _) => format!("{percent}% Downloaded"),
        (DownloadState::NotDownloaded, _) => "Processing".into(),
        (DownloadState::Error, _) => row.progress.error.clone().unwrap_or_else(|| "Download failed".into()),
        (DownloadState::Abandoned, _) => "Being deleted".into(),
    }
}

/// The first whole second at which it has begun.
fn next_attempt(row: &TemplateStore) -> Option<String> {
    let at = row.next_attempt.filter(|_| row.state == DownloadState::Error)?;
    Some(date::format(at + Duration::from_nanos(999_999_999)))
}

/// Seconds.
fn eta(row: &TemplateStore) -> Option<i64> {
    let percent = i64::from(row.progress.percent);
    let rate = row.progress.rate.filter(|rate| *rate > 0)?;
    if row.state != DownloadState::InProgress || !(1..100).contains(&percent) {
        return None;
    }
    // Percent is a whole number: more than this is not known.
    let to_go = row.progress.bytes / percent * (100 - percent);
    Some(to_go / rate)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn checksums_get_the_name_of_their_algorithm() {
        let digits = "d".repeat(64);
        assert_eq!(checksum(&digits).unwrap(), format!("{{SHA-256}}{digits}"));
        assert_eq!(
            checksum(&format!("{{sha256}}{}", "D".repeat(64))).unwrap(),
            format!("{{SHA-256}}{digits}")
        );
        assert_eq!(checksum(&"a".repeat(32)).unwrap(), format!("{{MD5}}{}", "a".repeat(32)));
        for bad in ["", "xyz", "{SHA-256}abc", "{CRC}00", &"a".repeat(33)] {
            assert!(checksum(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn urls_that_no_agent_can_fetch_are_refused_at_once() {
        for good in [
            "http://192.0.2.1/a.qcow2",
            "HTTPS://example.org:8443/a?b=c",
            "http://[2001:db8::1]:80/a",
        ] {
            assert_eq!(url(good).unwrap(), good);
        }
        for bad in [
            "",
            "a.qcow2",
            "file:///etc/passwd",
            "http:///a",
            "http://:80/a",
            "http://user:secret@example.org/a",
            "http://example.org/a b",
            "http://example.org/\u{e4}",
        ] {
            assert!(url(bad).is_err(), "{bad:?}");
        }
        let told = url("http://user:secret@example.org/a").unwrap_err().text;
        assert!(!told.contains("secret"), "{told}");
    }

    proptest! {
        #[test]
        fn noise_is_an_error_and_no_panic(noise: String) {
            drop((url(&noise), checksum(&noise), format_name(&noise, "KVM"), text(&noise, "name", 10)));
        }
    }
}
