//! Power cuts at random moments of the boot, of patching and of upgrades: QEMU is killed, and the next boot must succeed.
//!
//! Each boot that shows that a cut did no harm is also the one in which the next cut happens. `POWER_CUT_SEED=NUMBER` gives
//! the same moments again (as far as a machine that is busy with other things, too, is the same again).
//!
//! Each run of all tests cuts a few times, at other moments than the run before: a cut costs half a minute under emulation.
//! `POWER_CUTS=10` cuts ten times for each of the two VMs, twenty in all, as before a release.

#![expect(
    clippy::print_stdout,
    reason = "which moments it were is what somebody wants to know"
)]

use std::env;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, bail, ensure};
use platform::files;
use serde_json::Value;
use system_tests::bundle::{Maker, TRUSTED_KEY};
use system_tests::site::{Example, Site};
use system_tests::vm::{BOOT_LIMIT, Booted, Format, Ssh, Vm};
use tokio::time::timeout;

/// For each of two VMs, unless `POWER_CUTS` says otherwise.
const CUTS: u32 = 3;
/// For the answers to them.
const ANSWER_LIMIT: Duration = Duration::from_mins(5);
const QUESTIONS: &str = "/opt/cloud/bin/get_template_version.sh; echo; echo ---; ls /var/cache/cloud/boot_up_done; echo; \
                         echo ---; find /etc/ssh /root/.ssh /var/lib/sysvm -type f -empty; echo; echo ---; \
                         agent upgrade --status --json; echo; echo ---; systemctl --failed --no-legend --plain";
/// Of the archive that is uploaded: so that writing it takes a while.
const UPLOAD_BYTES: usize = 20 << 20;
/// Moments of an upload are within this, from its start until it is taken.
const UPLOAD_MS: u64 = 4000;
/// The same of an upgrade, which looks on for ten seconds after it has started everything anew.
const UPGRADE_MS: u64 = 40_000;

/// What goes on when the power fails.
#[derive(Clone, Copy, Debug)]
enum During {
    Boot,
    Upload,
    Upgrade,
}

#[tokio::test]
async fn after_a_power_cut_at_any_moment_the_next_boot_succeeds() -> anyhow::Result<()> {
    let seed = match env::var("POWER_CUT_SEED") {
        Ok(seed) => seed.parse().context("POWER_CUT_SEED is a number")?,
        Err(_) => u64::try_from(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_nanos() & 0xffff_ffff)?,
    };
    let cuts = match env::var("POWER_CUTS") {
        Ok(cuts) => cuts.parse().context("POWER_CUTS is a number")?,
        Err(_) => CUTS,
    };
    println!("POWER_CUT_SEED={seed} POWER_CUTS={cuts}");
    let site = Site::new().await?;
    let suffer = async |example: Example, seed: u64| {
        let mut victim = Victim::new(&site, example, seed).await?;
        let done = victim.suffer(cuts).await;
        if let (Err(_), Some(vm)) = (&done, &victim.vm) {
            vm.keep_evidence().await;
        }
        done.with_context(|| format!("{example:?}, POWER_CUT_SEED={seed}: {}", victim.story.join(", ")))
    };
    tokio::try_join!(suffer(Example::Ssvm, seed), suffer(Example::Router, !seed))?;
    Ok(())
}

/// Numbers that look random and are the same for the same seed: SplitMix64, Steele, Lea and Flood 2014.
struct Random(u64);

impl Random {
    /// Below `limit`.
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit
    }
}

struct Victim {
    site: Site,
    example: Example,
    host: Ssh,
    line: String,
    random: Random,
    maker: Maker,
    vm: Option<Booted>,
    /// Whether it has come up once: then its line is on its disk.
    has_line: bool,
    /// How long a boot takes here: the moments of a boot are within this.
    boot: Duration,
    /// What has happened to it, for people.
    story: Vec<String>,
}

impl Victim {
    async fn new(site: &Site, example: Example, seed: u64) -> anyhow::Result<Self> {
        let host = Ssh::new(&site.net, example.control()).await?.time_limit(ANSWER_LIMIT);
        Ok(Self {
            site: site.clone(),
            example,
            line: example.line(&host)?,
            host,
            random: Random(seed),
            maker: Maker::new().await?,
            vm: None,
            has_line: false,
            boot: Duration::from_secs(30),
            story: Vec::new(),
        })
    }

    async fn suffer(&mut self, cuts: u32) -> anyhow::Result<()> {
        for number in 0..cuts {
            // The first boot of all makes keys and more: it is cut in any case, and the first three have one of each.
            let during = match (number, self.random.below(3)) {
                (0, _) | (3.., 0) => During::Boot,
                (1, _) | (3.., 1) => During::Upload,
                _ => During::Upgrade,
            };
            let cut = match during {
                During::Boot => self.cut_while_booting().await,
                During::Upload => self.cut_while_uploading().await,
                During::Upgrade => self.cut_while_upgrading(number).await,
            };
            cut.with_context(|| format!("cut {number}, {during:?}"))?;
            self.boot_succeeds()
                .await
                .with_context(|| format!("the boot after cut {number}"))?;
        }
        Ok(())
    }

    fn told(&mut self, what: String) {
        println!("{:?}: {what}", self.example);
        self.story.push(what);
    }

    /// Switches it on. It still runs when the test has only looked at it.
    async fn power_on(&mut self) -> anyhow::Result<&Booted> {
        let vm = if let Some(vm) = self.vm.take() {
            vm.cut_power().await?;
            vm.start_again().await?
        } else {
            let vm = Vm::new(Format::Qcow2).net(&self.site.net);
            self.example.nics().into_iter().fold(vm, Vm::nic).start().await?
        };
        Ok(self.vm.insert(vm))
    }

    async fn cut_while_booting(&mut self) -> anyhow::Result<()> {
        let moment = self.random.below(u64::try_from(self.boot.as_millis())?);
        // A host passes the line at each start; a VM that has rebooted gets none.
        let passes_line = !self.has_line || self.random.below(2) == 0;
        self.told(format!("cut {moment} ms after power-on, line passed: {passes_line}"));
        let line = self.line.clone();
        let vm = self.power_on().await?;
        let go_on = async {
            if passes_line {
                vm.agent_up(BOOT_LIMIT).await?;
                vm.pass_cmdline(&line).await?;
            }
            std::future::pending::<anyhow::Result<()>>().await
        };
        // An agent that stops in the middle of an answer is what happens.
        let _ = timeout(Duration::from_millis(moment), go_on).await;
        vm.cut_power().await
    }

    /// The VM runs: [`Victim::boot_succeeds`] was there before.
    async fn cut_while_uploading(&mut self) -> anyhow::Result<()> {
        let moment = self.random.below(UPLOAD_MS);
        self.told(format!("cut {moment} ms into an upload"));
        let directory = tempfile::tempdir()?;
        let tgz = gzip(&noise(&mut self.random, UPLOAD_BYTES))?;
        let mut files = Vec::new();
        for (name, contents) in [
            ("agent.zip", &b"PK"[..]),
            ("cloud-scripts.tgz", &tgz),
            ("patch-sysvms.sh", b"exit 1\n"),
        ] {
            let path = directory.path().join(name);
            let _ = files::replace(&path, contents, 0o755)?;
            files.push(path);
        }
        let files: Vec<&Path> = files.iter().map(AsRef::as_ref).collect();
        let upload = async {
            let _ = self.host.upload(&files, "/var/cache/cloud/", true).await;
            std::future::pending::<()>().await;
        };
        let _ = timeout(Duration::from_millis(moment), upload).await;
        self.vm.as_ref().context("it runs")?.cut_power().await
    }

    /// From the first byte of the upload until after the new programs have been watched.
    async fn cut_while_upgrading(&mut self, number: u32) -> anyhow::Result<()> {
        let moment = self.random.below(UPGRADE_MS);
        self.told(format!("cut {moment} ms into an upgrade"));
        // Each is newer than what may run: the one before may have been confirmed.
        let bundle = self.maker.bundle(&format!("0.1.{}", number + 1), None).await?;
        let vm = self.vm.as_ref().context("it runs")?;
        vm.agent_up(BOOT_LIMIT).await?;
        vm.write(TRUSTED_KEY, &self.maker.public_key()?).await?;
        let upgrade = async {
            let _ = self.host.upload(&[&bundle], "/var/cache/cloud/", false).await;
            std::future::pending::<()>().await;
        };
        let _ = timeout(Duration::from_millis(moment), upgrade).await;
        vm.cut_power().await
    }

    /// It comes up, sshd answers, its version answer is whole.
    async fn boot_succeeds(&mut self) -> anyhow::Result<()> {
        let started = Instant::now();
        // Without one the VM waits for it, 20 s long, before it takes the one that it has.
        let passes_line = !self.has_line || self.random.below(4) > 0;
        let (line, control) = (self.line.clone(), self.example.control());
        let site = self.site.clone();
        let vm = self.power_on().await?;
        if passes_line {
            vm.agent_up(BOOT_LIMIT).await?;
            vm.pass_cmdline(&line).await?;
        }
        site.opens(control, 3922, BOOT_LIMIT).await?;
        // One login for everything: each costs seconds. The version answer waits for the end of the boot.
        let answers = self.host.run(QUESTIONS).await?;
        self.boot = started.elapsed();
        self.has_line = true;
        let parts: Vec<_> = answers.split("\n---\n").map(str::trim).collect();
        let [version, done, empty, upgrade, failed] = parts.as_slice() else {
            bail!("not five answers: {answers:?}");
        };
        let signature = version.split_once('&').map(|(_, signature)| signature.len());
        ensure!(signature == Some(128), "the version answer is {version:?}");
        ensure!(
            *done == "/var/cache/cloud/boot_up_done",
            "the boot has not come to its end: {done:?}"
        );
        ensure!(empty.is_empty(), "these files have lost their contents: {empty}");
        let upgrade: Value = serde_json::from_str(upgrade)?;
        ensure!(
            upgrade["pending"].is_null(),
            "an upgrade is neither confirmed nor taken back: {upgrade}"
        );
        ensure!(failed.is_empty(), "failed units: {failed}");
        let took = started.elapsed();
        self.told(format!("up after {:.1} s", took.as_secs_f64()));
        Ok(())
    }
}

fn noise(random: &mut Random, bytes: usize) -> Vec<u8> {
    let mut noise = Vec::with_capacity(bytes + 8);
    while noise.len() < bytes {
        noise.extend(random.below(u64::MAX).to_le_bytes());
    }
    noise
}

fn gzip(bytes: &[u8]) -> anyhow::Result<Vec<u8>> {
    use std::io::Write as _;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::none());
    encoder.write_all(bytes)?;
    Ok(encoder.finish()?)
}
