//! `template`: what VMs are made of.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use serde_json::Value;
use tokio::time::sleep;

use super::administrator::{Administrator, TEMPLATES, number, text};
use super::progress::{self, Progress};
use super::table::{Table, plain};
use super::{Ended, print, tell};

/// Between two looks.
const LOOK: Duration = Duration::from_millis(400);

/// Templates, which VMs are made of: list, register, delete
///
/// Examples:
///   mgmt-stub template register https://example.org/debian.qcow2 --name debian --checksum SHA256-DIGITS --wait
///   mgmt-stub template list
///   mgmt-stub template delete debian
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Template {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List them, with how far those are that are not ready.
    List {
        /// For programs, with the fields of the API.
        #[arg(long)]
        json: bool,
    },
    /// Let a secondary storage VM download one. It goes on when you do not wait, or stop waiting.
    Register(Register),
    /// Delete one, also in the middle of its download. VMs made of it go on.
    Delete {
        /// Its name or id.
        template: String,
    },
}

#[derive(Debug, Args)]
struct Register {
    /// http or https, as the secondary storage VM reaches it.
    url: String,
    /// How it is called.
    #[arg(long)]
    name: String,
    /// A description; else the name.
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
    /// Of the file: the digits, or with the algorithm such as {SHA-256}digits. A file with another is refused.
    #[arg(long, value_name = "DIGEST")]
    checksum: Option<String>,
    /// Of the file.
    #[arg(long, default_value = "QCOW2")]
    format: String,
    /// Who runs VMs of it.
    #[arg(long, default_value = "KVM")]
    hypervisor: String,
    /// Wait until it is ready, and show how far it is. The exit code is 1 when it cannot be downloaded.
    #[arg(long)]
    wait: bool,
    /// For programs, with the fields of the API.
    #[arg(long)]
    json: bool,
}

/// Does it.
pub(crate) async fn run(data_dir: &Path, arguments: Template) -> anyhow::Result<Ended> {
    let administrator = Administrator::new(data_dir);
    match arguments.action {
        Action::List { json } => {
            let templates = administrator.list(TEMPLATES).await?;
            print(&if json {
                format!("{:#}\n", Value::from(templates))
            } else {
                table(&templates)
            })?;
        }
        Action::Register(register) => return registered(&administrator, &register).await,
        Action::Delete { template } => {
            let found = administrator.find(TEMPLATES, &template).await?;
            administrator
                .call("deleteTemplate", &[("id", text(&found, "id"))])
                .await?;
            tell(format_args!("{} is deleted.", plain(text(&found, "name"))));
        }
    }
    Ok(Ended::Done)
}

fn table(templates: &[Value]) -> String {
    if templates.is_empty() {
        return "There are no templates; `mgmt-stub template register` brings one.\n".into();
    }
    let mut table = Table::new(&["NAME", "FORMAT", "HYPERVISOR", "STATUS", "ID"]);
    for template in templates {
        table.row([
            text(template, "name"),
            text(template, "format"),
            text(template, "hypervisor"),
            &progress::line(template),
            text(template, "id"),
        ]);
    }
    table.to_string()
}

async fn registered(administrator: &Administrator, register: &Register) -> anyhow::Result<Ended> {
    let zone = administrator.zone_id().await?;
    let mut parameters = vec![
        ("name", register.name.as_str()),
        ("displaytext", register.description.as_deref().unwrap_or(&register.name)),
        ("url", &register.url),
        ("format", &register.format),
        ("hypervisor", &register.hypervisor),
        ("zoneid", &zone),
    ];
    if let Some(checksum) = &register.checksum {
        parameters.push(("checksum", checksum));
    }
    let answer = administrator.call("registerTemplate", &parameters).await?;
    let template = answer["template"][0].clone();
    let id = text(&template, "id").to_owned();
    if !register.wait {
        return shown(&template, register.json);
    }
    let mut progress = Progress::new();
    loop {
        let known = administrator.list(TEMPLATES).await?;
        let found = known.into_iter().find(|template| text(template, "id") == id);
        let template = found.with_context(|| format!("{} was deleted meanwhile", register.name))?;
        if template["isready"] == true {
            progress.finish(&template);
            return shown(&template, register.json);
        }
        progress.show(&template);
        // With a next attempt it is not over.
        if text(&template, "downloadstate") == "DOWNLOAD_ERROR" && text(&template, "downloadnext").is_empty() {
            let attempts = number(&template, "downloadattempt");
            bail!(
                "{} cannot be downloaded (attempt {attempts}): {}; register it again when that is mended",
                plain(text(&template, "name")),
                plain(text(&template, "status"))
            );
        }
        sleep(LOOK).await;
    }
}

fn shown(template: &Value, json: bool) -> anyhow::Result<Ended> {
    print(&if json {
        format!("{template:#}\n")
    } else {
        format!("{}\n", text(template, "id"))
    })?;
    Ok(Ended::Done)
}
