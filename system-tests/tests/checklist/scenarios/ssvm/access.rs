//! The ssh contract: appliance.md §14, items 5 and 14 to 18.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{bail, ensure};
use futures_util::future::try_join_all;
use platform::exec::ExecError;
use platform::files;
use system_tests::site::Site;
use system_tests::vm::{Booted, Ssh};

use super::{VM, Zone};
use crate::board::Report;
use crate::steps::exits;

const LOGINS: usize = 50;
/// A login costs an emulated processor a second or two, more when its host is busy.
const LOGINS_LIMIT: Duration = Duration::from_mins(5);

pub(super) async fn check(report: &Report, vm: &Booted, zone: &Zone) -> anyhow::Result<()> {
    let host = &zone.host;
    report.item(14, vm, files_travel(host)).await;
    report.item(15, vm, old_algorithms(host)).await;
    report.item(17, vm, a_shell_answers(host)).await;
    report.item(16, vm, many_log_in(report, host)).await;
    Ok(())
}

pub(super) async fn is_patched(host: &Ssh) -> anyhow::Result<()> {
    exits(host, "/opt/cloud/bin/patched.sh /opt/cloud/bin/keystore*", 0).await?;
    exits(host, "/opt/cloud/bin/patched.sh /opt/cloud/bin/nothing-like-this*", 2)
        .await
        .map(drop)
}

pub(super) async fn only_the_key_opens(site: &Site, host: &Ssh) -> anyhow::Result<()> {
    let who = host.run("whoami").await?;
    ensure!(who == "root\n", "{who}");
    let stranger = Ssh::new(&site.net, VM.control()).await?;
    let password = host.clone().option("PubkeyAuthentication=no");
    for (other, what) in [(stranger, "another key"), (password, "no key")] {
        match other.run("whoami").await {
            Err(ExecError::Failed { printed, .. }) if printed.ends_with("Permission denied (publickey).") => {}
            other => bail!("{what} is answered with {other:?}"),
        }
    }
    Ok(())
}

/// With OpenSSH's old and new protocols, and as the Java client of CloudStack does it.
async fn files_travel(host: &Ssh) -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let names = ["one.sh", "two.sh", "three.sh"];
    let files: Vec<_> = names.iter().map(|name| directory.path().join(name)).collect();
    for (file, name) in files.iter().zip(names) {
        let _ = files::replace(file, format!("#!/bin/bash\n# {name}\n"), 0o755)?;
    }
    let paths: Vec<&Path> = files.iter().map(AsRef::as_ref).collect();
    let back = directory.path().join("back");
    for (how, legacy) in [("legacy", Some(true)), ("sftp", Some(false)), ("Java", None)] {
        match legacy {
            Some(legacy) => host.upload(&paths, "/var/cache/cloud/", legacy).await?,
            None => upload_as_java(host, &paths).await?,
        }
        let found = host.run("cd /var/cache/cloud && stat -c '%a %n' *.sh").await?;
        ensure!(found == "755 one.sh\n755 three.sh\n755 two.sh\n", "{how}: {found}");
        for (file, name) in files.iter().zip(names) {
            let there = format!("/var/cache/cloud/{name}");
            host.download(&there, &back, legacy.unwrap_or(true)).await?;
            ensure!(fs::read(&back)? == fs::read(file)?, "{how}: {name} comes back changed");
        }
        host.run("rm /var/cache/cloud/{one,two,three}.sh").await?;
    }
    Ok(())
}

/// scp's protocol without waiting for its answers: the other end has them all read by then, or says what is wrong.
async fn upload_as_java(host: &Ssh, files: &[&Path]) -> anyhow::Result<()> {
    let mut sent = Vec::new();
    for file in files {
        let contents = fs::read(file)?;
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        sent.extend(format!("C0755 {} {name}\n", contents.len()).into_bytes());
        sent.extend(contents);
        sent.push(0);
    }
    let exited = host.exec("scp -t -d /var/cache/cloud/", &sent).await?;
    // One zero at the start, and two for each file: its name, its contents.
    ensure!(
        exited.status.success() && exited.stdout == vec![0; 1 + 2 * files.len()],
        "scp says {exited:?}"
    );
    Ok(())
}

async fn old_algorithms(host: &Ssh) -> anyhow::Result<()> {
    let java = java(host)
        .option("MACs=hmac-sha2-256")
        .option("HostKeyAlgorithms=ecdsa-sha2-nistp256");
    let said = java.run("hostname").await?;
    ensure!(said == "s-1-VM\n", "{said}");
    Ok(())
}

/// As the Java client negotiates; also what costs least.
fn java(host: &Ssh) -> Ssh {
    host.clone()
        .option("Ciphers=aes128-ctr")
        .option("KexAlgorithms=ecdh-sha2-nistp256")
}

async fn a_shell_answers(host: &Ssh) -> anyhow::Result<()> {
    let said = exits(host, "sh -c 'echo x; exit 3'", 3).await?;
    ensure!(said == "x\n", "{said:?}");
    let said = host.exec("echo out; echo err >&2; kill -TERM $$", b"").await?;
    ensure!(
        (said.stdout.as_slice(), said.stderr.as_str()) == (b"out\n", "err\n") && !said.status.success(),
        "{said:?}"
    );
    let said = exits(host, r#"echo /etc/host[n]ame "a  b" 'c;d' $((1+1)) | tr a-z A-Z"#, 0).await?;
    ensure!(said == "/ETC/HOSTNAME A  B C;D 2\n", "{said:?}");
    Ok(())
}

async fn many_log_in(report: &Report, host: &Ssh) -> anyhow::Result<()> {
    // The Java client waits that long for an answer, too.
    let java = java(host).option("ConnectTimeout=180").time_limit(LOGINS_LIMIT);
    let started = std::time::Instant::now();
    let said = try_join_all((0..LOGINS).map(|_| java.run("echo here"))).await?;
    ensure!(said.iter().all(|said| said == "here\n"), "{said:?}");
    report.took("50 logins at once", started.elapsed());
    Ok(())
}
