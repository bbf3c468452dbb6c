//! A light agent: the real link and messages, and nothing behind them. What needs no work it answers as done, everything
//! else as an unsupported command.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use platform::duplex::{Duplex, Progress};
use protocol::answer::{Answer, AnswerBody};
use protocol::boot::{Role, SystemVm};
use protocol::channel::{BrokenLink, Channel, Event};
use protocol::command::{Command, CommandBody};
use protocol::gson::Charset;
use protocol::header::NO_ID;
use protocol::message::BadMessage;
use protocol::packet::{BadPacket, Packet, Request};
use protocol::secondary_storage::{ListTemplateAnswer, ListVolumeAnswer, SecStorageSetupAnswer};
use protocol::session::{
    HostType, PingCommand, ReadyAnswer, StartupCommand, StartupProxyCommand, StartupSecondaryStorageCommand,
};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ClientConfig, Resumption, VerifierBuilderError};
use rustls::crypto::ring;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::version::TLS12;
use rustls::{CertificateError, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until, timeout};

use crate::ca::Issued;
use crate::driver::VmSpec;

/// Before an agent connects again.
pub(super) const FIRST_WAIT: Duration = Duration::from_millis(100);
/// At most; a link that lasted so long was a good one.
pub(super) const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// For TCP and TLS: a server that is busy with all the others is still a working server.
const CONNECT_LIMIT: Duration = Duration::from_secs(30);
/// Until the server has said how often it wants to hear us.
const FIRST_PING: Duration = Duration::from_mins(1);

/// An agent, made of what a VM is given.
pub(super) struct SimulatedAgent {
    servers: Vec<(String, u16)>,
    tls: Arc<ClientConfig>,
    host_type: HostType,
    startup: Command,
}

/// What a VM is given cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unusable {
    #[error("its boot arguments are those of a VM without an agent")]
    NoAgent,
    #[error("its certificate or key is no PEM")]
    Pem(#[from] pem::Error),
    #[error("its certificate cannot be used")]
    Tls(#[from] rustls::Error),
    #[error("its CA certificate cannot be used")]
    Ca(#[from] VerifierBuilderError),
}

/// Why a link has ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum LinkEnd {
    #[error("cannot connect to {0}")]
    Connect(String, #[source] io::Error),
    #[error("no link within {0:?}")]
    TimedOut(Duration),
    #[error("the connection broke")]
    Io(#[from] io::Error),
    #[error(transparent)]
    Broken(#[from] BrokenLink),
    #[error("the server closed the connection")]
    Closed,
    #[error("a message cannot be read")]
    Packet(#[from] BadPacket),
    #[error("a message cannot be written")]
    Message(#[from] BadMessage),
    #[error("the server refused the agent: {0}")]
    Refused(String),
    #[error("the boot arguments name no management server")]
    NoServer,
}

impl SimulatedAgent {
    pub(super) fn new(vm: &SystemVm, spec: &VmSpec, identity: &Issued) -> Result<Self, Unusable> {
        let (host_type, boot) = match &vm.role {
            Role::SecondaryStorage(ssvm) => (HostType::SecondaryStorage, &ssvm.agent),
            Role::ConsoleProxy(proxy) => (HostType::ConsoleProxy, &proxy.agent),
            _ => return Err(Unusable::NoAgent),
        };
        let (startup, resource) = startup(vm, spec, host_type)?;
        let startup = StartupCommand {
            kind: Some(host_type),
            data_center: Some(boot.zone.clone()),
            pod: Some(boot.pod.clone()),
            guid: Some(format!("{}-{resource}", boot.guid)),
            name: Some(spec.name.clone()),
            version: Some(env!("CARGO_PKG_VERSION").to_owned()),
            iqn: Some("NoIqn".into()),
            resource_name: Some(resource.to_owned()),
            arch: Some("x86_64".into()),
            ..startup
        };
        let startup = match &vm.role {
            Role::ConsoleProxy(proxy) => Command::new(StartupProxyCommand {
                proxy_port: proxy.reported_port.get().into(),
                proxy_vm_id: i64::try_from(proxy.proxy_vm).unwrap_or_default(),
                startup,
            }),
            _ => Command::new(StartupSecondaryStorageCommand { startup }),
        };
        let servers = boot.hosts.hosts.iter().map(|host| (host.clone(), boot.port.get()));
        Ok(Self {
            servers: servers.collect(),
            tls: client_config(identity)?,
            host_type,
            startup,
        })
    }

    /// Until the link is lost; says how.
    pub(super) async fn work(&self) -> LinkEnd {
        let Err(end) = self.connect_and_serve().await;
        end
    }

    async fn connect_and_serve(&self) -> Result<Never, LinkEnd> {
        let opened = timeout(CONNECT_LIMIT, self.open()).await;
        let mut link = opened.map_err(|_| LinkEnd::TimedOut(CONNECT_LIMIT))??;
        let startup = Request::startup(0, NO_ID, self.startup.clone());
        link.send(&startup.encode(Charset::Ascii)?)?;
        let mut session = Session {
            host_id: NO_ID,
            host_type: self.host_type,
            sequence: 0,
            ping_interval: FIRST_PING,
        };
        let mut next_ping = Instant::now() + FIRST_PING;
        loop {
            tokio::select! {
                message = link.next() => {
                    let Some(message) = message? else { continue };
                    let interval = session.ping_interval;
                    if let Some(response) = session.receive(&message)? {
                        link.send(&response)?;
                    }
                    if session.ping_interval != interval {
                        next_ping = Instant::now() + session.ping_interval;
                    }
                }
                () = sleep_until(next_ping) => {
                    next_ping += session.ping_interval;
                    link.send(&session.ping()?)?;
                }
            }
        }
    }

    async fn open(&self) -> Result<Link, LinkEnd> {
        let mut last = LinkEnd::NoServer;
        for (host, port) in &self.servers {
            match TcpStream::connect((host.as_str(), *port)).await {
                Ok(stream) => return Link::over(stream, Arc::clone(&self.tls)).await,
                Err(error) => last = LinkEnd::Connect(format!("{host} port {port}"), error),
            }
        }
        Err(last)
    }
}

enum Never {}

/// What the boot arguments say of its addresses, and the class of its resource without the package.
fn startup<'a>(vm: &'a SystemVm, spec: &VmSpec, kind: HostType) -> Result<(StartupCommand, &'a str), Unusable> {
    let device = |index: u8| {
        let net = vm.machine.nics.get(&index).and_then(|nic| nic.ipv4);
        let mac = spec.nics.get(usize::from(index)).map(|nic| nic.mac.to_string());
        (
            net.map(|net| net.addr().to_string()),
            net.map(|net| net.netmask().to_string()),
            mac,
        )
    };
    let (private, public) = (device(1), device(2));
    let (storage, resource) = match (&vm.role, kind) {
        (Role::SecondaryStorage(ssvm), _) => {
            let storage = ssvm.storage.as_ref().map(|_| device(3));
            let class = ssvm.resource.rsplit('.').next();
            (storage, class.unwrap_or(&ssvm.resource))
        }
        (Role::ConsoleProxy(_), _) => (None, "ConsoleProxyResource"),
        _ => return Err(Unusable::NoAgent),
    };
    let storage = storage.unwrap_or_else(|| private.clone());
    let startup = StartupCommand {
        private_ip_address: private.0,
        private_netmask: private.1,
        private_mac_address: private.2,
        public_ip_address: public.0,
        public_netmask: public.1,
        public_mac_address: public.2,
        storage_ip_address: storage.0,
        storage_netmask: storage.1,
        storage_mac_address: storage.2,
        ..StartupCommand::default()
    };
    Ok((startup, resource))
}

struct Session {
    host_id: i64,
    host_type: HostType,
    sequence: i64,
    ping_interval: Duration,
}

impl Session {
    fn ping(&mut self) -> Result<Vec<u8>, LinkEnd> {
        self.sequence += 1;
        let ping = PingCommand {
            host_type: Some(self.host_type),
            host_id: self.host_id,
            ..PingCommand::default()
        };
        let request = Request::from_agent(self.sequence, self.host_id, Command::new(ping));
        Ok(request.encode(Charset::Ascii)?)
    }

    /// What is to be sent in reply.
    fn receive(&mut self, message: &[u8]) -> Result<Option<Vec<u8>>, LinkEnd> {
        match Packet::decode(message)? {
            Packet::Request(request) => {
                let answers = request.commands.iter().map(|command| self.answer(command));
                let answers = answers.collect::<Result<Vec<Answer>, LinkEnd>>()?;
                Ok(Some(request.response(answers).encode(Charset::Ascii)?))
            }
            Packet::Response(response) => {
                for answer in response.answers {
                    if let AnswerBody::Startup(startup) = answer.body
                        && let Ok(seconds @ 1..=86_400) = u64::try_from(startup.ping_interval)
                    {
                        self.ping_interval = Duration::from_secs(seconds);
                    }
                }
                Ok(None)
            }
        }
    }

    fn answer(&mut self, command: &Command) -> Result<Answer, LinkEnd> {
        Ok(match &command.body {
            CommandBody::Ready(ready) => {
                if let Some(reason) = &ready.details {
                    return Err(LinkEnd::Refused(reason.clone()));
                }
                self.host_id = ready.host_id.unwrap_or(self.host_id);
                Answer::new(ReadyAnswer::default())
            }
            CommandBody::SecStorageSetup(_) => Answer::new(SecStorageSetupAnswer {
                dir: Some("simulated".into()),
            }),
            CommandBody::ListTemplate(_) => Answer::new(ListTemplateAnswer::default()),
            CommandBody::ListVolume(_) => Answer::new(ListVolumeAnswer::default()),
            CommandBody::SecStorageVMSetup(_)
            | CommandBody::SecStorageFirewallCfg(_)
            | CommandBody::StartConsoleProxyAgentHttpHandler(_)
            | CommandBody::AllowConsoleAccess(_) => Answer::success(),
            _ => Answer::unsupported(command),
        })
    }
}

/// The agent's end of a connection.
struct Link {
    duplex: Duplex,
    channel: Channel,
}

impl Link {
    async fn over(stream: TcpStream, tls: Arc<ClientConfig>) -> Result<Self, LinkEnd> {
        let peer: IpAddr = stream.peer_addr()?.ip();
        let mut link = Self {
            duplex: Duplex::new(stream),
            channel: Channel::client(tls, ServerName::from(peer)).map_err(BrokenLink::Tls)?,
        };
        link.channel.flush(&mut link.duplex.output);
        loop {
            let Link { duplex, channel } = &mut link;
            if channel.receive(&mut duplex.input, &mut duplex.output)?.is_some() {
                return Ok(link);
            }
            if duplex.progress().await? == Progress::Closed {
                return Err(LinkEnd::Closed);
            }
        }
    }

    fn send(&mut self, message: &[u8]) -> Result<(), LinkEnd> {
        Ok(self.channel.send(message, &mut self.duplex.output)?)
    }

    /// May be dropped without loss; `None`: all is sent.
    async fn next(&mut self) -> Result<Option<Vec<u8>>, LinkEnd> {
        loop {
            let Self { duplex, channel } = self;
            if let Some(Event::Message(message)) = channel.receive(&mut duplex.input, &mut duplex.output)? {
                return Ok(Some(message));
            }
            match duplex.progress().await? {
                Progress::Received => {}
                Progress::Sent => return Ok(None),
                Progress::Closed => return Err(LinkEnd::Closed),
            }
        }
    }
}

/// As a system VM's agent does it (agent-protocol.md §1.2): its own certificate is shown, the server's chain is checked.
fn client_config(identity: &Issued) -> Result<Arc<ClientConfig>, Unusable> {
    let provider = Arc::new(ring::default_provider());
    let ca = CertificateDer::from_pem_slice(identity.signed.ca.as_bytes())?;
    let certificate = CertificateDer::from_pem_slice(identity.signed.certificate.as_bytes())?;
    let key = PrivateKeyDer::from_pem_slice(identity.private_key.expose().as_bytes())?;
    let mut roots = RootCertStore::empty();
    roots.add(ca.clone())?;
    let chain = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build()?;
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS12])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(OfOurCa { ca, chain }))
        .with_client_auth_cert(vec![certificate], key)?;
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// A server's certificate carries no name that counts: it must be our CA's, or issued by it.
#[derive(Debug)]
struct OfOurCa {
    ca: CertificateDer<'static>,
    chain: Arc<WebPkiServerVerifier>,
}

impl ServerCertVerifier for OfOurCa {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if *end_entity == self.ca {
            return Ok(ServerCertVerified::assertion());
        }
        let checked = self
            .chain
            .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        match checked {
            // The name is looked at last: all else is good.
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            checked => checked,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}
