//! What hosts upload, and what they ask about it: appliance.md §14, items 19 to 23.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use flate2::Compression;
use flate2::write::GzEncoder;
use platform::files;
use sha2::{Digest, Sha512};
use system_tests::vm::{Booted, Ssh};

use super::{NAME, Zone};
use crate::board::Report;
use crate::steps::{eventually, exits, units_are, within};

/// For an upload to be taken. Nobody waits for it; it is a second on real hardware.
const TAKEN_LIMIT: Duration = Duration::from_secs(30);
const UPLOADS: &str = "/var/cache/cloud";
const SIGNATURE: &str = "/var/cache/cloud/cloud-scripts-signature";
/// What a program looks like that must never run.
const EVIL: &str = "#!/bin/bash\ntouch /root/evil-has-run\nexit 1\n";
/// Item 23.
const MAX_DISCONNECT: Duration = Duration::from_secs(5);

pub(super) async fn check(report: &Report, vm: &Booted, zone: &Zone) -> anyhow::Result<()> {
    let host = &zone.host;
    let uploads = Uploads::new()?;
    report.item(20, vm, half_an_upload(host, &uploads)).await;
    report.item(19, vm, an_upload_changes_nothing(host, &uploads)).await;
    report.item(21, vm, async { version(host).await.map(drop) }).await;
    report.item(22, vm, a_live_patch(host, &uploads)).await;
    report.item(23, vm, many_live_patches(zone)).await;
    Ok(())
}

/// What a hostile management server would send.
struct Uploads {
    directory: tempfile::TempDir,
    tgz: Vec<u8>,
}

impl Uploads {
    fn new() -> anyhow::Result<Self> {
        let directory = tempfile::tempdir()?;
        let mut archive = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
        for path in [
            "opt/cloud/bin/patched.sh",
            "opt/cloud/bin/get_template_version.sh",
            "etc/ssh/sshd_config",
            "etc/systemd/system/ssh.service",
            "root/.ssh/authorized_keys",
        ] {
            let mut header = tar::Header::new_gnu();
            header.set_size(u64::try_from(EVIL.len())?);
            header.set_mode(0o755);
            header.set_cksum();
            archive.append_data(&mut header, path, EVIL.as_bytes())?;
        }
        let tgz = archive.into_inner()?.finish()?;
        Ok(Self { directory, tgz })
    }

    /// The three files in the order in which hosts send them.
    async fn send(&self, host: &Ssh) -> anyhow::Result<()> {
        let mut paths = Vec::new();
        for (name, contents) in [
            ("agent.zip", &b"PK no zip at all"[..]),
            ("cloud-scripts.tgz", &self.tgz),
            ("patch-sysvms.sh", EVIL.as_bytes()),
        ] {
            let path = self.directory.path().join(name);
            let _ = files::replace(&path, contents, 0o755)?;
            paths.push(path);
        }
        let paths: Vec<&Path> = paths.iter().map(AsRef::as_ref).collect();
        Ok(host.upload(&paths, UPLOADS, true).await?)
    }

    fn signature(&self) -> String {
        let digits = Sha512::digest(&self.tgz);
        let digits: Vec<_> = digits.iter().map(|byte| format!("{byte:02x}")).collect();
        digits.concat()
    }
}

async fn signature(host: &Ssh) -> anyhow::Result<String> {
    Ok(host.run(&format!("cat {SIGNATURE}")).await?)
}

async fn half_an_upload(host: &Ssh, uploads: &Uploads) -> anyhow::Result<()> {
    let before = signature(host).await?;
    let path = uploads.directory.path().join("cloud-scripts.tgz");
    let half = &uploads.tgz[..uploads.tgz.len() / 2];
    let _ = files::replace(&path, half, 0o755)?;
    host.upload(&[&path], UPLOADS, true).await?;
    // It was closed: whoever takes it would have done so by now, as the next step shows that it is quick.
    tokio::time::sleep(Duration::from_secs(3)).await;
    ensure!(
        signature(host).await? == before,
        "half an upload has changed the signature"
    );
    units_are(host, &[("cs-patchd", true)]).await?;
    let restarts = host
        .run("systemctl show --property=NRestarts --value cs-patchd")
        .await?;
    ensure!(restarts == "0\n", "cs-patchd has been started again {restarts}");

    let _ = files::replace(&path, &uploads.tgz, 0o755)?;
    host.upload(&[&path], UPLOADS, true).await?;
    is_taken(host, uploads).await
}

async fn is_taken(host: &Ssh, uploads: &Uploads) -> anyhow::Result<()> {
    let wanted = format!("{}\n", uploads.signature());
    eventually("the signature of the upload", TAKEN_LIMIT, async || {
        let found = signature(host).await?;
        ensure!(found == wanted, "it is {found}");
        exits(
            host,
            "ls /var/cache/cloud/{agent.zip,cloud-scripts.tgz,patch-sysvms.sh}",
            2,
        )
        .await
    })
    .await?;
    let kept = host.run("sha512sum < /usr/share/cloud/cloud-scripts.tgz").await?;
    ensure!(
        kept.starts_with(&uploads.signature()),
        "another archive is kept: {kept}"
    );
    Ok(())
}

/// All files that are not there to change, with what would change if somebody wrote to them.
async fn tree(host: &Ssh) -> anyhow::Result<BTreeMap<String, String>> {
    let listed = host
        .run("find /etc /opt /root /usr -xdev -type f -printf '%p\\t%s %m %C@ %i\\n'")
        .await?;
    let entries = listed.lines().filter_map(|line| line.split_once('\t'));
    Ok(entries
        .map(|(path, state)| (path.to_owned(), state.to_owned()))
        .collect())
}

async fn an_upload_changes_nothing(host: &Ssh, uploads: &Uploads) -> anyhow::Result<()> {
    // Item 20 has sent the same archive: without this nobody sees that it was taken again.
    host.run(&format!(
        "rm /usr/share/cloud/cloud-scripts.tgz && echo nothing > {SIGNATURE}"
    ))
    .await?;
    let before = tree(host).await?;
    ensure!(before.len() > 1000, "only {} files are there", before.len());
    uploads.send(host).await?;
    is_taken(host, uploads).await?;
    let mut after = tree(host).await?;
    after.remove("/usr/share/cloud/cloud-scripts.tgz");
    let changed: Vec<_> = before
        .iter()
        .filter(|(path, state)| after.get(*path) != Some(state))
        .collect();
    let new: Vec<_> = after.keys().filter(|path| !before.contains_key(*path)).collect();
    ensure!(
        changed.is_empty() && new.is_empty(),
        "changed: {changed:?}; new: {new:?}"
    );
    Ok(())
}

/// The answer of `get_template_version.sh`, judged as the management server does (§7.3).
pub(crate) async fn version(host: &Ssh) -> anyhow::Result<String> {
    let answer = exits(host, "/opt/cloud/bin/get_template_version.sh", 0).await?;
    let line = answer.strip_suffix('\n').unwrap_or(&answer);
    ensure!(!line.contains('\n'), "more than a line: {answer:?}");
    let parts: Vec<_> = line.split('&').collect();
    let [release, signature] = parts.as_slice() else {
        anyhow::bail!("not two parts: {answer:?}");
    };
    let version = release
        .split(' ')
        .nth(2)
        .with_context(|| format!("no third word: {release:?}"))?;
    let numbers: Vec<u32> = version.split('.').map(str::parse).collect::<Result<_, _>>()?;
    ensure!(
        matches!(numbers.len(), 3 | 4) && numbers >= vec![4, 22, 0],
        "the version is {version}"
    );
    ensure!(
        signature.len() == 128 && signature.chars().all(|digit| matches!(digit, '0'..='9' | 'a'..='f')),
        "the signature is {signature:?}"
    );
    Ok(answer)
}

async fn a_live_patch(host: &Ssh, uploads: &Uploads) -> anyhow::Result<()> {
    uploads.send(host).await?;
    let wanted = format!("version:{} \n", uploads.signature());
    for command in [
        "/var/cache/cloud/patch-sysvms.sh",
        "/bin/bash /var/cache/cloud/patch-sysvms.sh",
    ] {
        let said = exits(host, command, 0).await?;
        ensure!(said == wanted, "`{command}` prints {said:?}");
    }
    exits(host, "test -e /root/evil-has-run", 1).await?;
    units_are(host, &[("cloud", true), ("cs-patchd", true), ("ssh", true)]).await
}

/// The link of the agent, which is Up at a server, may not be lost.
async fn many_live_patches(zone: &Zone) -> anyhow::Result<()> {
    let before = zone.server.links_ended();
    for _ in 0..10 {
        let said = exits(&zone.host, "/var/cache/cloud/patch-sysvms.sh", 0).await?;
        ensure!(said.starts_with("version:"), "{said:?}");
    }
    let up = zone.server.agent_up(NAME, super::UP_LIMIT).await?;
    within(up, MAX_DISCONNECT).await?;
    ensure!(
        zone.server.links_ended() == before,
        "the link was lost: {}",
        zone.server.log()
    );
    Ok(())
}
