//! What the program must know to start: boot arguments, which the management server writes, and settings, which an
//! operator may.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use agent::config::{Facts, Kind, NoAgent};
use hyper::header::HeaderValue;
use ipnet::IpNet;
use platform::files::{self, FileError};
use protocol::boot::{BadBootArgs, BootArgs, Role, SystemVm};
use serde::{Deserialize, Deserializer};

use crate::backend::{Policy, VncTls, VncTlsVerify};
use crate::page::NoPage;
use crate::proxy::Shows;
use crate::relay;

/// More than any hypervisor can hand over.
const MAX_FILE: u64 = 1 << 20;

/// The value of `vncport` that means TLS (§2.1).
const ENCRYPTED_PORT: u16 = 8443;

/// What stands in the settings file. Every member may be absent.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// What is kept: the agent's identity and certificates, and ours.
    pub state_dir: PathBuf,
    /// noVNC, as its npm package or Debian's package unpacks.
    pub novnc: PathBuf,
    /// Where the certificate for browsers comes from, if not from the management server.
    pub tls: Option<TlsSource>,
    /// Addresses. When one for browsers is given, the boot arguments choose none.
    pub listen: Listen,
    /// Sessions.
    pub console: Console,
}

/// Sources of certificates besides the management server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TlsSource {
    /// Made here.
    SelfSigned,
}

/// Where to listen. Page and consoles are served on each of the first four.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Listen {
    /// Plain; leads to `https` when that is there, too.
    pub http: Option<SocketAddr>,
    /// TLS.
    pub https: Option<SocketAddr>,
    /// Plain, for consoles.
    pub ws: Option<SocketAddr>,
    /// TLS, for consoles.
    pub wss: Option<SocketAddr>,
    /// Status and metrics.
    pub cmd: Option<SocketAddr>,
}

/// Sessions.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Console {
    /// Without input; 0 is for ever.
    #[serde(deserialize_with = "span")]
    pub idle_timeout: Duration,
    /// In all; 0 is for ever.
    #[serde(deserialize_with = "span")]
    pub max_session: Duration,
    /// Viewers at the same time; 0 is as many as memory has room for.
    pub max_sessions: usize,
    /// What a second viewer of a VM does.
    pub multi_viewer: MultiViewer,
    /// Accept tokens of servers up to 4.18.0.
    pub legacy_cbc_tokens: bool,
    /// Ask the management server also about sessions that it has not announced here.
    pub trust_ms_session_check: bool,
    /// Pages that may open consoles; empty: all.
    pub allowed_origins: Vec<String>,
    /// Load balancers whose X-Forwarded-For is believed.
    pub trusted_proxies: Vec<IpNet>,
    /// Whether hosts must encrypt.
    pub vnc_tls: VncTls,
    /// Whom to believe to be a host.
    pub vnc_tls_verify: VncTlsVerify,
    /// Pages that may show the console page inside of them, as in the CSP directive `frame-ancestors`.
    pub frame_ancestors: String,
}

/// What a second viewer of a VM does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MultiViewer {
    /// The first is sent away.
    Takeover,
    /// Both look, each over a connection of its own.
    Share,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            state_dir: "/var/lib/sysvm/console-proxy".into(),
            novnc: "/usr/share/novnc".into(),
            tls: None,
            listen: Listen::default(),
            console: Console::default(),
        }
    }
}

impl Default for Console {
    fn default() -> Self {
        Self {
            idle_timeout: Duration::from_mins(30),
            max_session: Duration::ZERO,
            max_sessions: 0,
            multi_viewer: MultiViewer::Takeover,
            legacy_cbc_tokens: false,
            trust_ms_session_check: false,
            allowed_origins: Vec::new(),
            trusted_proxies: Vec::new(),
            vnc_tls: VncTls::default(),
            vnc_tls_verify: VncTlsVerify::default(),
            frame_ancestors: "*".to_owned(),
        }
    }
}

impl Console {
    /// Whether several viewers of a VM look at the same time.
    pub fn is_shared(&self) -> bool {
        self.multi_viewer == MultiViewer::Share
    }

    /// Viewers at the same time: as many as the operator says, else as many as half of the memory has room for.
    pub fn session_limit(&self) -> usize {
        if self.max_sessions > 0 {
            return self.max_sessions;
        }
        let memory = fs::read_to_string("/proc/meminfo")
            .ok()
            .and_then(|text| total_kib(&text));
        memory.map_or(0, |kib| kib / 2 / SESSION_KIB)
    }

    /// For the relay.
    pub fn limits(&self) -> relay::Limits {
        relay::Limits {
            idle: self.idle_timeout,
            session: self.max_session,
        }
    }

    /// Header of every file of the page (§9).
    pub fn content_security_policy(&self) -> HeaderValue {
        let policy = format!(
            "default-src 'self'; connect-src 'self' ws: wss:; img-src 'self' data: blob:; style-src 'self' 'unsafe-inline'; \
             object-src 'none'; base-uri 'none'; frame-ancestors {}",
            self.frame_ancestors
        );
        HeaderValue::from_str(&policy).expect("Settings::parse has tried it")
    }
}

/// Of an active session, with what the kernel keeps for its sockets (§10.4).
const SESSION_KIB: usize = 64;

/// Line of proc_meminfo(5).
fn total_kib(meminfo: &str) -> Option<usize> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}

/// `90s`, `30m`, `2h`, or 0.
fn span<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        Number(u64),
        Text(String),
    }
    let wanted = || serde::de::Error::custom("expected a time such as \"90s\", \"30m\" or \"2h\", or 0");
    let text = match Either::deserialize(deserializer)? {
        Either::Number(0) => return Ok(Duration::ZERO),
        Either::Number(_) => return Err(wanted()),
        Either::Text(text) => text,
    };
    parse_span(&text).ok_or_else(wanted)
}

fn parse_span(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return None,
    };
    let number: u32 = number.parse().ok()?;
    Some(Duration::from_secs(u64::from(number) * seconds))
}

impl Settings {
    /// Reads the text of a settings file.
    ///
    /// # Errors
    /// The line and what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let settings: Self = toml::from_str(text).map_err(|error| error.to_string())?;
        let ancestors = &settings.console.frame_ancestors;
        if ancestors.is_empty() || ancestors.contains([';', ',']) || HeaderValue::from_str(ancestors).is_err() {
            let wanted = "expected sources as in CSP, such as \"*\", \"'self'\" or \"https://cloud.example.com\"";
            return Err(format!("console.frame_ancestors = {ancestors:?}: {wanted}"));
        }
        let Listen {
            http,
            https,
            ws,
            wss,
            cmd,
        } = settings.listen;
        let mut addresses: Vec<_> = [http, https, ws, wss, cmd].into_iter().flatten().collect();
        addresses.sort_unstable();
        if let Some([twice, _]) = addresses.array_windows().find(|[a, b]| a == b && a.port() != 0) {
            let wanted = "expected different ones; one port serves both page and consoles";
            return Err(format!("listen: {twice} stands there twice: {wanted}"));
        }
        Ok(settings)
    }
}

/// Everything.
#[derive(Debug, Clone)]
pub struct Config {
    /// Name of the VM.
    pub name: String,
    /// The link to the management server.
    pub agent: agent::config::Config,
    /// The VM's number in reports.
    pub proxy_vm_id: i64,
    /// Own settings.
    pub settings: Settings,
    /// What is shown where.
    pub listeners: Vec<(Shows, SocketAddr)>,
    /// For a certificate of our own making.
    pub certificate_names: Vec<String>,
}

/// Why the program cannot start as it was told to.
#[derive(Debug, thiserror::Error)]
pub enum BadConfig {
    /// Missing or unreadable.
    #[error(transparent)]
    File(#[from] FileError),
    /// Missing.
    #[error("{0} does not exist; --boot-args names the file with the line of key=value words")]
    NoBootArgs(PathBuf),
    /// Named, and missing.
    #[error("{0} does not exist; leave --settings out to run without")]
    NoSettings(PathBuf),
    /// Wrong words.
    #[error(transparent)]
    BootArgs(#[from] BadBootArgs),
    /// Boot arguments of another VM.
    #[error("in {path}: type={found}, and this program is for type=consoleproxy")]
    OtherVm {
        /// File.
        path: PathBuf,
        /// Type.
        found: String,
    },
    /// As `OtherVm`, from the agent's side.
    #[error(transparent)]
    NoAgent(#[from] NoAgent),
    /// A typo, most likely.
    #[error("in {path}: {problem}")]
    Settings {
        /// File.
        path: PathBuf,
        /// Line and what is wrong.
        problem: String,
    },
    /// Without it there is no page.
    #[error(transparent)]
    NoPage(#[from] NoPage),
}

impl Config {
    /// Reads both files. The settings file may be missing.
    ///
    /// # Errors
    /// Everything that is wrong with the first file that has something wrong.
    pub fn load(boot_args: &Path, settings: &Path) -> Result<Self, BadConfig> {
        let line =
            files::read_limited(boot_args, MAX_FILE)?.ok_or_else(|| BadConfig::NoBootArgs(boot_args.to_owned()))?;
        let in_file = |problems: BadBootArgs| problems.found_in(boot_args.display());
        let args = BootArgs::parse(line).map_err(in_file)?;
        let vm = SystemVm::parse(&args).map_err(|problems| problems.found_in(boot_args.display()))?;
        let settings = match files::read_limited(settings, MAX_FILE)? {
            None => Settings::default(),
            Some(text) => {
                let parsed = String::from_utf8(text).map_err(|error| error.to_string());
                let parsed = parsed.and_then(|text| Settings::parse(&text));
                parsed.map_err(|problem| BadConfig::Settings {
                    path: settings.to_owned(),
                    problem,
                })?
            }
        };
        let host_name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        Self::new(&vm, settings, host_name.trim(), boot_args)
    }

    fn new(vm: &SystemVm, settings: Settings, host_name: &str, boot_args: &Path) -> Result<Self, BadConfig> {
        let Role::ConsoleProxy(proxy) = &vm.role else {
            return Err(BadConfig::OtherVm {
                path: boot_args.to_owned(),
                found: vm.vm_type().to_string(),
            });
        };
        let facts = Facts {
            host_name,
            arch: std::env::consts::ARCH,
            version: env!("CARGO_PKG_VERSION"),
            mac_of: &mac_of,
        };
        let mut agent = agent::config::Config::from_boot(vm, &facts, settings.state_dir.clone())?;
        let listen = settings.listen;
        let is_told = listen.http.or(listen.https).or(listen.ws).or(listen.wss).is_some();
        let listeners = if is_told {
            agent.system_ca = None; // an ordinary program on somebody's machine, whose trust is not ours to change
            told(listen)
        } else {
            let own = [0, 1]
                .into_iter()
                .filter_map(|index| Some(vm.machine.nics.get(&index)?.ipv4?.addr()));
            of_boot(proxy.is_encrypted, proxy.console_port.get(), own, listen.cmd)
        };
        let mut config = Self {
            name: vm
                .machine
                .name
                .as_ref()
                .map_or_else(|| host_name.to_owned(), ToString::to_string),
            proxy_vm_id: i64::try_from(proxy.proxy_vm).unwrap_or_default(),
            certificate_names: certificate_names(&listeners, vm, host_name),
            agent,
            settings,
            listeners,
        };
        if is_told && let Kind::ConsoleProxy { proxy_port, .. } = &mut config.agent.kind {
            *proxy_port = config
                .listeners
                .iter()
                .filter_map(site_port)
                .next_back()
                .unwrap_or(*proxy_port);
        }
        Ok(config)
    }

    /// Port of the WebSocket, for a page that came over TLS or not.
    pub fn console_port(&self, is_tls: bool) -> u16 {
        let wanted = if is_tls { Shows::EncryptedSite } else { Shows::Site };
        let of_kind = |(shows, address): &(Shows, SocketAddr)| (*shows == wanted).then(|| address.port());
        // The last of its kind: `ws` stands behind `http`.
        self.listeners
            .iter()
            .filter_map(of_kind)
            .next_back()
            .unwrap_or(ENCRYPTED_PORT)
    }

    /// Whether a port needs a certificate.
    pub fn needs_tls(&self) -> bool {
        self.listeners.iter().any(|(shows, _)| *shows == Shows::EncryptedSite)
    }

    /// For the way to hosts.
    pub fn policy(&self) -> Policy {
        Policy {
            tls: self.settings.console.vnc_tls,
            verify: self.settings.console.vnc_tls_verify,
            directory: self.settings.state_dir.clone(),
        }
    }
}

fn site_port((shows, address): &(Shows, SocketAddr)) -> Option<u16> {
    matches!(shows, Shows::Site | Shows::EncryptedSite).then(|| address.port())
}

/// What the settings say. The port that consoles are reported with stands last.
fn told(listen: Listen) -> Vec<(Shows, SocketAddr)> {
    let http = match listen.https {
        Some(https) => Shows::ToHttps(https.port()),
        None => Shows::Site,
    };
    let mut listeners = Vec::new();
    let wanted = [
        (Shows::Commands, listen.cmd),
        (http, listen.http),
        (Shows::EncryptedSite, listen.https),
        (Shows::Site, listen.ws),
        (Shows::EncryptedSite, listen.wss),
    ];
    for (shows, address) in wanted {
        if let Some(address) = address {
            listeners.push((shows, address));
        }
    }
    listeners
}

/// What a system VM does (§5): consoles on `vncport`, the page on 80 or 443, status on 8001 of its inner networks.
fn of_boot(
    is_encrypted: bool,
    console_port: u16,
    own: impl Iterator<Item = Ipv4Addr>,
    cmd: Option<SocketAddr>,
) -> Vec<(Shows, SocketAddr)> {
    let everywhere = |port: u16| SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
    let mut listeners = Vec::new();
    if let Some(address) = cmd {
        listeners.push((Shows::Commands, address));
    } else {
        let inner = own.chain([Ipv4Addr::LOCALHOST]);
        listeners.extend(inner.map(|ip| (Shows::Commands, SocketAddr::from((ip, 8001)))));
    }
    if is_encrypted {
        listeners.push((Shows::ToHttps(443), everywhere(80)));
        listeners.push((Shows::EncryptedSite, everywhere(443)));
    } else {
        listeners.push((Shows::Site, everywhere(80)));
    }
    if console_port == ENCRYPTED_PORT {
        listeners.push((Shows::EncryptedSite, everywhere(ENCRYPTED_PORT)));
    } else {
        listeners.push((Shows::Site, everywhere(8080))); // stock ignores other numbers
    }
    listeners
}

fn certificate_names(listeners: &[(Shows, SocketAddr)], vm: &SystemVm, host_name: &str) -> Vec<String> {
    let listening = listeners
        .iter()
        .map(|(_, address)| address.ip())
        .filter(|ip| !ip.is_unspecified());
    let public = vm
        .machine
        .nics
        .get(&2)
        .and_then(|nic| nic.ipv4)
        .map(|net| IpAddr::V4(net.addr()));
    let mut names: Vec<String> = listening.chain(public).map(|ip| ip.to_string()).collect();
    names.extend(["localhost".to_owned(), "127.0.0.1".to_owned()]);
    if !host_name.is_empty()
        && host_name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b".-".contains(&byte))
    {
        names.push(host_name.to_owned());
    }
    names.sort_unstable();
    names.dedup();
    names
}

fn mac_of(device: &str) -> Option<String> {
    let address = fs::read_to_string(format!("/sys/class/net/{device}/address")).ok()?;
    Some(address.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOOT: &str = include_str!("../../protocol/tests/boot/console-proxy.cmdline");

    fn config(boot: &str, settings: &str) -> Config {
        let vm = SystemVm::parse(&BootArgs::parse(boot).unwrap()).unwrap();
        Config::new(&vm, Settings::parse(settings).unwrap(), "cpvm", Path::new("cmdline")).unwrap()
    }

    fn listeners(config: &Config) -> Vec<String> {
        config
            .listeners
            .iter()
            .map(|(shows, address)| format!("{shows:?} {address}"))
            .collect()
    }

    fn reported_port(config: &Config) -> u16 {
        match config.agent.kind {
            Kind::ConsoleProxy { proxy_port, .. } => proxy_port,
            Kind::SecondaryStorage => panic!("not a console proxy"),
        }
    }

    #[test]
    fn a_system_vm_listens_where_the_stock_one_does() {
        let plain = config(BOOT, "");
        let commands = ["169.254.201.3:8001", "192.0.2.22:8001", "127.0.0.1:8001"].map(|at| format!("Commands {at}"));
        let site = |more: &[&str]| [&commands[..], &more.iter().map(ToString::to_string).collect::<Vec<_>>()].concat();
        assert_eq!(listeners(&plain), site(&["Site 0.0.0.0:80", "Site 0.0.0.0:8080"]));
        assert_eq!(
            (reported_port(&plain), plain.proxy_vm_id, plain.needs_tls()),
            (80, 2, false)
        );
        assert!(plain.agent.system_ca.is_some());
        let encrypted = config(
            &format!("{} premium=true", BOOT.replace("vncport=8080", "vncport=8443")),
            "",
        );
        let wanted = [
            "ToHttps(443) 0.0.0.0:80",
            "EncryptedSite 0.0.0.0:443",
            "EncryptedSite 0.0.0.0:8443",
        ];
        assert_eq!(listeners(&encrypted), site(&wanted));
        assert!(encrypted.needs_tls());
    }

    #[test]
    fn an_ordinary_process_listens_where_the_settings_say_and_reports_that_port() {
        let one = config(
            BOOT,
            "listen.http = \"127.0.0.1:6080\"\nlisten.cmd = \"127.0.0.1:6001\"",
        );
        assert_eq!(listeners(&one), ["Commands 127.0.0.1:6001", "Site 127.0.0.1:6080"]);
        assert_eq!((reported_port(&one), one.console_port(false)), (6080, 6080));
        assert_eq!(one.agent.system_ca, None);
        let more = config(
            BOOT,
            "tls = \"self-signed\"\nlisten.http = \"[::1]:80\"\nlisten.https = \"[::1]:443\"",
        );
        assert_eq!(listeners(&more), ["ToHttps(443) [::1]:80", "EncryptedSite [::1]:443"]);
        assert_eq!((reported_port(&more), more.console_port(true)), (443, 443));
        assert_eq!(
            more.certificate_names,
            ["127.0.0.1", "203.0.113.22", "::1", "cpvm", "localhost"]
        );
    }

    #[test]
    fn times_have_units() {
        let idle = |text| Settings::parse(&format!("console.idle_timeout = {text}")).map(|it| it.console.idle_timeout);
        assert_eq!(idle("\"90s\""), Ok(Duration::from_secs(90)));
        assert_eq!(idle("\"30m\""), Ok(Duration::from_mins(30)));
        assert_eq!((idle("0"), idle("\"0\"")), (Ok(Duration::ZERO), Ok(Duration::ZERO)));
        for wrong in ["30", "\"30\"", "\"m\"", "\"\"", "\"1d\"", "\"-1s\"", "\"ü\""] {
            let error = idle(wrong).unwrap_err();
            assert!(error.contains("expected a time such as"), "{wrong}: {error}");
        }
    }

    #[test]
    fn without_a_limit_memory_sets_one() {
        assert_eq!(total_kib("MemTotal:         524288 kB\nMemFree: 1 kB\n"), Some(524_288));
        assert_eq!(total_kib("nothing"), None);
        let mut console = Console::default();
        assert!(console.session_limit() > 0);
        console.max_sessions = 7;
        assert_eq!(console.session_limit(), 7);
    }

    #[test]
    fn typos_are_errors() {
        assert!(
            Settings::parse("consoles.idle_timeout = 0")
                .unwrap_err()
                .contains("unknown field `consoles`")
        );
        assert!(
            Settings::parse("tls = \"letsencrypt\"")
                .unwrap_err()
                .contains("self-signed")
        );
        let twice = Settings::parse("listen.http = \"[::1]:80\"\nlisten.ws = \"[::1]:80\"").unwrap_err();
        assert!(twice.starts_with("listen: [::1]:80 stands there twice"), "{twice}");
        let error = Settings::parse("console.frame_ancestors = \"*; script-src *\"").unwrap_err();
        assert!(
            error.starts_with("console.frame_ancestors = \"*; script-src *\": expected sources"),
            "{error}"
        );
    }
}
