//! `issue-certificate`.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use mgmt_stub::ca::{Request, Signed};
use platform::files;
use tracing::info;

use super::{open_ca, open_for_one_change};

#[derive(Debug, Args)]
pub(crate) struct IssueCertificate {
    /// Host name of the system VM, such as s-1-VM.
    #[arg(long)]
    name: String,
    /// Address of the system VM; may be given several times. Its connections must come from one of them when client
    /// certificates are required.
    #[arg(long = "address", value_name = "IP", required = true)]
    addresses: Vec<IpAddr>,
    /// Directory for cloud.crt, cloud.ca.crt and cloud.key.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

/// Issues one.
pub(crate) async fn run(data_dir: &Path, arguments: IssueCertificate) -> anyhow::Result<()> {
    let ca = open_ca(data_dir)?;
    let request = Request::new(arguments.name.clone(), vec![arguments.name], arguments.addresses);
    let issued = ca.issue(&request)?;
    let Signed {
        certificate,
        ca,
        serial,
        not_after,
        ..
    } = &issued.signed;
    open_for_one_change(data_dir)?
        .record_certificate(&issued.signed, None)
        .await?;
    std::fs::create_dir_all(&arguments.out).with_context(|| format!("creating {}", arguments.out.display()))?;
    let written = [
        ("cloud.ca.crt", ca.as_bytes(), 0o644),
        ("cloud.key", issued.private_key.expose().as_bytes(), 0o600),
        ("cloud.crt", certificate.as_bytes(), 0o644),
    ];
    for (name, contents, mode) in written {
        let _ = files::replace(arguments.out.join(name), contents, mode)?;
    }
    info!(%serial, %not_after, out = %arguments.out.display(), "Certificate issued");
    Ok(())
}
